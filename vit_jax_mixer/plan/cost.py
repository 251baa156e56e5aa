"""What a compiled program costs: FLOP of its matrix products, bytes, messages between devices.

XLA's own ``cost_analysis`` counts the body of a loop once; here it counts as often as it runs.
"""

import dataclasses
import math
import re
import sys
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
        nodes: over how many nodes the group is spread; 1 where all links are alike.
    """

    kind: str
    group: int
    bytes: float
    nodes: int = 1

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
        collectives: one for each kind, group and number of nodes.
        unknown_loops: that count once, as the program's text does not tell how often they run. Left out are those
            whose turn has no products, no messages and less than a thousandth of the bytes: they draw random numbers.
    """

    flop: dict[str, float]
    bytes: float
    bytes_once: float
    collectives: tuple[Collective, ...]
    unknown_loops: tuple[str, ...] = ()


def cost_of(program: Program, node: int = sys.maxsize) -> Cost:
    """Add up a program; ``node`` devices with consecutive numbers are joined better than those of two nodes are."""
    flop: dict[str, float] = {}
    moved = once = 0.0
    messages: dict[str, tuple[int, str, int, int, int]] = {}  # by channel: times, kind, group, nodes, bytes
    turns: dict[str, Cost] = {}  # of loops of unknown length
    for times, computation, instruction in _run(program, program.entry, 1):
        size = sum(size for size, space in _moved(program, computation, instruction) if space == 0)
        moved, once = moved + times * size, once + size
        if instruction.opcode == "while" and program.trips(computation, instruction) is None:
            body = program.computations[instruction.attribute("body")]
            turns[instruction.name] = cost_of(Program(program.computations, body), node)
        for where, part in _parts(program, computation, instruction):
            for dtype, value in _flop(where, part):
                flop[dtype] = flop.get(dtype, 0.0) + times * value
            kind = part.opcode.removesuffix("-start")
            if kind in _COLLECTIVES:
                # One that runs beside other work is written into several fusions, under one number.
                channel = re.search(r"channel_id=\d+", part.attributes)
                name = channel[0] if channel else part.name
                message = (times, kind, *_message(where, part, node))
                messages[name] = max(messages.get(name, message), message)
    totals: dict[tuple[str, int, int], float] = {}
    for times, kind, group, nodes, size in messages.values():
        if group > 1:
            totals[kind, group, nodes] = totals.get((kind, group, nodes), 0.0) + times * size
    collectives = tuple(Collective(kind, group, size, n) for (kind, group, n), size in sorted(totals.items()))
    unknown = tuple(name for name, turn in turns.items() if turn.flop or turn.collectives or turn.bytes > moved / 1000)
    return Cost(flop, moved, once, collectives, unknown)


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
            trips = program.trips(computation, instruction) or 1
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


def _message(computation: Computation, instruction: Instruction, node: int) -> tuple[int, int, int]:
    """Return how many devices a message joins, over how many nodes, and its bytes."""
    into = sum(s.bytes for name in instruction.operands for s in computation.instructions[name].shapes)
    out = sum(s.bytes for s in instruction.shapes)
    if instruction.opcode.endswith("-start") and out > into:  # its result holds the operands as well
        out -= into
    groups = _groups(instruction.attributes) or [[0]]
    nodes = max(len({device // node for device in group}) for group in groups)
    return max(map(len, groups)), nodes, max(into, out)


def _groups(attributes: str) -> list[list[int]]:
    """Return the devices of each group that exchanges messages; [] where there are none.

    They are written as ``[2,8]<=[8,2]T(1,0)``, ``{{0,1},{2,3}}`` or ``mesh['a'=4,'b'=2] {'a'}``, where
    ``device_ids=([2,4]T(1,0))`` may say how the devices lie in the mesh.
    """
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^{]*)\))? \{([^}]*)\}", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        inside = [list(sizes).index(name) for name in re.findall(r"'(\w+)'", mesh[3])]
        devices = _devices(mesh[2] or f"[{math.prod(sizes.values())}]").reshape(*sizes.values())
        last = np.moveaxis(devices, inside, range(-len(inside), 0))
        return last.reshape(-1, math.prod(devices.shape[axis] for axis in inside)).tolist()
    if table := re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]*\](?:T\([\d,]*\))?)", attributes):
        return _devices(table[3]).reshape(int(table[1]), int(table[2])).tolist()
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", attributes)
    groups = re.findall(r"\{([\d,]+)\}", listed[1]) if listed else []
    return [[int(device) for device in group.split(",")] for group in groups]


def _devices(order: str) -> np.ndarray:
    """Return the devices in the order that ``[2,8]T(1,0)``, their transposed numbers, or ``0,2,1,3`` says."""
    first, _, axes = order.partition("T")
    numbers = lambda text: [int(n) for n in text.strip("[]()").split(",")]
    if not order.startswith("["):
        return np.array(numbers(first))
    devices = np.arange(math.prod(numbers(first))).reshape(numbers(first))
    return devices.transpose(numbers(axes)) if axes else devices


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
