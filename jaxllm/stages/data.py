"""`jaxllm data show`: any training row as coloured tokens, on the terminal and as a page: what the model really trains on."""

import html
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.text import Text

from jaxllm.data.tokenizer_kinds import Tokenizer
from jaxllm.stages import origin, page
from jaxllm.stages.config import load
from jaxllm.stages.recipes import recipe_of

Row = Mapping[str, np.ndarray]  # of `pipeline.FIELDS`, [T] each; and turns [T], where messages are known
Roles = Sequence[Sequence[str]]  # of each segment of a row, from segment 1 on: the roles of its messages
COLOURS = {"system": "magenta", "user": "blue", "assistant": "green", "tool": "yellow"}
OTHER, NONE = "cyan", "white"  # other participants; what is of nobody
NEW_LINE = "⏎"


class Token(NamedTuple):
    """A token of a row, and everything that is known of it."""

    text: str
    id: int
    weight: float | None  # as a target; None: it is no target of this row
    segment: int
    position: int | None
    role: str  # "": unknown
    turn: int
    predicted: bool = False  # a target that is not among the row's inputs


class Names:
    """What each id says, after other text (some tokenizers drop a space from the beginning of a text)."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer, self.known = tokenizer, dict[int, str]()
        self.anchor = tokenizer.encode("a")[-1:].tolist()
        self.head = tokenizer.decode(self.anchor)

    def __getitem__(self, id: int) -> str:
        if id not in self.known:
            text = self.tokenizer.decode([*self.anchor, id])
            said = text[len(self.head) :] if text.startswith(self.head) else self.tokenizer.decode([id])
            self.known[id] = said or self.tokenizer.token_name(id) or f"<{id}>"
        return self.known[id]


def tokens_of(row: Row, tokenizer: Tokenizer, roles: Roles | None = None) -> list[Token]:
    """The tokens of a row, in order, without padding; a target that the next input is not follows its own input.

    Args:
      row: arrays [T]: tokens, targets, weights, segments, positions; and turns, which message of its segment a token belongs to (-1: none).
      tokenizer: of the row.
      roles: of the messages of each segment.
    """
    names, found = Names(tokenizer), list[Token]()
    turns = row.get("turns", np.full(len(row["tokens"]), -1))
    weight: float | None = None  # of the token that comes, as a target
    for t, (id, segment) in enumerate(zip(row["tokens"].tolist(), row["segments"].tolist(), strict=True)):
        if segment == 0:
            weight = None
            continue
        turn = int(turns[t])
        said = roles[segment - 1] if roles is not None and segment <= len(roles) else ()
        role = said[turn] if 0 <= turn < len(said) else ""
        found.append(Token(names[id], id, weight, segment, int(row["positions"][t]), role, turn))
        last = t + 1 == len(row["tokens"])
        target, own = int(row["targets"][t]), float(row["weights"][t])
        follows = not last and int(row["tokens"][t + 1]) == target and int(row["segments"][t + 1]) == segment
        if own and not follows:
            found.append(Token(names[target], target, own, segment, None, role, turn, predicted=True))
        weight = own if follows else None
    return found


def runs(tokens: Sequence[Token]) -> list[list[Token]]:
    """The tokens of each message, or of each segment where there are none."""
    found: list[list[Token]] = []
    for token in tokens:
        if not found or (found[-1][-1].segment, found[-1][-1].turn) != (token.segment, token.turn):
            found.append([])
        found[-1].append(token)
    return found


def heading(run: Sequence[Token]) -> str:
    """What a run is: `segment 2, assistant, positions 14 to 36, 22 of 23 tokens trained on`."""
    places = [token.position for token in run if token.position is not None]
    trained = [token.weight for token in run if token.weight]
    weights = sorted(set(trained))
    how = f", weights {', '.join(f'{w:g}' for w in weights)}" if weights not in ([], [1.0]) else ""
    who = run[0].role or (f"message {run[0].turn + 1}" if run[0].turn >= 0 else "")
    spoken = f"{who}, " if who else ""
    where = f"positions {places[0]} to {places[-1]}, " if places else ""
    return f"segment {run[0].segment}, {spoken}{where}{len(trained)} of {len(run)} tokens trained on{how}"


def colour(token: Token) -> str:
    """By who speaks."""
    return COLOURS.get(token.role, OTHER if token.role else NONE)


def show_row(row: Row, tokenizer: Tokenizer, roles: Roles | None = None) -> Text:
    """A row for the terminal: a heading for every message (or document), its tokens in the colour of who speaks.

    What is trained on stands in ⟦ ⟧ and is reversed; every second token is underlined, so that the edges show.

    Args:
      row, tokenizer, roles: see `tokens_of`.
    """
    shown, tokens = Text(), tokens_of(row, tokenizer, roles)
    for run in runs(tokens):
        shown.append(f"── {heading(run)}\n", style="dim")
        for i, token in enumerate(run):
            opens = bool(token.weight) and not (i and run[i - 1].weight)
            closes = bool(token.weight) and not (i + 1 < len(run) and run[i + 1].weight)
            style = f"{colour(token)}{' reverse' if token.weight else ''}{' underline' if i % 2 else ''}"
            text = token.text.replace("\n", f"{NEW_LINE}\n")
            shown.append("⟦" * opens).append(f"→{text}" if token.predicted else text, style=style).append("⟧" * closes)
        shown.append("\n")
    return shown.append(f"── {summary(row, tokens)}\n", style="dim")


def summary(row: Row, tokens: Sequence[Token]) -> str:
    """The whole row in a line."""
    trained, padding = sum(1 for token in tokens if token.weight), int(np.sum(row["segments"] == 0))
    return f"{len(row['tokens'])} places, {trained} trained on, {padding} padding, {len({t.segment for t in tokens})} segments"


PAGE_STYLE = """<style>
.row { font: 15px/1.9 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.row span { border-left: 1px solid var(--line); } .trained { background: color-mix(in srgb, currentColor 22%, transparent); }
.predicted { border: 1px dashed; } h2 { font-size: .9rem; font-weight: normal; opacity: .7; margin: 1.2rem 0 0; }
.magenta { color: #b0b; } .blue { color: #36f; } .green { color: #185; } .yellow { color: #b70; } .cyan { color: #099; }
</style>"""


def row_html(row: Row, tokenizer: Tokenizer, roles: Roles | None = None) -> str:
    """A row as the body of a page; each token says its id, role, weight, segment and position where the mouse points at it.

    Args:
      row, tokenizer, roles: see `tokens_of`.
    """
    tokens = tokens_of(row, tokenizer, roles)
    parts = [PAGE_STYLE, f"<p>{html.escape(summary(row, tokens))}; what is trained on is shaded.</p>"]
    for run in runs(tokens):
        parts.append(f'<h2>{html.escape(heading(run))}</h2><div class="row">{"".join(map(_span, run))}</div>')
    return "".join(parts)


def _span(token: Token) -> str:
    weight = "no target here" if token.weight is None else f"weight {token.weight:g}"
    place = "a target only" if token.position is None else f"position {token.position}"
    facts = [f"id {token.id}", token.role, weight, f"segment {token.segment}", place]
    kinds = [colour(token), *(["trained"] if token.weight else []), *(["predicted"] if token.predicted else [])]
    text = html.escape(token.text.replace("\n", f"{NEW_LINE}\n"))
    return f'<span class="{" ".join(kinds)}" title="{html.escape(" · ".join(filter(None, facts)), quote=True)}">{text}</span>'


def row_of(config: ConfigDict, number: int) -> tuple[Row, Tokenizer, Roles | None]:
    """A row of the training data of a config, counted from the first of step 0; the tokenizer; the roles of its messages.

    Raises:
      ValueError: a number below 0, or data that cannot be read.
    """
    if number < 0:
        raise ValueError(f"--row {number}: rows are counted from 0.")
    data = recipe_of(config).open_data(config)
    step, place = divmod(number, config.batch_size)
    rows, roles = data.shown(config, step, place)
    return {name: array[0] for name, array in rows.items() if array.ndim == 2}, data.tokenizer, roles


def main(args: Namespace, overrides: Sequence[str]) -> int:
    """`jaxllm data show --config F --row N [--html FILE]`"""
    config = load(args.config, overrides)
    if config.init_from:
        config = origin.complete(config)
    row, tokenizer, roles = row_of(config, args.row)
    Console(soft_wrap=True).print(show_row(row, tokenizer, roles), end="")
    if args.html:
        title = f"Row {args.row} of {args.config}"
        print(page.write(args.html, title, f"<h1>{html.escape(title)}</h1>{row_html(row, tokenizer, roles)}"))
    return 0
