"""Labels: a model's own answers to prompts, judged -> what reward models and preference tuning learn from."""

from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from jaxllm.losses.terms import check_choice
from jaxllm.parallel import hosts
from jaxllm.parallel.mesh import make_mesh
from jaxllm.rollouts.making import judged
from jaxllm.rollouts.rollout import MOST_SLOTS, Prompt, Sampler, Samples
from jaxllm.stages import opened, origin, rewarded, scores, setup, tasks, workdir
from jaxllm.stages.config import load
from jaxllm.stages.prompted import PromptData, open_prompts
from jaxllm.stages.rewarded import rewards_of
from jaxllm.training.lock import hold
from jaxllm.training.sinks import JsonLines

STEADY = ("sum", "normalised_sum", "product")  # rules that look at one prompt's answers alone, and remember nothing


def main(args: Namespace, overrides: Sequence[str]) -> int:
    """`jaxllm label --config F --workdir D`: every prompt of rollout.* is answered by the model of init_from, and rl.rewards judge."""
    config = origin.complete(load(args.config, overrides), args.workdir)
    form = check(config, args.config)
    setup.backend_flags(config, trains=False)
    section = config.parallel
    hosts.start(section.coordinator, section.num_processes, section.process_id)
    setup.keep_compiled_programs()
    mesh = make_mesh()
    with jax.set_mesh(mesh), hold(args.workdir):
        for line in workdir.enter("label", config, args.workdir):
            hosts.say(line)
        data, known = open_prompts(config), sources(config, args.workdir)
        if hosts.is_first():
            known |= {"tokenizer": data.tokenizer.fingerprint, "train_data": data.train_content, "vocab_size": data.tokenizer.vocab_size}
            data.check(config, args.workdir)
            workdir.record("label", config, args.workdir, known)
            workdir.keep_tokenizer(data.tokenizer, args.workdir)
            origin.keep(config.init_from, args.workdir, data.tokenizer.fingerprint)
        file = JsonLines(epath.Path(args.workdir) / f"{form}.jsonl")
        hosts.say(write(config, mesh, data, file, form))
        file.close()
    hosts.finish()
    return 0


def check(config: ConfigDict, file: str) -> str:
    """Refuses what cannot be judged; returns what is written, of `FORMS`.

    Raises:
      ValueError: no model, one answer to each prompt, or the config of another stage.
    """
    if config.stage not in (None, "label", "rl"):
        raise ValueError(f"{file} is a config for `jaxllm {config.stage}`. `jaxllm label` reads what rl reads: rollout.* and rl.rewards.")
    form = config.label.form or "comparisons"
    if not config.init_from:
        raise ValueError("Whose answers? Set init_from to a work directory or a Hugging Face folder.")
    if config.rollout.samples_per_prompt < 2 and form == "comparisons":
        raise ValueError(f"rollout.samples_per_prompt={config.rollout.samples_per_prompt} leaves nothing to compare. Give 2 or more.")
    check_choice("label.form", form, FORMS)
    if (form == "verdicts") != bool(config.label.rule):
        raise ValueError(f"label.form={form!r} and label.rule={config.label.rule!r}: verdicts need a rule, and nothing else does.")
    rewarded.check(config)
    check_choice("rl.reward_rule", config.rl.reward_rule, STEADY)
    if config.rollout.tools:
        raise ValueError(f"rollout.tools={list(config.rollout.tools)}, and labelled answers are written without tools. Set it to [].")
    if not config.rollout.temperature > 0:
        raise ValueError(f"rollout.temperature={config.rollout.temperature} gives the same answer each time. Give a number above 0.")
    return form


def sources(config: ConfigDict, folder: str) -> dict[str, Any]:
    """What tells the weights that answer and those that judge from any others.

    Raises:
      ValueError: those of an earlier run in this folder were others: its labels would be of two models.
    """
    found = {"answered_by": opened.identity(config.init_from), "judged_by": rewarded.models_in(config)}
    before = workdir.read(folder) if (epath.Path(folder) / workdir.NAME).exists() else {}
    for name, what in (("answered_by", f"init_from={config.init_from!r}"), ("judged_by", "the reward models of rl.rewards")):
        if before.get(name, found[name]) != found[name]:
            raise ValueError(f"{folder} was begun with other weights of {what}. Bring them back, or choose another --workdir.")
    return found


