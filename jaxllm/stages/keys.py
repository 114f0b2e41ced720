"""Every config key a stage reads: its default, what it means, and whether a resumed run may change it."""

from jaxllm.stages.key import Key

SHARED: dict[str, Key] = {
    "stage": Key(None, str, "the stage that this config is for, sft say; plan and data show ask it (none: pretrain)"),
    "seed": Key(0, int, "the run's seed: initial weights, data order, dropout, sampling"),
    "depth": Key(None, int, "one dial: sets model shape, batch_size, steps and learning rate where they are not given"),
    "steps": Key(1000, int, "optimizer updates in all", resume=True),
    "batch_size": Key(8, int, "rows per update, over all devices and microbatches"),
    "sequence_length": Key(256, int, "tokens per row"),
    "init_from": Key(
        None,
        str,
        "a jaxllm work directory or a Hugging Face folder whose weights to start from; its shape and tokenizer where none are given",
    ),
    "init_rename": Key([], list, "'here=there' pairs for init_from: a regex of parameter names here, and the name there"),
    "init_skip": Key([], list, "parameter names (regexes) that init_from must not fill"),
    "microbatches": Key(1, int, "parts a batch is cut into to save memory; never changes a result", resume=True),
    "remat": Key("none", str, "what the backward pass recomputes: none, minimal, dots, full, offload", resume=True),
    "model.preset": Key(
        None, str, "a published shape by name (jaxllm pretrain --presets lists them); any ModelConfig field may stand beside it"
    ),
    "model.dtype": Key("auto", str, "compute dtype: float32, bfloat16, or auto (bfloat16 on TPU and GPU, float32 on CPU)"),
    "model.param_dtype": Key("float32", str, "dtype of stored parameters"),
    "model.logits_dtype": Key(
        "float32", str, "what logits are rounded to before a float32 softmax: float32, or bfloat16, which CPUs multiply faster"
    ),
    "model.attention": Key("auto", str, "attention kernel: auto, reference, xla, splash, cudnn"),
    "model.context": Key("gather", str, "keys and values across the context axis: gather or ring", resume=True),
    "model.scan_layers": Key(True, bool, "one compiled layer for all (fast to compile) or each its own", resume=True),
    "model.logprobs_chunk": Key(0, int, "tokens per chunk of the loss; 0 lets the op choose", resume=True),
    # What the data are made from may be said in another way on resume: the training data themselves are compared, see `inputs.check_data`.
    "data.train": Key(
        [], list, "training sources: a list of {path, weight, format, field}; of dialogues, task:NAME[=FILE] too", resume=True
    ),
    "data.eval": Key(
        [], list, "validation sets by name: a list of {name, path, format, field}; the held-out split is always one of them", resume=True
    ),
    "data.prepared": Key(None, str, "a folder that `jaxllm prepare` wrote; else raw paths are prepared on first use", resume=True),
    "data.tokenizer": Key(
        None,
        dict,
        "{kind: bytes | sentencepiece | tokenizer.json, path, vocab_size, model_type} (None: data.prepared's or init_from's, else bytes)",
        resume=True,
    ),
    "data.eval_fraction": Key(
        None, float, "share of documents held out, by a hash of the document (None: 0.01, or 0 where data.eval is given)", resume=True
    ),
    "data.dedup": Key(True, bool, "drop documents that are exactly equal to an earlier one", resume=True),
    "data.filters": Key(
        "none", object, "file filters of the Codex paper: none, codex (all four), or a table of filter: threshold", resume=True
    ),
    "data.max_bad_share": Key(0.02, float, "share of unreadable records past which prepare stops", resume=True),
    "data.workers": Key(0, int, "processes that prepare data; 0: one per core", resume=True),
    "data.stage_to": Key(None, str, "copy remote token files to this local folder first", resume=True),
    "data.cache": Key(
        None,
        str,
        "where blocks of remote token files are kept (None: $JAXLLM_CACHE, or jaxllm under $XDG_CACHE_HOME or ~/.cache)",
        resume=True,
    ),
    "data.prefetch": Key(2, int, "batches read ahead", resume=True),
    "data.packing": Key(
        "packed", str, "rows of dialogues: packed (many in a row, apart) or padded (one in a row, rows of like length together)"
    ),
    "data.too_long": Key("truncate", str, "a dialogue longer than a row: truncate, skip or refuse", resume=True),
    "data.mixing": Key("proportional", str, "how often sources of dialogues are drawn: proportional, temperature, equal (weights win)"),
    "data.cap": Key(None, float, "proportional and temperature: examples of a source count up to this many (OPT-IML: 4096)"),
    "data.temperature": Key(1.0, float, "temperature: 1 is proportional, the larger the nearer to equal"),
    "data.shown": Key(2, int, "Natural Instructions: good examples that a prompt shows"),
    "data.shown_negative": Key(0, int, "Natural Instructions: bad examples that a prompt shows"),
    "data.participants": Key([], list, "roles in dialogues beside system, user, assistant and tool: 'Search Query', say"),
    "data.hold_out": Key({}, dict, "of tasks: {categories: [...], tasks: [...], instances: share}, kept from training and scored apart"),
    "data.text": Key([], list, "sft: pretraining text to mix in, a list like data.train"),
    "data.text_share": Key(0.05, float, "sft: the share of rows that are data.text"),
    "data.dialogues": Key([], list, "pretrain: dialogues to mix in (prompt pretraining), a list like data.train of sft"),
    "data.dialogues_share": Key(0.05, float, "pretrain: the share of rows that are data.dialogues"),
    "chat.template": Key(
        None, str, "how turns are written: chatml, llama3, alpaca, plain, ... or a file of Jinja (none: the model's own, else plain)"
    ),
    "chat.loss": Key("assistant", str, "what is trained on: assistant (their turns), last (the last of them), all"),
    "chat.each_answer": Key(False, bool, "a row for each answer, for templates that write earlier answers otherwise"),
    "epochs": Key(None, float, "sft: go through the dialogues so often; sets steps"),
    "objective": Key("causal", str, "what is predicted from what: causal (prefix, masked and span come later)"),
    "z_loss": Key(0.0, float, "coefficient of the squared log-normaliser"),
    "optimizer.name": Key("adamw", str, "adamw, adafactor, lion, sgd, muon"),
    "optimizer.learning_rate": Key(3e-4, float, "peak learning rate"),
    "optimizer.b1": Key(None, float, "first-moment decay (None: the optimizer's published default)"),
    "optimizer.b2": Key(None, float, "second-moment decay (None: the optimizer's published default)"),
    "optimizer.eps": Key(None, float, "epsilon (None: the optimizer's published default)"),
    "optimizer.momentum": Key(None, float, "momentum of sgd and muon (None: the optimizer's published default)"),
    "optimizer.weight_decay": Key(None, float, "decoupled weight decay (None: the optimizer's published default)"),
    "optimizer.decay": Key([], list, "regexes of parameter names that decay; empty: all matrices"),
    "optimizer.freeze": Key([], list, "regexes of parameter names that are not trained"),
    "optimizer.unfreeze_every": Key(
        0, int, "gradual unfreezing: updates after which the next lower layer learns too; 0: all from the start"
    ),
    "optimizer.clip_norm": Key(1.0, float, "global gradient norm is clipped to this; 0: never"),
    "optimizer.mu_dtype": Key(None, str, "dtype of the first moment, bfloat16 say"),
    "optimizer.ema_decay": Key(0.0, float, "decay of the running mean of the parameters; 0: none"),
    "optimizer.spike_sigma": Key(
        0.0, float, "skip an update whose loss or gradient norm is so many standard deviations above those of late; 0: never"
    ),
    "optimizer.options": Key({}, dict, "the optimizer's own options: ns_steps of muon, clipping_threshold of adafactor, nesterov of sgd"),
    "schedule.name": Key("cosine", str, "constant, cosine, linear, wsd, inverse_sqrt"),
    "schedule.warmup": Key(0.0, float, "updates over which the learning rate rises; below 1: a share of steps"),
    "schedule.final": Key(None, float, "the last learning rate as a share of the peak (None: the schedule's published default)"),
    "schedule.decay": Key(None, float, "wsd: the share of steps that decays (None: 0.2)"),
    "peft.name": Key(
        None, str, "train a small tree beside a frozen base: lora, dora, houlsby, prompt, ... (jaxllm sft --methods lists them)"
    ),
    "peft.init_from": Key(None, str, "a folder of Hugging Face's PEFT to start the adapters from; it says which method they are of"),
    "peft.rank": Key(None, int, "lora and its kin: rank (none: 8)"),
    "peft.alpha": Key(None, float, "lora and its kin: alpha, the scale times the rank (none: the rank's default)"),
    "peft.dropout": Key(None, float, "lora and its kin: dropout on what goes into the adapter"),
    "peft.targets": Key([], list, "the layers that get one: query, key, value, output, gate, up, down (empty: the method's own)"),
    "peft.length": Key(None, int, "prompt and prefix tuning: soft tokens of each task (none: the method's own)"),
    "peft.layers": Key(None, int, "last_n: how many of the last layers are trained"),
    "peft.task": Key(None, str, "of several soft prompts, the one to read and write with: the name of its source", resume=True),
    "peft.quantize": Key("none", str, "how the frozen base is stored: none, int8, nf4 (QLoRA)"),
    "peft.options": Key({}, dict, "the method's other options: reduction, activation, scale, start, num_tasks and so on"),
    "parallel.replica": Key(1, int, "data parallel across slices", resume=True),
    "parallel.fsdp": Key(-1, int, "data parallel with sharded parameters; -1 takes what is left", resume=True),
    "parallel.stage": Key(1, int, "pipeline stages (comes later)", resume=True),
    "parallel.expert": Key(1, int, "expert parallel (comes later)", resume=True),
    "parallel.context": Key(1, int, "sequence parallel", resume=True),
    "parallel.tensor": Key(1, int, "tensor parallel", resume=True),
    "parallel.coordinator": Key(None, str, "address:port of process 0, where no cluster is detected", resume=True),
    "parallel.num_processes": Key(None, int, "how many processes, with parallel.coordinator", resume=True),
    "parallel.process_id": Key(None, int, "which process this is, with parallel.coordinator", resume=True),
    "checkpoint.every": Key(500, int, "updates between checkpoints; 0: only the last", resume=True),
    "checkpoint.every_minutes": Key(0.0, float, "also save after so many minutes; 0: never", resume=True),
    "checkpoint.keep": Key(2, int, "how many of the latest checkpoints stay", resume=True),
    "checkpoint.best": Key(None, str, "also keep the best by this metric, '<set>/loss' say", resume=True),
    "checkpoint.mode": Key("min", str, "whether the best of checkpoint.best is its min or its max", resume=True),
    "checkpoint.export_every": Key(0, int, "updates between Hugging Face exports (comes later); 0: never", resume=True),
    "eval.every": Key(0, int, "updates between evaluations; 0: only at the start and the end", resume=True),
    "eval.batches": Key(0, int, "batches of each validation set; 0: all of it", resume=True),
    "early_stopping.metric": Key(None, str, "stop when this metric no longer improves, '<set>/loss' say", resume=True),
    "early_stopping.patience": Key(3, int, "evaluations without improvement before stopping", resume=True),
    "early_stopping.mode": Key("min", str, "whether the metric should fall (min) or rise (max)", resume=True),
    "log.every": Key(10, int, "updates per line of metrics.jsonl (means over them)", resume=True),
    "log.tensorboard": Key(True, bool, "write TensorBoard events", resume=True),
    "log.wandb": Key(None, str, "a Weights & Biases project to log to (extra: wandb)", resume=True),
    "onednn": Key("auto", str, "CPU only: oneDNN for large products (on), not (off), or for runs of 200 steps and more (auto)"),
    "xla.flags": Key("fast", str, "compiler flags: fast (those of parallel/flags.py for the device) or none", resume=True),
    "xla.options": Key({}, dict, "compiler options by name; they win over xla.flags", resume=True),
    "profile.start": Key(0, int, "first update of the profiler window; 0: no profile", resume=True),
    "profile.steps": Key(3, int, "updates in the profiler window", resume=True),
}

