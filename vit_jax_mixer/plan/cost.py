"""What a compiled program costs: FLOP of its matrix products, bytes, messages between devices.

XLA's own ``cost_analysis`` counts the body of a loop once; here it counts as often as it runs.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

from vit_jax_mixer.plan.hlo import Computation, Instruction, Program, Shape

# These move nothing, or what they move is counted elsewhere.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
_INSIDE = {"while", "conditional", "call", "async-start", "async-update", "async-done"}
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """Messages of one kind between the devices of a group, in a step.

    Attributes:
        kind: as 'all-reduce'.
        group: devices that take part.
        bytes: the larger of what goes in and what comes out, of one device.
    """

    kind: str
    group: int
    bytes: float

    @property
    def sent(self) -> float:
        """Bytes that each device sends at least (in a ring): Thakur et al. 2005, section 4."""
        part = (self.group - 1) / self.group
        return self.bytes * {"all-reduce": 2 * part, "collective-permute": 1.0}.get(self.kind, part)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one device does in a step.

    Attributes:
        flop: of matrix products and convolutions, by the type of their operands ('bf16', 'f32'); 2 per
            multiply-add. What is done element by element is left out, as the peak rates leave it out.
        bytes: read from and written to the main memory, not a TPU's VMEM.
        bytes_once: the same with the body of each loop once, as XLA counts.
        collectives: one for each kind and group.
    """

    flop: dict[str, float]
    bytes: float
    bytes_once: float
    collectives: tuple[Collective, ...]


def cost_of(program: Program) -> Cost:
    """Add up a program."""
    flop: dict[str, float] = {}
    moved = once = 0.0
    messages: dict[str, tuple[int, str, int, int]] = {}  # by channel: times, kind, group, bytes
    for times, computation, instruction in _run(program, program.entry, 1):
        size = sum(size for size, space in _moved(program, computation, instruction) if space == 0)
        moved, once = moved + times * size, once + size
        for where, part in _parts(program, computation, instruction):
            for dtype, value in _flop(where, part):
                flop[dtype] = flop.get(dtype, 0.0) + times * value
            kind = part.opcode.removesuffix("-start")
            if kind in _COLLECTIVES:
                # One that runs beside other work is written into several fusions, under one number.
                channel = re.search(r"channel_id=\d+", part.attributes)
                name = channel[0] if channel else part.name
                message = (times, kind, *_message(where, part))
                messages[name] = max(messages.get(name, message), message)
    totals: dict[tuple[str, int], float] = {}
    for times, kind, group, size in messages.values():
        if group > 1:
            totals[kind, group] = totals.get((kind, group), 0.0) + times * size
    return Cost(flop, moved, once, tuple(Collective(*key, size) for key, size in sorted(totals.items())))


def _parts(
    program: Program, computation: Computation, instruction: Instruction
) -> Iterator[tuple[Computation, Instruction]]:
    """Yield the instruction or, if it is a fusion, those inside it."""
    if instruction.opcode != "fusion":
        yield computation, instruction
        return
    inner = program.computations[instruction.attribute("calls")]
    for part in inner.instructions.values():
        yield from _parts(program, inner, part)


def _run(program: Program, computation: Computation, times: int) -> Iterator[tuple[int, Computation, Instruction]]:
    """Yield each instruction that runs, and how often; those inside fusions are not among them."""
    for instruction in computation.instructions.values():
        yield times, computation, instruction
        if instruction.opcode == "while":
            trips = program.trips(computation, instruction)
            yield from _run(program, program.computations[instruction.attribute("body")], times * trips)
        elif instruction.opcode == "call":
            yield from _run(program, program.computations[instruction.attribute("to_apply")], times)
        elif instruction.opcode == "async-start":
            yield from _run(program, program.computations[instruction.attribute("calls")], times)
        elif instruction.opcode == "conditional":  # the first branch stands for all
            branches = re.search(r"branch_computations=\{%?([\w.$-]+)", instruction.attributes)
            name = branches[1] if branches else instruction.attribute("true_computation")
            yield from _run(program, program.computations[name], times)


def _flop(computation: Computation, instruction: Instruction) -> Iterator[tuple[str, float]]:
    """Yield (dtype, FLOP) of a product."""
    if instruction.opcode in ("dot", "convolution"):
        left, right = (computation.instructions[name].shapes[0] for name in instruction.operands[:2])
        count = _dot if instruction.opcode == "dot" else _convolution
        yield _widest(left, right), 2.0 * count(instruction, left, right)


def _widest(left: Shape, right: Shape) -> str:
    return max(left, right, key=lambda shape: shape.bytes / max(math.prod(shape.dims), 1)).dtype


def _dot(instruction: Instruction, left: Shape, right: Shape) -> float:
    """Return the multiply-adds of a matrix product."""
    summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
    axes = [int(n) for n in summed[1].split(",") if n] if summed else []
    return math.prod(instruction.shapes[0].dims) * math.prod(left.dims[axis] for axis in axes)


