"""A reward model opened by others: answers to prompts, or rows of tokens, in; scores out."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from jaxllm.data.chat import encode_batch
from jaxllm.data.comparisons import asked_of_rule
from jaxllm.data.dialogues import ASSISTANT, Dialogue, Message, WrongDialogue
from jaxllm.models import heads
from jaxllm.parallel import hosts, rules
from jaxllm.stages import opened, recipes, workdir
from jaxllm.stages.config import resolve
from jaxllm.stages.spoken import Spoken

SCALE = "scale.json"  # {"gain": ..., "bias": ...} of a reward model's work directory
ROWS, SHORTEST = 16, 32  # answers scored together at least; the shortest length that rows are padded to
Asked = str | Sequence[Message]  # a prompt as text, or the turns before the answer


class Scale(NamedTuple):
    """What a score is multiplied by, and what is added then."""

    gain: float = 1.0
    bias: float = 0.0


def scale_of(folder: str) -> Scale:
    """What a reward model's scores are scaled by; 1 and 0 where nothing is said."""
    path = epath.Path(folder) / SCALE
    return Scale(**json.loads(path.read_text())) if path.exists() else Scale()


class RewardModel:
    """Scores of answers under a trained reward model; a higher one is better. Call its methods under `jax.set_mesh(mesh)`.

    Attributes:
      tokenizer: its own.
      members: of an ensemble.
      step: of its checkpoint.
      identity: tells it from any other.
    """

    def __init__(self, folder: str, mesh: Any, step: int | None = None):
        record = workdir.read(folder)
        config = resolve(record["config"])
        self.model, self.params, self.step = opened.open_model(folder, mesh, step)
        self.head = recipes.recipe_of(config, "reward").beside(config, self.model).head
        self.tokenizer = opened.open_tokenizer(folder)
        self.members = self.head.num_members
        self._template = Spoken(record["chat"]["name"], record["chat"]["jinja"]).template(self.tokenizer)
        shape = self.model.config
        self._most = shape.max_positions if shape.positions == "learned" else math.inf
        self.scale = scale_of(folder)
        self.identity = json.dumps([opened.identity(folder, self.step), self.scale])
        self._compiled = jax.jit(self.function, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def function(self, params: Any, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        """Float32 [B, M], each member's score (without `scale`) of rows of tokens int32 [B, T], each a dialogue of its length int32 [B].

        A pure function, for programs of others; `params` are this object's.
        """
        places = jnp.arange(tokens.shape[1], dtype=jnp.int32)
        segments = (places < lengths[:, None]).astype(jnp.int32)
        positions = jnp.broadcast_to(places, tokens.shape)
        hidden = self.model.apply(params, tokens, segments=segments, positions=positions)
        last = heads.last_of_segments(hidden, segments, positions, lengths[:, None])
        return self.head.apply(heads.of(params), last)[:, 0, :, 0]

    def rows(self, tokens: Sequence[np.ndarray], tokenizer: str | None = None) -> np.ndarray:
        """Float32 [n, M], scaled: what each member says of dialogues in tokens; NaN for one that the model has no positions for.

        Args:
          tokens: int32 [length] each, prompt and answer; what `encoded` gives, or the tokens of a policy with the same tokenizer.
          tokenizer: the fingerprint of the one they are of; None: this model's own.

        Raises:
          ValueError: tokens of another tokenizer.
        """
        if tokenizer is not None and tokenizer != self.tokenizer.fingerprint:
            raise ValueError(
                "These tokens are of another tokenizer than the reward model's. Train it with the policy's tokenizer, or score texts."
            )
        found = np.full((len(tokens), self.members), np.nan, np.float32)
        fitting = [i for i, row in enumerate(tokens) if 0 < len(row) <= self._most]
        order = sorted(fitting, key=lambda i: len(tokens[i]))  # like lengths together
        count = -(-ROWS // rules.ways("batch")) * rules.ways("batch")
        for start in range(0, len(order), count):
            which = order[start : start + count]
            found[which] = self._padded([tokens[i] for i in which], count)
        return (self.scale.gain * found.astype(np.float64) + self.scale.bias).astype(np.float32)

    def _padded(self, rows: Sequence[np.ndarray], count: int) -> np.ndarray:
        longest = max(len(row) for row in rows)
        length = int(min(max(SHORTEST, 1 << (longest - 1).bit_length()), self._most))
        padded, lengths = np.zeros((count, length), np.int32), np.ones(count, np.int32)
        for i, row in enumerate(rows):
            padded[i, : len(row)], lengths[i] = row, len(row)
        return np.asarray(self._compiled(self.params, padded, lengths))[: len(rows)]

    def encoded(self, asked: Asked, answer: str, rule: str | None = None) -> np.ndarray | None:
        """The tokens of a prompt with an answer, in the template that the model was trained with; None: it cannot be said so."""
        before = [Message("user", asked)] if isinstance(asked, str) else list(asked)
        before = asked_of_rule(before, rule) if rule else before
        turns = (*(turn._replace(weight=0.0) for turn in before), Message(ASSISTANT, answer))
        (found,) = encode_batch([Dialogue(turns)], self._template, self.tokenizer, ASSISTANT)
        if isinstance(found, WrongDialogue):
            return None
        return np.concatenate([np.asarray(self.tokenizer.opening, np.int32), found.tokens])

    def ensemble(self, pairs: Sequence[tuple[Asked, str]], rule: str | None = None) -> np.ndarray:
        """Float32 [n, M], what each member says of (prompt, answer); NaN where there is no answer to score. Longer ones are not cut."""
        tokens = [self.encoded(asked, answer, rule) for asked, answer in pairs]
        return self.rows([np.zeros(0, np.int32) if row is None else row for row in tokens])

    def scores(self, pairs: Sequence[tuple[Asked, str]], rule: str | None = None) -> list[float]:
        """The mean of `ensemble` over its members; of a model of verdicts (reward.loss=binary) the log-odds of yes."""
        return self.ensemble(pairs, rule).mean(axis=1).tolist()


def is_one(folder: str) -> bool:
    """Whether a folder is the work directory of a reward model."""
    return (epath.Path(folder) / workdir.NAME).exists() and workdir.read(folder)["stage"] == "reward"


def open_reward(folder: str, mesh: Any, step: int | None = None) -> RewardModel:
    """The reward model of a work directory.

    Raises:
      ValueError: it is not one, or it tells classes, which are no scores.
    """
    record = workdir.read(folder)
    if record["stage"] != "reward":
        raise ValueError(f"{folder} holds a {record['stage']} run, not a reward model. Give the work directory of `jaxllm reward`.")
    if (kind := record["config"]["reward"]["loss"]) == "multiclass":
        raise ValueError(f"{folder} tells classes (reward.loss={kind}), which are no scores. Give a reward model of another loss.")
    with jax.set_mesh(mesh):
        return RewardModel(folder, mesh, step)


def set_scale(folder: str, mesh: Any, samples: Sequence[np.ndarray], kind: str) -> Scale:
    """Writes the bias, and for kind "unit" the gain, with which reference samples score 0 in the mean and 1 in deviation.

    gain = new_std / old_std, bias = new_mean - gain * old_mean (Ziegler et al., arXiv 1909.08593; a bias alone: InstructGPT).

    Args:
      folder: the reward model's work directory.
      mesh: where it shall lie.
      samples: dialogues in its tokens.
      kind: "mean" or "unit".

    Raises:
      ValueError: samples that all score the same, for "unit".
    """
    (epath.Path(folder) / SCALE).unlink(missing_ok=True)
    model = open_reward(folder, mesh)
    with jax.set_mesh(mesh):
        found = model.rows(samples).mean(axis=1).astype(np.float64)
    found = found[np.isfinite(found)]
    if kind == "unit" and not found.std() > 0:
        raise ValueError(f"reward.scale=unit: all {len(found)} reference samples score {found.mean():g}. Train longer, or take mean.")
    gain = 1 / float(found.std()) if kind == "unit" else 1.0
    scale = Scale(gain, -gain * float(found.mean()))
    if hosts.is_first():
        Path(folder, SCALE).write_text(json.dumps(scale._asdict()))
        hosts.say(
            f"{len(found)} reference samples scored {found.mean():.4g} +- {found.std():.4g}: gain {scale.gain:.4g}, bias {scale.bias:.4g}."
        )
    return scale


Ranking = Callable[[Sequence[Any]], Sequence[float]]


def ranking(folder: str, mesh: Any) -> Ranking:
    """What `jaxllm sample --rank-by DIR` takes the best by: the scores of samples (with `prompt` and `text`) under a reward model.

    One that cannot be scored is the worst.
    """
    model = open_reward(folder, mesh)

    def scores(samples: Sequence[Any]) -> list[float]:
        found = model.scores([(sample.prompt, sample.text) for sample in samples])
        return [score if math.isfinite(score) else -math.inf for score in found]

    return scores