REWARD: dict[str, Key] = {
    "reward.loss": Key(
        "bradley_terry",
        str,
        "bradley_terry (pairs), ranking or pick_best (several answers), rating, multiclass, or binary"
        " (labels; rules that are broken; compared answers are taken apart)",
    ),
    "reward.answers": Key(2, int, "the most answers that a prompt has"),
    "reward.ties": Key("half", str, "how pairs that are called equal are modelled: half, rao_kupper, davidson"),
    "reward.tie_width": Key(1.0, float, "the parameter of rao_kupper and davidson"),
    "reward.centering": Key(0.0, float, "coefficient of the regulariser that holds the mean reward at 0; 0.01 is usual"),
    "reward.scale": Key(
        "none",
        str,
        "after training: none, mean (a bias: reference answers score 0 in the mean) or unit (and a gain: deviation 1)",
        resume=True,
    ),
    "reward.reference_samples": Key(256, int, "best answers of the training data that reward.scale is set on", resume=True),
    "reward.classes": Key(2, int, "multiclass: how many"),
    "reward.members": Key(1, int, "heads of an ensemble"),
    "reward.hidden": Key([], list, "widths of an MLP between the model and each score; empty: one linear map"),
    "reward.prior": Key(0.0, float, "factor of each head's fixed random network (Osband et al. 2018); 0: none"),
}

