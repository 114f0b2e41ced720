"""The config keys of policy optimisation: `rollout.*` and `rl.*`. See `keys`."""

from jaxllm.stages.key import Key

ROLLOUT: dict[str, Key] = {
    "rollout.task": Key(None, str, "prompts: the rows of a task by name (jaxllm tasks lists them), or name=FILE"),
    "rollout.file": Key(None, str, "prompts: a file of rows {prompt, answer, ...} (or {messages, ...} with rollout.chat)"),
    "rollout.limit": Key(None, int, "rows of it, the first ones; none: all"),
    "rollout.shots": Key(0, int, "solved rows before each prompt, the file's first ones"),
    "rollout.chat": Key(False, bool, "a prompt is a user's turn, in the chat template"),
    "rollout.prompts": Key(8, int, "prompts of a rollout"),
    "rollout.samples_per_prompt": Key(8, int, "completions of each prompt"),
    "rollout.epochs": Key(1, int, "how often each completion is trained on; prompts * samples * epochs / batch_size updates a rollout"),
    "rollout.lag": Key(0, int, "updates by which the weights that sample are behind: rollouts are made that much before their turn"),
    "rollout.replay": Key(0, int, "rollouts before the present one that batches draw from again"),
    "rollout.replay_share": Key(0.0, float, "share of each batch that is drawn so"),
    "rollout.resample": Key(
        None, int, "times that a prompt whose samples all have one reward gives way to the next (none: 3 with dapo, else 0)"
    ),
    "rollout.max_new_tokens": Key(None, int, "tokens of a completion at most, tools' results aside (none: the task's own number)"),
    "rollout.temperature": Key(1.0, float, "of the draws; all log-probabilities are taken at it"),
    "rollout.stop": Key(None, list, "texts that end a completion (none: the task's own)"),
    "rollout.long_prompt": Key("refuse", str, "a prompt that leaves no room for its completion: refuse it, or skip it (and say how many)"),
    "rollout.slots": Key(0, int, "completions that are written together; 0: all of a rollout, up to 64", resume=True),
    "rollout.tools": Key(
        [], list, "what completions may call: calculator, python, search, function; or a list of {kind, name, open, close, ...}"
    ),
    "rollout.corpus": Key([], list, "what search looks in: files or folders of documents (.jsonl with a text in each line, .txt)"),
    "rollout.result": Key(
        ["<result>", "</result>"], list, "the texts around a tool's result (with rollout.chat it is a turn of the template)"
    ),
    "rollout.max_turns": Key(4, int, "with tools: turns of the model in a completion, all but the last with a call"),
    "rollout.max_tool_tokens": Key(64, int, "with tools: tokens that a turn's results may have, with what stands around them"),
    "rollout.check_every": Key(10, int, "rollouts between two comparisons of draws with the training graph's; 0: never"),
    "rollout.log_samples": Key(8, int, "completions of each rollout that samples.jsonl gets", resume=True),
}

RL: dict[str, Key] = {
    "rl.method": Key(
        "grpo",
        str,
        "ppo, grpo, dr_grpo, dapo, gspo, gspo_token, cispo, rloo, reinforce, reinforce_plus_plus (and _baseline), remax or raft",
    ),
    "rl.rewards": Key([], list, "parts of the reward: a list of {kind, name, weight, ...} (none: the task's own score, or exact)"),
    "rl.reward_rule": Key("sum", str, "how parts become one number: sum, normalised_sum (by group), running_sum, product, constraint"),
    "rl.multiplier": Key(1.0, float, "constraint: what the multiplier of each bound (at_least, at_most of a part) begins as"),
    "rl.multiplier_rate": Key(0.1, float, "constraint: how fast multipliers learn, a rollout; 0: they stay"),
    "rl.kl": Key(None, str, "where the KL from the start goes: reward, loss, none (none given: as the method has it)"),
    "rl.kl_coefficient": Key(0.0, float, "its factor; 0: there is none, and no reference is kept"),
    "rl.kl_estimator": Key(None, str, "k1, k2, k3 (none: k1 in the reward, k3 in the loss)"),
    "rl.kl_corrected": Key(False, bool, "in the loss: estimates times pi / pi_old, which makes the gradient of k1 and k3 that of the KL"),
    "rl.kl_controller": Key("fixed", str, "who moves the factor: fixed, or adaptive (towards rl.kl_target nats a completion)"),
    "rl.kl_target": Key(6.0, float, "adaptive: nats a completion"),
    "rl.kl_horizon": Key(10000.0, float, "adaptive: completions; the larger the slower"),
    "rl.options": Key({}, dict, "of the surrogate: low, high, dual (clip), floor, cap (cispo)"),
    "rl.level": Key(None, str, "what the ratio is of: token, sequence, sequence_token (none: as the method has it)"),
    "rl.over": Key(None, str, "what the loss is divided by: token, sequence, constant (none: as the method has it)"),
    "rl.constant": Key(None, float, "over constant: of a completion (none: rollout.max_new_tokens with a clip, else 1)"),
    "rl.scale": Key({}, dict, "advantages by group: scale (group, batch, none), ddof, eps"),
    "rl.whiten": Key(None, bool, "advantages over the rollout's tokens get mean 0 and deviation 1 (none: as the method has it)"),
    "rl.whiten_rewards": Key(False, bool, "rewards of tokens are divided by their deviation"),
    "rl.normalise_returns": Key(False, bool, "rewards of tokens are divided by the deviation of the returns that the run has seen"),
    "rl.discount": Key(1.0, float, "of rewards a token later"),
    "rl.decay": Key(0.95, float, "lambda of GAE"),
    "rl.critic": Key("shared", str, "ppo: a head on the policy's trunk (shared), or a model of its own that begins as the policy (own)"),
    "rl.critic_init_from": Key(None, str, "the critic's own trunk begins as this one: a reward model's work directory, say"),
    "rl.critic_learning_rate": Key(None, float, "ppo: the critic's (none: the policy's); the schedule is the same"),
    "rl.critic_warmup": Key(0, int, "ppo: the first steps, in which the critic learns and nothing else"),
    "rl.value_coefficient": Key(0.1, float, "ppo: factor of the critic's loss"),
    "rl.value_clip": Key(0.2, float, "ppo: how far a value may move for nothing; 0: as far as it likes"),
    "rl.value_detached": Key(False, bool, "ppo: the critic reads the policy's trunk and does not train it"),
    "rl.missing_end": Key(None, float, "what completions without an end score (set), or what that costs them (subtract)"),
    "rl.missing_end_how": Key("set", str, "set or subtract"),
    "rl.mask_truncated": Key(False, bool, "completions without an end train nothing"),
    "rl.importance_cap": Key(0.0, float, "tokens weigh pi / pi_sampler, at most this (TIS; 2 is usual); 0: all weigh the same"),
    "rl.entropy_coefficient": Key(0.0, float, "factor of a bonus for entropy"),
    "rl.ptx_coefficient": Key(0.0, float, "factor of the loss on data.train's text in every update (PPO-ptx)"),
    "rl.ptx_rows": Key(0, int, "rows of that text in an update"),
}
