"""Tools that a model may call while it writes: a calculator, Python in the sandbox, search in a corpus, a function of the user's."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxllm.losses.terms import check_choice
from jaxllm.parallel import hosts
from jaxllm.rollouts.bm25 import BM25
from jaxllm.rollouts.calculator import CannotSay, calculate
from jaxllm.rollouts.components import load_function
from jaxllm.rollouts.options import check_options, table_of
from jaxllm.tasks.sandbox import Limits, Program, Sandbox, Verdict

MODEL = "model"  # who speaks, beside tools
DONE, ERROR, TIMEOUT = "done", "error", "timed out"  # what happened to a call
TRIES = 3  # of a program, where the jail itself breaks


class Result(NamedTuple):
    """What a tool gave: the text that the model reads, and whether it is an answer (`DONE`), or says what went wrong."""

    text: str
    happened: str = DONE


Run = Callable[[Sequence[str]], Sequence[Result]]  # arguments of several calls -> their results; always the same for the same


class Tool(NamedTuple):
    """Something that answers.

    Attributes:
      name: what the model calls it.
      about: a sentence for chat templates.
      parameter: what its one argument, a text, is called there.
      run: the tool itself.
      open, close: the texts between which a call stands, where there are no chat turns.
    """

    name: str
    about: str
    parameter: str
    run: Run
    open: str
    close: str

    def schema(self) -> dict[str, Any]:
        """As chat templates list it."""
        argument = {"type": "object", "properties": {self.parameter: {"type": "string"}}, "required": [self.parameter]}
        return {"type": "function", "function": {"name": self.name, "description": self.about, "parameters": argument}}


class Call(NamedTuple):
    """A call that a model wrote.

    Attributes:
      tool: its name.
      argument: what is asked of it.
      problem: why there is nothing to ask; "": there is.
    """

    tool: str
    argument: str = ""
    problem: str = ""


def answered(tools: Mapping[str, Tool], calls: Sequence[Call]) -> list[Result]:
    """The results of calls, those of one tool asked together.

    The first process asks and tells the others: every process has to write the same row.
    """
    said = None
    if hosts.is_first():
        found: list[Result | None] = [Result(f"error: {call.problem}", ERROR) if call.problem else None for call in calls]
        for name, tool in tools.items():
            own = [i for i, call in enumerate(calls) if call.tool == name and not call.problem]
            for i, result in zip(own, tool.run([calls[i].argument for i in own]) if own else (), strict=True):
                found[i] = result
        said = [(encodable(result.text), result.happened) for result in found if result is not None]
        assert len(said) == len(calls), (calls, list(tools))
    return [Result(*one) for one in hosts.tell(hosts.fresh("tools"), said)]


def encodable(text: str) -> str:
    """The text, "?" for half surrogate pairs, which are no characters."""
    return text.encode("utf-8", "replace").decode()


def calculator() -> tuple[str, str, Run]:
    """Works out arithmetic exactly; see `calculator.calculate`."""

    def run(expressions: Sequence[str]) -> list[Result]:
        return [_tried(calculate, expression, CannotSay) for expression in expressions]

    return "Works out an arithmetic expression exactly, as in 3 * (17 - 5).", "expression", run


def _tried(work: Callable[[str], Any], argument: str, kind: type[Exception]) -> Result:
    try:
        return Result(str(work(argument)))
    except kind as error:
        return Result(f"error: {error}", ERROR)


PROGRAM = """
def run():
    import io, random, sys
    random.seed(0)
    sys.stdout = printed = io.StringIO()
    problem = ""
    try:
        exec(compile({code!r}, "program", "exec"), {{"__name__": "__main__"}})
    except BaseException as error:
        problem = f"{{type(error).__name__}}: {{error}}"
    return printed.getvalue()[:8000], problem[:1000]
