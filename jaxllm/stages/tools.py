"""The tools of a config: what completions of policy optimisation may call, what they look in, and the room that results take."""

import functools
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxllm.data.chat import Template, WrongDialogue
from jaxllm.data.formats import cut, read_piece
from jaxllm.data.sources import list_files, make_sources
from jaxllm.evaluation.suite import How, Result, Suite
from jaxllm.parallel import hosts
from jaxllm.rollouts.protocol import Between, Talk, Turns
from jaxllm.rollouts.tools import Named, Tool, make, named
from jaxllm.rollouts.turns import TurnTexts
from jaxllm.sampling.endings import Endings
from jaxllm.sampling.text import Texts, stop_ids
from jaxllm.tasks.task import Generation

PIECE = 1 << 26  # bytes of a file that are read at a time


def tools_of(config: ConfigDict) -> dict[str, Tool]:
    """The tools by name; none: {}.

    Raises:
      ValueError: see `check` and `tools.make`; or a corpus that is not there.
    """
    check(config)
    section = config.rollout
    return make(section.tools, documents(tuple(section.corpus)) if section.corpus else None)


def named_in(config: ConfigDict) -> list[Named]:
    """The tools of a config, of which nothing is made yet (ValueError: see `rollouts.tools.named`)."""
    return named(config.rollout.tools, bool(config.rollout.corpus))


def check(config: ConfigDict) -> None:
    """Refuses tools that cannot be made, before anything is opened.

    Raises:
      ValueError: see `tools.named`; or turns that leave no call, or a result that has no texts around it.
    """
    section = config.rollout
    if section.tools and section.max_turns < 2:
        raise ValueError(f"rollout.max_turns={section.max_turns} leaves no turn behind a call. Give 2 or more, or no rollout.tools.")
    if len(section.result) != 2 or not all(isinstance(text, str) and text for text in section.result):
        raise ValueError(f"rollout.result={list(section.result)}: give the two texts around a result, ['<result>', '</result>'] say.")
    if wrong := [path for path in section.corpus if not isinstance(path, str)]:
        raise ValueError(f"rollout.corpus has {wrong[0]!r}, which is no path. Give files or folders: [docs.jsonl].")
    named_in(config)


@functools.lru_cache(maxsize=1)
def documents(corpus: tuple[str, ...]) -> list[str]:
    """The documents of a corpus in one order: each line of a .jsonl, each file of text.

    Raises:
      ValueError: nothing is there, or no document in it.
    """
    found = list(_documents(corpus))
    if not found:
        raise ValueError(f"rollout.corpus={list(corpus)} has no document. Give files: .jsonl with a text in each line, or .txt.")
    return found


def _documents(corpus: tuple[str, ...]) -> Iterator[str]:
    for source in make_sources(corpus, "rollout.corpus"):
        bad = 0
        for file in list_files(source)[0]:
            for piece in cut(0, file, PIECE):
                for record in read_piece(piece, source.field):
                    if record.text is None:
                        bad += 1
                    elif record.text.strip():
                        yield record.text
        if bad:
            hosts.say(f"rollout.corpus: {bad:,} record(s) of {source.path} cannot be read, and are not found.")


def talk_of(config: ConfigDict, tools: Mapping[str, Tool], endings: Endings, template: Template | None) -> Talk | None:
    """How they are called; None: there are none.

    Raises:
      ValueError: a template that has no form for tools, or a result that has no room.
    """
    section = config.rollout
    if not tools:
        return None
    if template is None:
        return Between(tools, endings, (section.result[0], section.result[1]), section.max_tool_tokens)
    try:
        return Turns(tools, endings, template, section.max_tool_tokens)
    except WrongDialogue as error:
        raise ValueError(f"rollout.tools with chat.template={template.name!r}: a dialogue {error.problem}. Choose chatml, say.") from None


def reserved(config: ConfigDict) -> int:
    """Tokens of a row that are kept for results."""
    section = config.rollout
    return (section.max_turns - 1) * section.max_tool_tokens if section.tools else 0


def content(config: ConfigDict) -> list[str]:
    """Changes when what tools say would: the documents of the corpus."""
    if not config.rollout.corpus:
        return []
    digest = hashlib.blake2b(digest_size=16)
    for text in documents(tuple(config.rollout.corpus)):
        digest.update(text.encode("utf-8", "replace") + b"\0")
    return [digest.hexdigest()]


def tool_lines(config: ConfigDict, talk: Talk | None) -> list[str]:
    """What is said of them at the start."""
    if talk is None:
        return []
    section = config.rollout
    return [
        f"tools: {', '.join(talk.tools)}; at most {section.max_turns} turns, and {section.max_tool_tokens} tokens of results behind each"
    ]


class ToolSuite(Suite):
    """A `Suite` whose answers may call the tools of a config, as its rollouts do.

    Args:
      config: whose `rollout.*` says which, and how they are called.
      what, sizes: see `Suite`.
    """

    def __init__(self, config: ConfigDict, *what: Any, **sizes: Any):
        super().__init__(*what, **sizes)
        self._config, self._tools = config, tools_of(config)

    def run(self, *what: Any, who: str = "", **how: Any) -> Result:
        """See `Suite.run`; records tell answers with these tools from others."""
        section = {name: self._config.rollout[name] for name in ("tools", "corpus", "result", "max_turns", "max_tool_tokens")}
        return super().run(*what, who=f"{who} {section} {content(self._config)}", **how)

    def texts(self, task: Generation, how: How) -> Texts:
        """See `Suite.texts`."""
        endings = Endings(self.tokenizer, task.stop, stop_ids(self.tokenizer, []))
        talk = talk_of(self._config, self._tools, endings, None)
        assert talk is not None
        return TurnTexts(self.model, self.tokenizer, talk=talk, max_turns=self._config.rollout.max_turns, **self.written(task, how))
