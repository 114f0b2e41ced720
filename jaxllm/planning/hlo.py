"""A compiled program's text, read: its computations, how often each runs, and what travels between devices."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16, "c64": 64, "c128": 128}  # the others say it: f32, s8, u4, f8e4m3fn
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (.*)$")
_OPERATION = re.compile(r" ([a-z][a-z\-]*)\(")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|branch_computations|called_computations)=(\{[^}]*\}|%?[\w.\-]+)")


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
      name: without the percent sign.
      shape: the text of the result's type.
      operation: "fusion", "all-reduce", "while", ...
      rest: the line from the operands on.
    """

    name: str
    shape: str
    operation: str
    rest: str


class Collective(NamedTuple):
    """What one instruction sends between devices.

    Attributes:
      kind: one of `KINDS`.
      axes: the mesh axes that it goes along, in the mesh's order.
      num_bytes: of the whole array, on one device, once: what is gathered, or what is reduced.
      times: how often a step runs it.
      group: devices that take part together.
      operation: what in the model it belongs to, as JAX names it.
      source: "file:line" of jaxllm, or "".
    """

    kind: str
    axes: tuple[str, ...]
    num_bytes: int
    times: int
    group: int
    operation: str
    source: str

    @property
    def sent(self) -> float:
        """Bytes that one device sends in a step, by the best algorithm on a ring: (n-1)/n of the array, twice for an all-reduce."""
        share = 1.0 if self.kind == "collective-permute" else (self.group - 1) / self.group
        return (2 if self.kind == "all-reduce" else 1) * share * self.num_bytes * self.times


def shape_bytes(text: str) -> int:
    """Bytes of a type as HLO writes it, a tuple's added up, without the padding of layouts."""
    return sum(_bits(kind) * math.prod(map(int, dims.split(",") if dims else ())) // 8 for kind, dims in _SHAPE.findall(text))


def _elements(text: str) -> list[str]:
    """The elements of a tuple's type, as they are written."""
    found, depth, begin = list[str](), 0, 1
    for at, sign in enumerate(text := text.strip()):
        depth += (sign in "([{") - (sign in ")]}")
        if (sign == "," and depth == 1) or (at == len(text) - 1):
            found.append(text[begin:at].strip())
            begin = at + 1
    return found


def _bits(kind: str) -> int:
    found = re.match(r"[a-z]+(\d+)", kind)
    return BITS[kind] if kind in BITS else int(found[1]) if found else 0


class Module:
    """The text of an optimized HLO module.

    Args:
      text: what `compiled.as_text()` gives.
    """

    def __init__(self, text: str) -> None:
        self.computations: dict[str, list[Instruction]] = {}
        self.entry, current = "", None
        lines = text.splitlines()
        for line in lines:
            if head := _COMPUTATION.match(line):
                current = self.computations.setdefault(head[2], [])
                self.entry = head[2] if head[1] else self.entry
            elif current is not None and (found := _INSTRUCTION.match(line)):
                operation = _OPERATION.search(found[2])
                if operation:
                    start, end = operation.span()
                    current.append(Instruction(found[1], found[2][:start], operation[1], found[2][end - 1 :]))
        self._frames = _Frames(lines)
        self.times = self._count()

    def trip_count(self, loop: Instruction) -> int:
        """How often a while's body runs: what XLA says, else the constant that its condition compares with.

        Raises:
          ValueError: neither is there.
        """
        if known := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.rest):
            return int(known[1])
        condition = self.computations[_names(loop.rest, "condition")[0]]
        constants = {i.name: int(m[1]) for i in condition if i.operation == "constant" and (m := re.match(r"\((\d+)\)", i.rest))}
        compared = [i for i in condition if i.operation == "compare" and "direction=LT" in i.rest]
        limits = {constants[name] for i in compared for name in re.findall(r"%([\w.\-]+)", i.rest.split(")")[0]) if name in constants}
        if len(limits) != 1:
            raise ValueError(f"The loop {loop.name} does not say how often it runs.")
        return limits.pop()

    def body(self, loop: Instruction) -> str:
        """The name of what a while runs."""
        return _names(loop.rest, "body")[0]

    def _count(self) -> dict[str, int]:
        """How often a run of the program runs each computation; one that only a reduction applies counts as its instruction."""
        times = dict.fromkeys(self.computations, 0)

        def visit(name: str, count: int) -> None:
            times[name] += count
            for instruction in self.computations[name]:
                inner = count * (self.trip_count(instruction) if instruction.operation == "while" else 1)
                for called in _called(instruction.rest):
                    if called in times:
                        visit(called, inner)

        visit(self.entry, 1)
        return times

    def instructions(self) -> Iterator[tuple[int, str, Instruction]]:
        """(how often it runs, the computation's name, the instruction) for everything that runs."""
        for name, instructions in self.computations.items():
            if self.times[name]:
                for instruction in instructions:
                    yield self.times[name], name, instruction

    def source(self, instruction: Instruction) -> str:
        """ "file:line" of the innermost frame in jaxllm that made it, or ""."""
        found = re.search(r"stack_frame_id=(\d+)", instruction.rest)
        return self._frames.source(int(found[1])) if found else ""

    def collectives(self, mesh: Mapping[str, int]) -> list[Collective]:
        """Everything that travels between devices, started or fused or plain, most bytes first.

        Args:
          mesh: axis -> size, in the order of the devices.
        """
        found, seen = [], set()
        for times, computation, instruction in self.instructions():
            kind = instruction.operation.removesuffix("-start")
            operation = re.search(r'op_name="([^"]*)"', instruction.rest)
            if between := re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.rest):  # between slices, through the hosts
                if kind == "send":
                    size = shape_bytes(_elements(instruction.shape)[0])
                    name = between[1].lower().replace("_", "-")
                    found.append(Collective(name, ("replica",), size, times, mesh["replica"], operation[1] if operation else "", ""))
                continue
            if kind not in KINDS:
                continue
            if "chain_id=" in instruction.rest:  # a gather spread over several fusions stands in each of them
                channel = (kind, re.findall(r"channel_id=(\d+)", instruction.rest)[0])
                if channel in seen:
                    continue
                seen.add(channel)
            groups = _groups(instruction.rest, math.prod(mesh.values()))
            axes, group = _axes(groups, mesh), max(len(g) for g in groups)
            if group == 1:
                continue
            started = instruction.operation.endswith("-start") and kind in ("all-gather", "collective-permute")
            size = shape_bytes(_elements(instruction.shape)[1] if started else instruction.shape)  # started: (operands, results, ...)
            if kind == "reduce-scatter":
                size *= group
            if kind == "all-reduce" and "all-reduce-scatter" in computation:
                kind = "reduce-scatter"
            found.append(Collective(kind, axes, size, times, group, operation[1] if operation else "", self.source(instruction)))
        return sorted(found, key=lambda c: -c.sent)