PREFERENCE: dict[str, Key] = {
    "preference.loss": Key(
        "dpo", str, "dpo, spin, robust, ipo, hinge, slic, cpo, simpo, orpo, apo_zero, apo_down, sppo, nca, bco, exo; of labels: kto"
    ),
    "preference.beta": Key(None, float, "the loss's beta (none: its published default)"),
    "preference.label_smoothing": Key(None, float, "dpo (cDPO), robust, exo: share of wrong labels"),
    "preference.gamma": Key(None, float, "simpo: the margin"),
    "preference.margin": Key(None, float, "slic: the margin"),
    "preference.reduction": Key(None, str, "dpo, ipo: log-ratios are the sum or the mean over tokens (none: the loss's default)"),
    "preference.nll": Key(None, float, "coefficient of the negative log-likelihood of the chosen (none: the loss's own)"),
    "preference.nll_over": Key("token", str, "what that is a mean over: token, sequence, sum"),
    "preference.reference_free": Key(False, bool, "the reference is uniform: none is kept"),
    "preference.desirable_weight": Key(None, float, "kto: weight of desirable answers (none: 1)"),
    "preference.undesirable_weight": Key(None, float, "kto: weight of undesirable answers (none: 1)"),
}

TASKS: dict[str, Key] = {
    "tasks.names": Key(
        [],
        list,
        "tasks (jaxllm tasks lists them), or name=FILE, to be asked while training; all: those found under tasks.path",
        resume=True,
    ),
    "tasks.every": Key(0, int, "updates between two askings; 0: as eval.every says", resume=True),
    "tasks.path": Key(None, str, "a folder to look for the tasks' files in, by the names they are published under", resume=True),
    "tasks.limit": Key(None, int, "rows of each task, the first ones; none: all", resume=True),
    "tasks.shots": Key(None, int, "solved rows before each question, the file's first ones; none: the task's own number", resume=True),
    "tasks.num_samples": Key(1, int, "answers to each question", resume=True),
    "tasks.k": Key([1], list, "the k of pass@k", resume=True),
    "tasks.temperature": Key([0.0], list, "of answers: one, or one for each k; 0: always the likeliest token", resume=True),
    "tasks.top_p": Key(None, float, "nucleus of the answers (None: 0.95 where several are drawn, as in Codex; else all)", resume=True),
    "tasks.max_new_tokens": Key(None, int, "tokens of an answer; none: the task's own number", resume=True),
    "tasks.length": Key(None, int, "tokens that the model reads at most; none: its context", resume=True),
    "tasks.slots": Key(8, int, "answers that are written together", resume=True),
    "tasks.contamination": Key(
        [],
        list,
        "training text to look for the tasks' rows in (evaluate): files, folders, or run: what the model was trained on",
        resume=True,
    ),
    "tasks.rows": Key(32, int, "continuations that are scored together", resume=True),
}