def write(config: ConfigDict, mesh: Any, data: PromptData, file: JsonLines, form: str) -> str:
    """Writes the comparisons that are not there yet, some prompts at a time; returns what to say of all.

    What is drawn depends on (seed, place of the prompt) alone. Where an earlier run of the same command stopped, its last prompts are
    answered again, the same way.
    """
    section, asked = config.rollout, data.asked
    model, params, tokenizer, _ = tasks.open_source(config.init_from, mesh, None, config)
    if tokenizer.fingerprint != data.tokenizer.fingerprint:
        raise ValueError(f"data.tokenizer is another than that of init_from={config.init_from!r}. Leave it out.")
    size = {"sequence_length": config.sequence_length, "max_new_tokens": asked.max_new_tokens, "seed": config.seed}
    slots = section.slots or min(section.prompts * section.samples_per_prompt, MOST_SLOTS)  # where the first prompts are the last few, too
    sampler = Sampler(model, data.endings, temperature=section.temperature, slots=slots, **size)
    rewards, done = rewards_of(config, asked, mesh), max([record["step"] for record in file.read()], default=0)
    file.rewind(done - 1)
    with scores.bar("prompts", len(data.prompts), done * section.prompts) as tell:
        for step in range(done, -(-len(data.prompts) // section.prompts)):
            prompts = data.prompts[step * section.prompts : (step + 1) * section.prompts]
            samples = sampler(params, prompts, section.samples_per_prompt, step)
            found = judged(rewards, samples.answers, samples.groups, {})
            for problem in found.problems:
                hosts.say(problem)
            for record in FORMS[form](samples, found.total, config.label.rule):
                if hosts.is_first():
                    file.write({"step": step, **record})
            tell(len(prompts))
    file.flush()
    drawn = len(data.prompts) * section.samples_per_prompt
    return f"{len(file.read()):,} {form} of {drawn:,} answers to {len(data.prompts):,} prompts: {file.path}"


Written = Iterator[Mapping[str, Any]]


def comparisons(samples: Samples, total: np.ndarray, rule: str | None) -> Written:
    """{prompt (or messages), answers, scores} of every prompt whose different answers have different scores."""
    for group in np.unique(samples.groups):
        rows = [i for i in scored_rows(samples, total) if samples.groups[i] == group]
        found = {samples.answers[i].text: float(total[i]) for i in rows}
        if len(set(found.values())) > 1:
            yield {**asked_in(samples.prompts[rows[0]]), "answers": list(found), "scores": list(found.values())}


def labels(samples: Samples, total: np.ndarray, rule: str | None) -> Written:
    """{prompt (or messages), completion, label} of every answer."""
    for i in scored_rows(samples, total):
        yield {**asked_in(samples.prompts[i]), "completion": samples.answers[i].text, "label": float(total[i])}


def verdicts(samples: Samples, total: np.ndarray, rule: str | None) -> Written:
    """{dialogue, rule, verdict} of every answer: the rule is broken where the score is 0."""
    for i in scored_rows(samples, total):
        asked, answer = asked_in(samples.prompts[i]), {"role": "assistant", "content": samples.answers[i].text}
        before = asked.get("messages") or [{"role": "user", "content": asked["prompt"]}]
        yield {"dialogue": [*before, answer], "rule": rule, "verdict": bool(total[i] == 0)}


FORMS = {"comparisons": comparisons, "labels": labels, "verdicts": verdicts}


def scored_rows(samples: Samples, total: np.ndarray) -> list[int]:
    """The answers that say something and have a score, total float64 [R]."""
    return [i for i in range(len(total)) if np.isfinite(total[i]) and samples.answers[i].text.strip()]


def asked_in(prompt: Prompt) -> dict[str, Any]:
    """What was asked, as a record says it."""
    return {"messages": prompt.row["messages"]} if prompt.row.get("messages") else {"prompt": prompt.text}
