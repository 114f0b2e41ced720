"""Policy optimisation: prompts and rewards -> a model whose own samples score higher; GRPO and its kin, on full weights or any PEFT."""

import functools
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from jaxllm.data.pipeline import FIELDS
from jaxllm.models import heads
from jaxllm.parallel import hosts
from jaxllm.parallel.rows import make_global, rows_needed
from jaxllm.rollouts import turns
from jaxllm.rollouts.credit import credit
from jaxllm.rollouts.doctor import Doctor, recorded
from jaxllm.rollouts.feeds import Controller, RolloutFeed, fixed
from jaxllm.rollouts.making import Made, Making, Plan, Weights
from jaxllm.rollouts.overoptimisation import History, watched
from jaxllm.rollouts.rollout import Sampler, decoder_of, places
from jaxllm.rollouts.scoring import Place, Scorer
from jaxllm.rollouts.shaping import adaptive_kl
from jaxllm.rollouts.turns import TurnSampler
from jaxllm.stages import critics, door, inputs, methods, policy, pretrain, rollout_programs, train
from jaxllm.stages.policy import TEXT
from jaxllm.stages.prompted import PromptData, open_prompts
from jaxllm.stages.recipe import Beside, Recipe
from jaxllm.stages.rewarded import models_in, rewards_of
from jaxllm.stages.tools import content
from jaxllm.training.sinks import JsonLines

STATISTICS = ("reward", "completion_tokens", "truncated", "identical", "unscored", "untrained")  # of each sample, always
SAMPLES = "samples.jsonl"


def statistic_names(config: ConfigDict) -> list[str]:
    """What every row of a batch says of its sample."""
    rewards = rewards_of(config, None)
    found = [*STATISTICS, *(f"reward_{name}" for name in rewards.names), *rewards.says({})]
    found += ["returns_scale"] if config.rl.normalise_returns else []
    found += ["kl_coefficient"] if methods.compares(config) else []
    found += ["kl_sequence"] if methods.compares(config) and methods.rescores(config) else []
    found += ["explained_variance"] if methods.has_critic(config) else []
    found += ["age"] if methods.is_stale(config) else []
    found += ["resampled"] if methods.tries(config) else []
    found += turns.STATISTICS if config.rollout.tools else []
    return found + (["coupled_mismatch"] if config.rollout.check_every else [])


def fields(config: ConfigDict) -> dict[str, tuple[tuple[int, ...], Any]]:
    """What a minibatch holds beside packed rows: name -> shape, dtype."""
    extra = ["advantages", "sampler"] + ["old"] * methods.rescores(config) + ["reference"] * methods.compares(config)
    extra += ["old_values", "returns"] * methods.has_critic(config)
    shape, text = (config.batch_size, config.sequence_length), (config.rl.ptx_rows, config.sequence_length)
    found: dict[str, tuple[tuple[int, ...], Any]] = dict.fromkeys(extra, (shape, jnp.float32))
    found |= {f"stat_{name}": (shape[:1], jnp.float32) for name in statistic_names(config)}
    if config.rl.ptx_rows:
        found |= {f"{TEXT}{name}": (text, dtype) for name, dtype in FIELDS.items()} | {f"{TEXT}row": (text[:1], jnp.int32)}
    return found