"""
TESTS = "import json\nprinted, problem = run()\nsaid = json.dumps([str(printed)[:8000], str(problem)[:1000]])"  # never cut off as JSON


def python(seconds: float = 5.0) -> tuple[str, str, Run]:
    """Runs a program in the sandbox, which gives back what it prints.

    The same program prints the same: `random` is seeded, texts hash alike. A program that asks for the clock, the system's randomness or
    addresses in memory does not, nor one that ends just at its limit; a rollout that is made again may then differ.

    Args:
      seconds: of processor time; it has twice that on the clock.
    """
    if not seconds > 0:
        raise ValueError(f"rollout.tools: seconds={seconds} of python lets nothing run. Give a number above 0.")
    sandbox = Sandbox(Limits(seconds=2 * seconds, cpu_seconds=max(1, round(seconds))))

    def run(programs: Sequence[str]) -> list[Result]:
        jobs = [Program(PROGRAM.format(code=code), TESTS, {"run": "run"}) for code in programs]
        return [_printed(_judged(sandbox, job, verdict)) for job, verdict in zip(jobs, sandbox.run_all(jobs), strict=True)]

    return "Runs a Python program without a network and gives back what it prints.", "code", run


def _judged(sandbox: Sandbox, program: Program, verdict: Verdict) -> Verdict:
    """The verdict of a program that was run; where the jail broke, of another try.

    Raises:
      RuntimeError: it breaks every time. The run stops, and goes on from its checkpoint: no row learns from a broken jail.
    """
    for _ in range(TRIES - 1):
        if verdict.happened != "not judged":
            return verdict
        verdict = sandbox.run(program)
    if verdict.happened == "not judged":
        raise RuntimeError(f"The sandbox of the tool python broke {TRIES} times: {verdict.stderr or 'it does not say why'}")
    return verdict


def _printed(verdict: Verdict) -> Result:
    if verdict.happened == "timed out":
        return Result("error: timed out", TIMEOUT)
    if not verdict.passed:  # it went round its own guard: out of memory, crashed, ended
        return Result(f"error: {verdict.happened if verdict.happened != 'failed' else 'the program broke off'}", ERROR)
    printed, problem = json.loads(verdict.said)
    return Result(f"{printed}error: {problem}", ERROR) if problem else Result(printed.rstrip("\n"))


def search(corpus: Sequence[str], results: int = 3, characters: int = 300, k1: float = 1.2, b: float = 0.75) -> tuple[str, str, Run]:
    """Finds documents of a corpus by BM25.

    Args:
      corpus: its documents.
      results: at most so many, the best first.
      characters: of each, from its beginning.
      k1, b: see `bm25.BM25`.
    """
    if results < 1 or characters < 1:
        raise ValueError(f"rollout.tools: results={results} and characters={characters} of search show nothing. Give 1 or more.")
    index = BM25(corpus, k1, b)

    def one(query: str) -> Result:
        found = [" ".join(corpus[hit.number].split())[:characters] for hit in index.search(query, results)]
        return Result("\n".join(f"{i}. {text}" for i, text in enumerate(found, 1)) or "nothing found")

    return "Finds texts by words.", "query", lambda queries: [one(query) for query in queries]


def function(path: str, about: str = "", parameter: str = "argument") -> tuple[str, str, Run]:
    """A Python function by `module:name` or `FILE.py:name`: text -> text; what it raises is told to the model. It must be a pure one."""
    called = load_function(path)
    return about, parameter, lambda arguments: [_tried(called, text, Exception) for text in arguments]


KINDS: dict[str, Callable[..., tuple[str, str, Run]]] = {
    "calculator": calculator,
    "python": python,
    "search": search,
    "function": function,
}


class Named(NamedTuple):
    """A tool as a config names it: its kind, the options of the kind, and what `Tool` says of it."""

    kind: str
    options: dict[str, Any]
    name: str
    open: str
    close: str


def named(entries: Sequence[Any], searches: bool) -> list[Named]:
    """The tools of a config, of which nothing is made yet.

    Args:
      entries: each a kind, or {kind, name, open, close} and the options of the kind.
      searches: whether there is a corpus.

    Raises:
      ValueError: an unknown kind or option, two tools of one name or with one beginning, search without a corpus or a corpus without it.
    """
    found: list[Named] = []
    for entry in entries:
        options = table_of(entry, "rollout.tools")
        kind = options.pop("kind")
        check_choice("kind of tool", kind, KINDS)
        name = str(options.pop("name", kind))
        texts = str(options.pop("open", f"<{name}>")), str(options.pop("close", f"</{name}>"))
        check_options(f"Tool {name!r} of kind {kind!r}", KINDS[kind], options, ("name", "open", "close"), given=("corpus",))
        if kind == "search" and not searches:
            raise ValueError("rollout.tools has search, and rollout.corpus is empty. Give its files: rollout.corpus=[docs.jsonl].")
        if name in (MODEL, *(tool.name for tool in found)) or not all(texts) or texts[0] in {tool.open for tool in found}:
            raise ValueError(
                f"rollout.tools: {name!r} with calls between {texts[0]!r} and {texts[1]!r}. Give every tool its own name and texts."
            )
        found.append(Named(kind, options, name, *texts))
    if searches and not any(tool.kind == "search" for tool in found):
        raise ValueError("rollout.corpus is read by the tool search, which rollout.tools has not. Add it, or leave the corpus out.")
    return found


def make(entries: Sequence[Any], corpus: Sequence[str] | None = None) -> dict[str, Tool]:
    """Tools by name.

    Args:
      entries: see `named`.
      corpus: what `search` looks in.

    Raises:
      ValueError: see `named`; or an option that a kind cannot use.
    """

    def made(tool: Named) -> Tool:
        options = {**tool.options, "corpus": corpus} if tool.kind == "search" else tool.options
        return Tool(tool.name, *KINDS[tool.kind](**options), tool.open, tool.close)

    return {tool.name: made(tool) for tool in named(entries, corpus is not None)}