def _convolution(instruction: Instruction, left: Shape, right: Shape) -> float:
    """Return the multiply-adds of a convolution; products with padding and inserted zeros do not count."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    if not labels:
        return 0.0
    of_left, of_right, of_out = labels[1], labels[2], labels[3]
    out = instruction.shapes[0]
    spatial = sum(label.isdecimal() for label in of_right)
    fields = dict(field.split("=") for field in window[1].split()) if window else {}
    numbers = lambda name, default: [int(n) for n in fields.get(name, "x".join([default] * spatial)).split("x") if n]
    strides, left_dilation, right_dilation = (numbers(n, "1") for n in ("stride", "lhs_dilate", "rhs_dilate"))
    low = [int(pad.split("_")[0]) for pad in fields["pad"].split("x")] if "pad" in fields else [0] * spatial
    total = float(right.dims[of_right.index("i")])
    total *= out.dims[of_out.index("b")] * out.dims[of_out.index("f")]
    for axis in range(spatial):
        at = lambda labels, shape: shape.dims[labels.index(str(axis))]  # noqa: B023 # used in this turn alone
        place = np.arange(at(of_out, out))[:, None] * strides[axis] - low[axis]
        place = place + np.arange(at(of_right, right)) * right_dilation[axis]
        inside = (place >= 0) & (place <= (at(of_left, left) - 1) * left_dilation[axis])
        total *= int(np.sum(inside & (place % left_dilation[axis] == 0)))
    return total


def _message(computation: Computation, instruction: Instruction) -> tuple[int, int]:
    """Return how many devices a message joins, and its bytes."""
    into = sum(s.bytes for name in instruction.operands for s in computation.instructions[name].shapes)
    out = sum(s.bytes for s in instruction.shapes)
    if instruction.opcode.endswith("-start") and out > into:  # its result holds the operands as well
        out -= into
    return _group(instruction.attributes), max(into, out)


def _group(attributes: str) -> int:
    """Return the devices of a group, from ``[16,2]<=[32]``, ``{{0,1},{2,3}}`` or ``mesh['a'=4] {'a'}``."""
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", mesh[2]))
    if table := re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes):
        return int(table[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(listed[1].split(","))
    pairs = re.search(r"source_target_pairs=\{\{", attributes)
    return 2 if pairs else 1


def _moved(program: Program, computation: Computation, instruction: Instruction) -> Iterator[tuple[int, int]]:
    """Yield (bytes, memory space) for what an instruction reads and writes."""
    opcode = instruction.opcode
    if opcode in _FREE or opcode in _INSIDE or opcode.endswith(("-done", "-update")):
        return
    sources = [computation.instructions[name] for name in instruction.operands if name in computation.instructions]
    if opcode == "custom-call" and re.search(r"AllocateBuffer|ConcatBitcast", instruction.attributes):
        return
    if opcode == "copy-start":
        new = instruction.shapes[0]
        yield from ((new.bytes, shape.space) for shape in (new, sources[0].shapes[0]))
    elif opcode == "slice-start":
        new = instruction.shapes[1]
        yield from ((new.bytes, shape.space) for shape in (new, sources[0].shapes[0]))
    elif opcode in ("dynamic-slice", "slice", "gather"):
        new = instruction.shapes[0]
        yield from ((new.bytes, shape.space) for shape in (new, sources[0].shapes[0]))
    elif opcode == "dynamic-update-slice":
        part = sources[1].shapes[0]
        yield from ((part.bytes, shape.space) for shape in (part, instruction.shapes[0]))
    elif opcode == "fusion":
        inner = program.computations[instruction.attribute("calls")]
        for number, source in enumerate(sources):
            for shape in source.shapes:
                yield min(_read(program, inner, inner.parameters[number]), shape.bytes), shape.space
        parts = _written(inner)
        for shape, size in zip(instruction.shapes, parts, strict=False):
            yield min(size, shape.bytes), shape.space
    else:
        for shape in (*(s for source in sources for s in source.shapes), *instruction.shapes):
            yield shape.bytes, shape.space


def _read(program: Program, inner: Computation, parameter: Instruction) -> int:
    """Return how many bytes of a parameter a fusion reads: of one that is only sliced, the slices."""
    total = 0
    for user in inner.users[parameter.name]:
        if user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == parameter.name:
            total += user.shapes[0].bytes
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == parameter.name:
            continue  # it is changed in its place
        elif user.opcode == "bitcast":
            total += _read(program, inner, user)
        elif user.opcode == "fusion":
            nested = program.computations[user.attribute("calls")]
            places = [i for i, name in enumerate(user.operands) if name == parameter.name]
            total += sum(_read(program, nested, nested.parameters[i]) for i in places)
        else:
            return sum(shape.bytes for shape in parameter.shapes)
    return total


def _written(inner: Computation) -> list[int]:
    """Return the bytes that a fusion writes, by result: of one changed in its place, the change."""
    root = inner.root
    results = [inner.instructions[name] for name in root.operands] if root.opcode == "tuple" else [root]
    sizes = []
    for result in results:
        while result.opcode == "bitcast":
            result = inner.instructions[result.operands[0]]
        if result.opcode == "dynamic-update-slice":
            result = inner.instructions[result.operands[1]]
        sizes.append(sum(shape.bytes for shape in result.shapes))
    return sizes