class _Frames:
    """The tables at the head of the text: which line of which file made an instruction."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._tables: dict[str, dict[int, str]] = {}
        table = None
        for line in lines:
            if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
                table = self._tables.setdefault(line, {})
            elif line.startswith(("%", "ENTRY")):
                break
            elif table is not None and (row := re.match(r"(\d+) (.*)", line)):
                table[int(row[1])] = row[2]

    def source(self, frame: int) -> str:
        seen = set()
        while frame in self._tables.get("StackFrames", {}) and frame not in seen:
            seen.add(frame)
            location, parent = map(int, re.findall(r"=(\d+)", self._tables["StackFrames"][frame]))
            facts = dict(re.findall(r"(\w+)=(\d+)", self._tables["FileLocations"][location]))
            file = self._tables["FileNames"][int(facts["file_name_id"])].strip('"')
            if "/jaxllm/" in file:
                return f"jaxllm/{file.rpartition('/jaxllm/')[2]}:{facts['line']}"
            frame = parent
        return ""


def _called(rest: str) -> list[str]:
    return [name for group in _CALLED.findall(rest) for name in re.findall(r"[\w.\-]+", group)]


def _names(rest: str, key: str) -> list[str]:
    found = re.search(rf"\b{key}=%?([\w.\-]+)", rest)
    return [found[1]] if found else []


def _groups(rest: str, num_devices: int) -> list[list[int]]:
    """The groups of device numbers of a collective, whichever of HLO's four ways they are written in."""
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", rest):
        return [[int(a), int(b)] for a, b in re.findall(r"(\d+),(\d+)", pairs[1])]
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]*)\]\))? ?\{([^}]*)\}", rest):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        order = np.array([int(i) for i in named[2].split(",")]) if named[2] else np.arange(math.prod(sizes.values()))
        along = [list(sizes).index(name) for name in re.findall(r"'(\w+)'", named[3])]
        grid = np.moveaxis(order.reshape(tuple(sizes.values())), along, range(-len(along), 0))
        return grid.reshape(-1, math.prod(list(sizes.values())[i] for i in along)).tolist()
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        shape, source = ([int(i) for i in iota[i].split(",")] for i in (1, 2))
        order = np.arange(math.prod(source)).reshape(source)
        if iota[3]:
            order = order.transpose([int(i) for i in iota[3].split(",")])
        return order.reshape(shape).tolist()
    listed = re.search(r"replica_groups=\{(\{.*?\})\}", rest)
    if listed:
        return [[int(i) for i in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed[1])]
    return [list(range(num_devices))]


def _axes(groups: Sequence[Sequence[int]], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the devices of a group differ."""
    sizes = tuple(mesh.values())
    places = [np.stack(np.unravel_index(np.asarray(group), sizes)) for group in groups]
    return tuple(axis for i, axis in enumerate(mesh) if any((place[i] != place[i][0]).any() for place in places))
