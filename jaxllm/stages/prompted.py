"""The prompts of policy optimisation: rows of a task or of a file, as tokens, with what rewards may read of them."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath
from ml_collections import ConfigDict

from jaxllm.data.chat import EOS, Dialogue, Message, Template, WrongDialogue, encode_prompt
from jaxllm.data.tokenizer_kinds import Tokenizer
from jaxllm.data.tokenizers import make_tokenizer
from jaxllm.evaluation.prompts import Split, split
from jaxllm.parallel import hosts
from jaxllm.rollouts.protocol import Talk
from jaxllm.rollouts.rollout import Prompt
from jaxllm.sampling.endings import Endings
from jaxllm.sampling.text import encode_prompt as encode_text
from jaxllm.sampling.text import stop_ids
from jaxllm.stages import inputs, methods, spoken, wanted, workdir
from jaxllm.stages.recipe import EvalRows, Soft
from jaxllm.stages.tools import reserved, talk_of, tool_lines, tools_of
from jaxllm.tasks.catalog import open_task
from jaxllm.tasks.rows import read_rows
from jaxllm.tasks.task import Generation, Row

MAX_NEW_TOKENS = 64  # of a completion, where no task says its own
LONG_PROMPT = ("refuse", "skip")


class Asked(NamedTuple):
    """What is asked.

    Attributes:
      name: in logs.
      rows: of the file or the task.
      text: of a row's prompt.
      task: None: rows of a file.
      stop: texts that end a completion.
      max_new_tokens: of a completion.
    """

    name: str
    rows: Sequence[Row]
    text: Callable[[Row], str]
    task: Generation | None
    stop: tuple[str, ...]
    max_new_tokens: int


class PromptRows:
    """What a reader is to other stages: it has no rows of its own, as samples are made while training goes on."""

    def __init__(self, config: ConfigDict, num_prompts: int):
        section = config.rollout
        self.batch_size, self._num_prompts = config.batch_size, num_prompts
        self._updates = methods.updates(config)
        self._drawn = section.prompts

    def epochs(self, step: int) -> dict[str, float]:
        """How often each prompt has been asked, those that came in place of others (`rollout.resample`) aside."""
        return {"prompts": -(-step // self._updates) * self._drawn / self._num_prompts}


class PromptData:
    """Prompts as the data of a run, and the text that is trained on beside them. See `recipe.Data`."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompts: Sequence[Prompt],
        asked: Asked,
        endings: Endings,
        text: inputs.TextData | None,
        talk: Talk | None = None,
    ):
        self.tokenizer, self.prompts, self.asked, self.endings, self.text, self.talk = tokenizer, prompts, asked, endings, text, talk
        self.content = self.train_content = content_of(prompts, text)

    def check(self, config: ConfigDict, folder: str, whole: Any = None) -> None:
        if (epath.Path(folder) / workdir.NAME).exists() and workdir.read(folder)["train_data"] != self.train_content:
            raise ValueError(
                f"{folder} was trained on other prompts, or with another tokenizer. Bring the files of rollout.* back, or choose another"
                " --workdir."
            )

    def reader(self, config: ConfigDict, soft: Soft | None = None) -> Any:
        return PromptRows(config, len(self.prompts))

    def eval_names(self) -> list[str]:
        return [] if self.text is None else self.text.eval_names()

    def eval_reader(self, config: ConfigDict, name: str, soft: Soft | None = None) -> EvalRows:
        assert self.text is not None
        return self.text.eval_reader(config, name)

    def tasks(self) -> list[str]:
        return []

    def steps(self, config: ConfigDict, soft: Soft | None = None) -> int | None:
        if config.epochs:
            raise ValueError(f"epochs={config.epochs} counts how often dialogues are gone through. Give steps.")
        return None

    def baselines(self) -> dict[str, float]:
        return {} if self.text is None else self.text.baselines()

    def shown(self, config: ConfigDict, step: int, row: int) -> tuple[Mapping[str, Any], Sequence[Sequence[str]] | None]:
        raise ValueError("jaxllm data shows rows that are there before training; those of rl are sampled. See samples.jsonl of the run.")

    def record(self) -> dict[str, Any]:
        return {} if self.text is None else self.text.record()

    def lines(self, config: ConfigDict, soft: Soft | None = None) -> list[str]:
        section, longest = config.rollout, max(len(prompt.tokens) for prompt in self.prompts)
        return [
            f"prompts: {len(self.prompts):,} of {self.asked.name}, the longest {longest} tokens; completions of at most"
            f" {self.asked.max_new_tokens}",
            *tool_lines(config, self.talk),
            f"rollouts: {section.prompts} prompts x {section.samples_per_prompt} samples, {methods.updates(config)} update(s) each",
        ]


