"""One program compiled for devices that are not there, and what the compiler says of it: memory by group, traffic by mesh axis."""

import collections
import dataclasses
import math
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxllm.parallel import rules
from jaxllm.planning.hlo import KINDS, Collective, Instruction, Module, shape_bytes

OPERATIONS = ("fusion", "custom-call", "dot", "convolution", "copy", "while", "sort", "scatter", "gather", *KINDS)
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
LARGE = 1 << 20  # bytes from which on a replicated array is named


class Tensor(NamedTuple):
    """An array inside the program.

    Attributes:
      num_bytes: on one device.
      shape: as HLO writes it, without the layout.
      operation: what in the model it belongs to.
      source: "file:line" of jaxllm, or "".
    """

    num_bytes: int
    shape: str
    operation: str
    source: str


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What a compiled program takes, on one device.

    Attributes:
      name: of the program.
      seconds: that tracing and compiling took.
      memory: group -> bytes; they add up to `total`.
      total: the compiler's own sum: arguments, results that are not in their place, temporaries and code.
      live: the most of it that holds something at one time. By this a program fits or not: the compiler took one with a `total` above
        the memory of a device, and what it refused grew in step with `live`.
      collectives: what travels, most bytes first.
      replicated: (name of an argument, bytes) of arrays of 1 MiB and more that every device holds whole.
      largest: temporaries by size.
      gathered_calls: names of custom calls that an all-gather feeds.
      operations: HLO operation -> how many a step runs, loops counted by their trips.
    """

    name: str
    seconds: float
    memory: dict[str, int]
    total: int
    live: int
    collectives: list[Collective]
    replicated: list[tuple[str, int]]
    largest: list[Tensor]
    gathered_calls: list[str]
    operations: dict[str, int]


class OutOfMemory(Exception):
    """The compiler found no way to lay a program out in the memory of a device.

    Attributes:
      needed: bytes of one device that it would need at one time.
      largest: none; the compiler does not name them.
    """

    largest: tuple[Tensor, ...] = ()

    def __init__(self, needed: int) -> None:
        super().__init__(f"{needed} bytes of one device")
        self.needed = needed


def compile_program(
    name: str,
    function: Any,
    arguments: tuple[Any, ...],
    mesh: Mesh,
    groups: Callable[[str], str],
) -> Compiled:
    """Compiles a program for the devices of `mesh` and reads what came out.

    Args:
      name: of the program.
      function: what `jax.jit` gave.
      arguments: trees of ShapeDtypeStructs with shardings over `mesh`.
      mesh: its devices may be a topology's.
      groups: name of an argument's leaf ("0/params/head/kernel") -> its memory group.

    Raises:
      OutOfMemory: it does not fit.
    """
    begin = time.monotonic()
    with rules.under(mesh.abstract_mesh):
        lowered = function.lower(*arguments)
    try:
        executable = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        found = re.search(r"total memory required for HLO temporaries \(([\d.]+)([KMGT])\) exceeds available HBM", str(error))
        if found is None:
            raise
        raise OutOfMemory(int(float(found[1]) * UNITS[found[2]])) from error
    return read(name, executable, arguments, mesh, groups, time.monotonic() - begin)


def read(name: str, executable: Any, arguments: Any, mesh: Mesh, groups: Callable[[str], str], seconds: float) -> Compiled:
    """What the compiler says of an executable (see `compile_program`)."""
    module, stats = Module(executable.as_text()), executable.memory_analysis()
    leaves = [(rules.path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(arguments)]
    memory: dict[str, int] = collections.defaultdict(int)
    for path, leaf in leaves:
        memory[groups(path)] += local_bytes(leaf)
    memory["padding of arguments"] = stats.argument_size_in_bytes - sum(memory.values())
    stacked = list(_stacked(module))
    for group in ("activations", "gradients"):
        memory[group] = sum(tensor.num_bytes for kind, tensor in stacked if kind == group)
    memory["other temporaries"] = stats.temp_size_in_bytes - memory["activations"] - memory["gradients"]
    memory["results"] = stats.output_size_in_bytes - stats.alias_size_in_bytes
    memory["code"] = stats.generated_code_size_in_bytes
    return Compiled(
        name=name,
        seconds=seconds,
        memory=dict(memory),
        total=sum(memory.values()),
        live=stats.peak_memory_in_bytes,
        collectives=module.collectives(dict(mesh.shape)),
        replicated=[
            (path, local_bytes(leaf))
            for path, leaf in leaves
            if mesh.size > mesh.shape.get("replica", 1) and _is_whole(leaf) and local_bytes(leaf) >= LARGE
        ],
        largest=sorted({tensor for _, tensor in stacked} | set(_results(module)), reverse=True)[:20],
        gathered_calls=sorted(_gathered_calls(module)),
        operations=_operations(module),
    )


def _operations(module: Module) -> dict[str, int]:
    """What a step runs, other than what only names or moves a value within a computation."""
    counted: collections.Counter[str] = collections.Counter()
    for times, _, instruction in module.instructions():
        counted[instruction.operation] += times
    return {name: counted[name] for name in OPERATIONS if counted[name]}


def local_bytes(leaf: Any) -> int:
    """Bytes of one device that an abstract array takes."""
    sharding = getattr(leaf, "sharding", None)
    shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
    return math.prod(shape) * _itemsize(leaf.dtype)


def _itemsize(dtype: Any) -> int:
    return dtype.itemsize if not jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) else 8


def _is_whole(leaf: Any) -> bool:
    sharding = getattr(leaf, "sharding", None)
    return sharding is not None and sharding.is_fully_replicated


def _stacked(module: Module) -> Any:
    """(group, tensor) for what loops write slice by slice: kept for the backward pass by a forward one, gradients by a backward one."""
    for _, _, loop in module.instructions():
        if loop.operation != "while":
            continue
        count, body = module.trip_count(loop), module.computations[module.body(loop)]
        elements = re.findall(r"[a-z]+\d*[a-z0-9]*\[[\d,]*\]", loop.shape)
        by_name, root = {i.name: i for i in body}, body[-1]
        results = re.findall(r"%([\w.\-]+)", root.rest.split(")")[0])
        for index, (shape, result) in enumerate(zip(elements, results, strict=True)):
            made = by_name[result]
            passed = made.operation == "get-tuple-element" and f"index={index}," in f"{made.rest},"
            dims = re.search(r"\[(\d+)", shape)
            if not passed and dims and int(dims[1]) == count and count > 1:
                group = "gradients" if "transpose(" in _operation(loop) else "activations"
                yield group, Tensor(shape_bytes(shape), shape, _operation(made) or _operation(loop), module.source(made))


def _results(module: Module) -> Any:
    """Results of the entry computation, other than of loops and of what only passes something on."""
    for instruction in module.computations[module.entry]:
        if instruction.operation in ("fusion", "custom-call", "dot", "convolution", "copy", "broadcast", "scatter"):
            shape = re.match(r"[a-z]+\d*[a-z0-9]*\[[\d,]*\]", instruction.shape)
            if shape:
                yield Tensor(shape_bytes(shape[0]), shape[0], _operation(instruction), module.source(instruction))


def _operation(instruction: Instruction) -> str:
    found = re.search(r'op_name="([^"]*)"', instruction.rest)
    return found[1] if found else ""


def _gathered_calls(module: Module) -> set[str]:
    """Custom calls one of whose operands is, but for moves and casts, the result of an all-gather in the same computation."""
    found, moves = (
        set(),
        ("copy", "bitcast", "convert", "reshape", "transpose", "get-tuple-element", "copy-start", "copy-done", "all-gather-done"),
    )
    for name, instructions in module.computations.items():
        if not module.times[name]:
            continue
        by_name = {i.name: i for i in instructions}
        for call in (i for i in instructions if i.operation == "custom-call" and "tpu_custom_call" in i.rest):
            pending = re.findall(r"%([\w.\-]+)", call.rest.split("), ")[0])
            while pending:
                made = by_name.get(pending.pop())
                if made is None:
                    continue
                if made.operation.startswith("all-gather") and not made.operation.endswith("-done"):
                    found.add(_operation(call) or call.name)
                elif made.operation in moves:
                    pending += re.findall(r"%([\w.\-]+)", made.rest.split(")")[0])
    return found