LABEL: dict[str, Key] = {
    "label.form": Key(None, str, "what is written: labels (each answer's score), verdicts (on label.rule), comparisons (none: those)"),
    "label.rule": Key(None, str, "verdicts: the rule in words; an answer that scores 0 breaks it"),
}

SAMPLE: dict[str, Key] = {
    "sample.max_new_tokens": Key(128, int, "tokens to write after each prompt", resume=True),
    "sample.temperature": Key(0.8, float, "0: always the likeliest token", resume=True),
    "sample.top_k": Key(0, int, "only the k likeliest tokens; 0: all", resume=True),
    "sample.top_p": Key(1.0, float, "only the likeliest tokens that hold this much probability", resume=True),
    "sample.min_p": Key(0.0, float, "only tokens of at least this share of the likeliest one's probability", resume=True),
    "sample.repetition_penalty": Key(1.0, float, "divides the logits of tokens that are there already; 1: none", resume=True),
    "sample.num_samples": Key(1, int, "samples per prompt", resume=True),
    "sample.stop": Key([], list, "texts that end a continuation", resume=True),
    "sample.stop_tokens": Key([], list, "tokens, by their text, that end a continuation beside the tokenizer's own", resume=True),
    "sample.long_prompt": Key("refuse", str, "a prompt longer than the context: refuse it, or window: use its last tokens", resume=True),
    "sample.num_beams": Key(1, int, "more than 1: beam search, nothing is drawn; samples are the best it finds", resume=True),
    "sample.num_draft": Key(4, int, "tokens that the model of --draft proposes at a time", resume=True),
    "sample.slots": Key(8, int, "rows that decode together", resume=True),
}