def content_of(prompts: Sequence[Prompt], text: inputs.TextData | None) -> str:
    """Changes when what is trained on would: the tokens of prompts, the rows behind them, the text beside them."""
    digest = hashlib.blake2b(digest_size=16)
    for prompt in prompts:
        digest.update(prompt.tokens.tobytes() + json.dumps(dict(prompt.row), sort_keys=True, default=str).encode() + b"\0")
    return digest.hexdigest() if text is None else f"{digest.hexdigest()} {text.train_content}"


def open_prompts(config: ConfigDict) -> PromptData:
    """The prompts of a config, encoded, without those that the tasks of its evaluation ask.

    Raises:
      ValueError: no prompts, or several kinds; a task that is not answered in text; prompts that leave no room for a completion.
    """
    section = config.rollout
    asked = asked_of(config)
    text = inputs.data(config) if config.rl.ptx_rows else None
    if config.data.train and text is None:
        hosts.say("data.train is not read: rl.ptx_rows is 0, so no text is trained on beside the samples.")
    tokenizer = make_tokenizer(config.data.tokenizer or {"kind": "bytes"}) if text is None else text.tokenizer
    template = spoken.of_config(config.chat.template, config.init_from).template(tokenizer) if section.chat else None
    held = {one.task.prompt(row) for one in _evaluated(config) for row in one.rows.asked}
    rows = [row for row in asked.rows if asked.text(row) not in held]
    if len(rows) < len(asked.rows):
        hosts.say(f"{asked.name}: {len(asked.rows) - len(rows):,} of {len(asked.rows):,} prompts are those of tasks.names, and left out.")
    tools, endings = tools_of(config), endings_of(asked, tokenizer, template)
    talk = talk_of(config, tools, endings, template)
    schemas = tuple(tool.schema() for tool in tools.values())
    prompts = [encoded(asked.text(row), row, tokenizer, template, schemas) for row in rows]
    return PromptData(tokenizer, fitting(config, prompts, asked), asked, endings, text, talk)


def _evaluated(config: ConfigDict) -> list[wanted.Asked]:
    names = list(config.tasks.names)
    return [one for one in wanted.wanted(config, names) if isinstance(one.task, Generation)] if names else []


def asked_of(config: ConfigDict) -> Asked:
    """What `rollout.task` or `rollout.file` names."""
    section = config.rollout
    if bool(section.task) == bool(section.file):
        raise ValueError(
            f"rollout.task={section.task!r} and rollout.file={section.file!r}: give one of them, the name of a task (jaxllm tasks lists"
            " them) or a file of rows {prompt, answer}."
        )
    if wrong := [text for text in section.stop or () if not isinstance(text, str) or not text]:
        raise ValueError(f"rollout.stop has {wrong[0]!r}. Give texts that end a completion; an empty one would end it at once.")
    if section.file:
        return _of_file(config)
    name, _, path = section.task.partition("=")
    task, rows = open_task(name, [path] if path else [], seed=config.seed, count=section.limit, part="train")
    if not isinstance(task, Generation):
        raise ValueError(f"rollout.task={name!r} is not answered in words of the model's own. Choose one whose kind is generation.")
    task = dataclasses.replace(task, **{task.SHOTS: section.shots})
    parts = split(task, rows) if section.shots else Split([], rows)
    shown, stop = task.shown(parts.shown), task.stop if section.stop is None else tuple(section.stop)
    longest = section.max_new_tokens or task.max_new_tokens
    return Asked(name, parts.asked[: section.limit], lambda row: shown + task.prompt(row), task, stop, longest)