def _text_config(config: ConfigDict) -> ConfigDict:
    """The config of the text beside the samples: another number of rows."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.batch_size = config.rl.ptx_rows
    return config


def placement(mesh: Any) -> Place:
    """From rows of the whole batch, the same in every process, to global arrays on the mesh."""
    shardings = inputs.row_shardings(mesh)

    def place(rows: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        count = len(rows["tokens"])
        own = rows_needed(shardings[1], count)
        return {name: make_global(values[own], shardings[values.ndim], count) for name, values in rows.items()}

    return place


def feed(made: train.Run, folder: str) -> RolloutFeed:
    """What serves a run its minibatches."""
    config, data, model = made.config, made.data, made.tuned.model
    assert isinstance(data, PromptData)
    if made.tuned.soft() is not None:
        raise ValueError(f"peft.name={config.peft.name!r} puts soft tokens in front of prompts, which rl cannot yet. Choose lora, say.")
    asked, section, place = data.asked, config.rollout, placement(made.mesh)
    coefficient, method = config.rl.kl_coefficient, methods.method_of(config)
    decoder, unrolled = decoder_of(model)
    size = {"sequence_length": config.sequence_length, "max_new_tokens": asked.max_new_tokens, "seed": config.seed}
    kind = Sampler if data.talk is None else functools.partial(TurnSampler, talk=data.talk, max_turns=section.max_turns)
    sampler = functools.partial(kind, decoder, data.endings, slots=section.slots, **size)
    making = Making(
        plan_of(config),
        data.prompts,
        sampler(temperature=section.temperature),
        Scorer(model, section.temperature, place, config.batch_size // config.microbatches, critics.values_of(config, model)),
        rewards_of(config, asked, made.mesh),
        jax.jit(functools.partial(credit, method, methods.shape_of(config))),
        sampler(temperature=0.0) if method.advantages == "greedy" else None,
    )

    def weights(state: Any, frozen: Any) -> Weights:
        whole = made.tuned.whole(state.params, frozen)
        return Weights(whole, unrolled(heads.without(whole)), frozen.get("reference", frozen.get("base")))

    if methods.compares(config) and config.peft.init_from:
        hosts.say(f"rl.kl_coefficient: the KL is from the base with its adapters off, and not from peft.init_from={config.peft.init_from}.")
    seen = watched(config.rl.rewards)
    log = Log(folder, section.log_samples, Doctor(asked.max_new_tokens, hosts.say, seen))
    return RolloutFeed(
        making,
        weights,
        place,
        batch_size=config.batch_size,
        epochs=section.epochs,
        lag=section.lag,
        replay=section.replay,
        replayed=methods.replayed(config),
        more=_text(config, data, made.mesh, place),
        controller=controller_of(config),
        coefficient=coefficient,
        watch=log,
        record=functools.partial(recorded, watched=seen),
        flush=log.flush,
        close=log.close,
    )


def plan_of(config: ConfigDict) -> Plan:
    """The sizes of rollouts."""
    section, looks = config.rollout, {"rescores": methods.rescores(config), "compares": methods.compares(config)}
    sizes = {"num_prompts": section.prompts, "num_samples": section.samples_per_prompt, "sequence_length": config.sequence_length}
    return Plan(**sizes, **looks, check_every=section.check_every, seed=config.seed, tries=methods.tries(config))


def controller_of(config: ConfigDict) -> Controller:
    """Who moves the coefficient of the KL."""
    section = config.rl
    if section.kl_controller == "fixed" or not methods.compares(config):
        return fixed

    def adaptive(coefficient: np.float32, made: Made) -> np.float32:
        found = made.buffer["stat_kl_sequence"]
        there = found[np.isfinite(found)]
        if not len(there):
            return coefficient
        moved = adaptive_kl(float(coefficient), float(there.mean()), len(there), target=section.kl_target, horizon=section.kl_horizon)
        return np.float32(moved)

    return adaptive


def _text(config: ConfigDict, data: PromptData, mesh: Any, place: Place) -> Callable[[int], Mapping[str, Any]]:
    """The text that every update brings along: a pure function of its number."""
    if data.text is None:
        return lambda position: {}
    parts = mesh.shape["replica"] * mesh.shape["fsdp"] * config.microbatches
    if config.rl.ptx_rows % parts:
        raise ValueError(f"rl.ptx_rows={config.rl.ptx_rows} does not divide by replica*fsdp times microbatches={parts}. Choose a multiple.")
    reader = data.text.reader(_text_config(config))
    return lambda position: {f"{TEXT}{name}": values for name, values in place(reader.rows(position)).items()}


class Log:
    """What people see of rollouts: some samples in samples.jsonl, what could not be scored, and the doctor's sentences."""

    def __init__(self, folder: str, num_samples: int, doctor: Doctor):
        self._path, self._count, self._doctor = epath.Path(folder) / SAMPLES, num_samples, doctor
        self._file: JsonLines | None = None
        self._seconds: dict[str, float] = {}
        self._rollouts = 0

    def __call__(self, made: Made, step: int, history: History) -> None:
        for problem in made.rewarded.problems:
            hosts.say(f"step {step}: {problem}")
        self._doctor(made, step, history)
        self._rollouts += 1
        self._seconds = {kind: self._seconds.get(kind, 0.0) + spent for kind, spent in made.seconds.items()}
        if not hosts.is_first() or not self._count:
            return
        self._file = self._file or JsonLines(self._path)  # not before the loop has rewound it
        for row in range(min(self._count, len(made.samples.answers))):
            self._file.write({"step": step + 1, **sample_record(made, row)})

    def flush(self) -> None:
        """Writes down what is left."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Says where the time of rollouts went, the first of which compiled."""
        self.flush()
        if self._rollouts:
            spent = ", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in self._seconds.items())
            hosts.say(f"{self._rollouts} rollout(s): {spent}.")


def sample_record(made: Made, row: int) -> dict[str, Any]:
    """A completion with its rewards, and what is known of each of its tokens."""
    answer, buffer = made.samples.answers[row], made.buffer
    at = places(made.samples.prompts[row], made.samples.finished[row])
    tokens = {name: np.round(buffer[name][row][at].astype(float), 4).tolist() for name in ("sampler", "advantages")}
    parts = {name: float(values[row]) for name, values in made.rewarded.parts.items()}
    said = {"sample": row, "prompt": answer.prompt, "text": answer.text, "reward": float(made.rewarded.total[row]), "rewards": parts}
    known = {"ended": answer.ended, "tokens": answer.tokens.tolist(), "log_probs": tokens["sampler"], "advantages": tokens["advantages"]}
    return said | known | ({"turns": [turn._asdict() for turn in answer.turns]} if answer.turns else {})


def beside(config: ConfigDict, model: Any) -> Beside:
    """The reference, where the KL from it counts, and the critic, where there is one."""
    head, begins = critics.head_of(config, model), critics.begins(config, model)
    return Beside(head=head, reference=methods.compares(config), begins=begins, paced=critics.paced(config))


def open_data(config: ConfigDict) -> PromptData:
    """See `prompted.open_prompts`; a mistake in the config is told before any file is read."""
    policy.check(config)
    data = open_prompts(config)
    data.content = data.train_content = " ".join([data.train_content, *models_in(config), *content(config)])
    return data


RECIPE = Recipe(
    "rl", policy.objective, open_data, pretrain.scorer, beside=beside, fields=fields, feed=feed, forwards=rollout_programs.programs
)


def main(args: Namespace, overrides: Sequence[str]) -> int:
    """`jaxllm rl --config F --workdir D`"""
    if args.canary is not None:
        raise ValueError(f"--canary {args.canary} compares updates on random rows, and rl makes its own. Run it with the config of sft.")
    return door.main(RECIPE, args, overrides)
