"""What lm-evaluation-harness asks of a model, answered by jaxllm: likelihoods of pairs and of documents, and greedy or drawn text.

It knows the harness's conventions and nothing of its code; `stages/harness.py` joins the two.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxllm.data.tokenizer_kinds import Tokenizer
from jaxllm.evaluation import prompts
from jaxllm.evaluation.likelihood import Likelihoods
from jaxllm.models.model import Model
from jaxllm.parallel import hosts
from jaxllm.sampling.logits import Sampling
from jaxllm.sampling.text import Texts

MAX_NEW_TOKENS = 256  # lm-eval's default
LONGEST = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # its names of one thing, the first given counts
FILTERS = ("top_k", "top_p", "min_p", "repetition_penalty")
KNOWN = ("until", "do_sample", "temperature", *LONGEST, *FILTERS, "num_beams")


class Writing(NamedTuple):
    """How a text is to be written."""

    stop: tuple[str, ...]
    max_new_tokens: int
    sampling: Sampling
    num_beams: int


def writing(options: Mapping[str, Any]) -> Writing:
    """A task's `generation_kwargs`, read as lm-eval reads them: greedy unless a temperature says otherwise.

    Raises:
      ValueError: an option that is not known here.
    """
    for name in options:
        if name not in KNOWN:
            raise ValueError(f"generation_kwargs: {name!r} is not known here. Choose from: {', '.join(KNOWN)}.")
    until = options.get("until") or ()
    until = (until,) if isinstance(until, str) else until
    longest = next((options[name] for name in LONGEST if options.get(name) is not None), MAX_NEW_TOKENS)
    temperature = 0.0 if options.get("do_sample") is False else float(options.get("temperature") or 0.0)
    filters = {name: options[name] for name in FILTERS if options.get(name) is not None}
    sampling = Sampling(temperature=temperature, **filters)
    return Writing(tuple(word for word in until if word), int(longest), sampling, int(options.get("num_beams") or 1))


class Answers:
    """A model with its parameters that answers the three kinds of request, each list in its order."""

    def __init__(
        self,
        model: Model,
        params: Any,
        tokenizer: Tokenizer,
        mesh: jax.sharding.Mesh,
        *,
        length: int | None = None,
        rows: int = 32,
        slots: int = 8,
        seed: int = 0,
    ):
        """Compiles nothing yet.

        Args:
          model: a decoder.
          params: its own.
          tokenizer: its own.
          mesh: where the parameters lie; rows are dealt out over it.
          length: the most tokens it reads; None: its context.
          rows: continuations that are scored together.
          slots: texts that are written together.
          seed: of what is drawn.
        """
        ways = mesh.size
        self.model, self.params, self.tokenizer, self.mesh, self.seed = model, params, tokenizer, mesh, seed
        self.length = min(length or model.config.max_positions, model.config.max_positions)
        self.slots = -(-slots // ways) * ways
        with jax.set_mesh(mesh):
            self.likelihoods = Likelihoods(model, length=self.length, rows=-(-rows // ways) * ways)
        self._texts: dict[Writing, Texts] = {}  # each with its compiled programs

    def loglikelihood(self, texts: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether every token is the likeliest) of the second of each pair after the first; see `prompts.pair`.

        A pair that is too long loses tokens at its beginning, as in lm-eval; how many pairs did is said.

        Raises:
          ValueError: an empty continuation, or one that is longer than what the model reads.
        """
        pairs = [prompts.pair(self.tokenizer, before, after) for before, after in texts]
        room = [max(1, self.length + 1 - len(after)) for _, after in pairs]
        self._say_cut(sum(len(before) > most for (before, _), most in zip(pairs, room, strict=True)), len(pairs))
        found = self._score([(before[-most:], after) for (before, after), most in zip(pairs, room, strict=True)])
        return [(like.log_prob, like.greedy) for like in found]

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """The log-likelihood in nats of whole documents, each token predicted once; see `prompts.windows`."""
        cut = [prompts.windows(self.tokenizer, text, self.length) for text in texts]
        found = iter(self._score([pair for pairs in cut for pair in pairs]))
        return [sum(next(found).log_prob for _ in pairs) for pairs in cut]

    def written(self, asked: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """What the model writes after each text, without the stop string that ended it.

        A prompt that leaves no room loses tokens at its beginning, as in lm-eval; how many did is said.

        Args:
          asked: (prompt, generation_kwargs); a draw depends on the seed and on the place in this list.

        Raises:
          ValueError: an option that cannot be used.
        """
        groups: dict[str, list[int]] = {}
        for place, (_, options) in enumerate(asked):
            groups.setdefault(json.dumps(options, sort_keys=True), []).append(place)
        found: dict[int, str] = {}
        for said, places in groups.items():
            texts = self._writer(writing(json.loads(said)))
            before = texts.cut
            with jax.set_mesh(self.mesh):
                samples = texts.samples(self.params, [asked[i][0] for i in places], seed=self.seed, numbers=places)
                found |= {place: sample.text for place, sample in zip(places, samples, strict=True)}
            self._say_cut(texts.cut - before, len(places))
        return [found[place] for place in range(len(asked))]

    def _score(self, pairs: list[prompts.Pair]):
        with jax.set_mesh(self.mesh):
            return self.likelihoods(self.params, pairs)

    def _writer(self, how: Writing) -> Texts:
        if how not in self._texts:
            self._texts[how] = Texts(
                self.model,
                self.tokenizer,
                max_new_tokens=how.max_new_tokens,
                sampling=how.sampling,
                stop=how.stop,
                length=self.length,
                long_prompt="window",
                slots=self.slots,
                num_beams=how.num_beams,
            )
        return self._texts[how]

    def _say_cut(self, count: int, total: int) -> None:
        if count:
            hosts.say(f"{count:,} of {total:,} texts do not fit the model's {self.length:,} tokens and lost their beginnings.")