def _of_file(config: ConfigDict) -> Asked:
    section, rows = config.rollout, list[Row]()
    if section.shots:
        raise ValueError(f"rollout.shots={section.shots} is of tasks. Write the examples into the prompts of {section.file}.")
    for number, row in enumerate(read_rows(section.file), 1):
        if section.chat and isinstance(row.get("messages"), list):
            if not row["messages"] or not all(map(_is_turn, row["messages"])):
                raise ValueError(f"{section.file}, row {number}: 'messages' is not a list of turns {{role, content}}, both texts.")
            rows.append({"prompt": "\n".join(message["content"] for message in row["messages"]), **row})
            continue
        if not isinstance(row.get("prompt"), str):
            raise ValueError(
                f"{section.file}, row {number} has no text under 'prompt' (it has {', '.join(row)}). Give rows {{prompt, answer}}."
            )
        rows.append(row)
    if not rows:
        raise ValueError(f"{section.file} has no rows. Give rows {{prompt, answer}}.")
    longest, stop = section.max_new_tokens or MAX_NEW_TOKENS, tuple(section.stop or ())
    return Asked(section.file, rows[: section.limit], lambda row: row["prompt"], None, stop, longest)


def _is_turn(message: Any) -> bool:
    return isinstance(message, Mapping) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def encoded(text: str, row: Row, tokenizer: Tokenizer, template: Template | None, tools: Sequence[Mapping[str, Any]] = ()) -> Prompt:
    """A prompt as the model gets it: a text's beginning, or a user's turn, in which the template lists the schemas of tools."""
    if template is None:
        return Prompt(text, encode_text(tokenizer, text), row)
    dialogue = Dialogue(turns_of(row, text), tuple(tools))
    try:
        return Prompt(text, encode_prompt(dialogue, template, tokenizer), row)
    except WrongDialogue as error:
        raise ValueError(f"The prompt {text[:60]!r} is a dialogue that {error.problem} with chat.template={template.name!r}.") from None


def turns_of(row: Row, text: str) -> tuple[Message, ...]:
    """What is asked in a chat: the row's "messages", or its text as a user's turn."""
    said = row.get("messages") or [{"role": "user", "content": text}]
    return tuple(Message(message["role"], message["content"]) for message in said)


def endings_of(asked: Asked, tokenizer: Tokenizer, template: Template | None) -> Endings:
    """What ends a completion: the tokenizer's own end tokens, the template's, and the texts of the task."""
    stop, ids = asked.stop, stop_ids(tokenizer, [])
    if template is not None and template.end != EOS:
        end = tokenizer.token_id(template.end)
        stop, ids = (stop, (*ids, end)) if end is not None else ((*stop, template.end), ids)
    return Endings(tokenizer, stop, tuple(dict.fromkeys(ids)))


def fitting(config: ConfigDict, prompts: Sequence[Prompt], asked: Asked) -> list[Prompt]:
    """The prompts beside which a completion fits.

    Raises:
      ValueError: one does not, and `rollout.long_prompt` is "refuse"; or none does.
    """
    said, room = config.rollout.long_prompt, config.sequence_length - asked.max_new_tokens - reserved(config)
    if said not in LONG_PROMPT:
        raise ValueError(f"Unknown rollout.long_prompt={said!r}. Choose one of: {', '.join(LONG_PROMPT)}.")
    kept = [prompt for prompt in prompts if len(prompt.tokens) <= room]
    if len(kept) == len(prompts) and kept:
        return kept
    longest = max((len(prompt.tokens) for prompt in prompts), default=0)
    problem = f"{len(prompts) - len(kept)} of {len(prompts)} prompts of {asked.name} leave no room"
    if said == "refuse" or not kept:
        needed = asked.max_new_tokens + reserved(config)
        results = f" and {reserved(config)} of tools' results" if reserved(config) else ""
        raise ValueError(
            f"{problem} for a completion of {asked.max_new_tokens} tokens{results} in sequence_length={config.sequence_length}: the longest"
            f" has {longest}. Set sequence_length to at least {longest + needed}, a smaller rollout.max_new_tokens, or"
            " rollout.long_prompt=skip."
        )
    hosts.say(f"{problem} and are left out.")
    return kept