# Names that people bring from TRL, Hugging Face and MaxText, or type by habit; an error sentence points from them to ours.
ALIASES: dict[str, str] = {
    "lr": "optimizer.learning_rate",
    "max_steps": "steps",
    "num_steps": "steps",
    "per_device_train_batch_size": "batch_size",
    "per_device_batch_size": "batch_size",
    "gradient_accumulation_steps": "microbatches",
    "max_grad_norm": "optimizer.clip_norm",
    "gradient_clipping_threshold": "optimizer.clip_norm",
    "warmup_steps": "schedule.warmup",
    "lr_scheduler_type": "schedule.name",
    "lr_schedule_type": "schedule.name",
    "adam_beta1": "optimizer.b1",
    "adam_beta2": "optimizer.b2",
    "adam_epsilon": "optimizer.eps",
    "opt_type": "optimizer.name",
    "optim": "optimizer.name",
    "max_length": "sequence_length",
    "max_target_length": "sequence_length",
    "block_size": "sequence_length",
    "save_steps": "checkpoint.every",
    "checkpoint_period": "checkpoint.every",
    "save_total_limit": "checkpoint.keep",
    "eval_steps": "eval.every",
    "eval_interval": "eval.every",
    "logging_steps": "log.every",
    "log_period": "log.every",
    "model_name_or_path": "init_from",
    "load_parameters_path": "init_from",
    "remat_policy": "remat",
    "gradient_checkpointing": "remat",
    "hidden_size": "model.width",
    "num_hidden_layers": "model.num_layers",
    "num_attention_heads": "model.num_heads",
    "num_key_value_heads": "model.num_kv_heads",
    "intermediate_size": "model.mlp_width",
}

TRAINS = ("pretrain", "sft", "reward", "preference", "rl")  # stages that run config.steps updates, each with a RECIPE

# What `jaxllm STAGE` does, in the order of a model's life.  One line each; `--help` prints them.
STAGES: dict[str, str] = {
    "prepare": "raw text -> tokenizer and token files",
    "data": "any training row as coloured tokens: what the model really trains on",
    "pretrain": "token files -> a language model",
    "sft": "dialogues -> a model that answers",
    "label": "prompts, a model's own answers and who judges them -> comparisons",
    "reward": "comparisons, rankings, labels or verdicts on answers -> a model that scores them",
    "preference": "comparisons or labels -> a model that answers as people prefer: dpo, kto, orpo, ...",
    "rl": "prompts and rewards -> a model whose own samples score higher",
    "evaluate": "a trained model -> held-out loss, perplexity, bits per byte, by source; or its scores on tasks",
    "tasks": "the tasks that there are",
    "sample": "prompts -> text",
    "chat": "a conversation with a model, on the terminal",
    "convert": "a Hugging Face folder -> a work directory, and back",
    "plan": "a config and a TPU slice that is not there -> memory, traffic and the least time of a step",
    "report": "work directories -> one page of curves, tables and samples",
    "run": "several stages one after the other, each in its own work directory",
    "demo": "the whole life of a tiny code model, in minutes",
    "checkpoints": "list, verify and prune the checkpoints of a work directory",
}
