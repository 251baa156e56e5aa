"""Reads the text of a compiled program (HLO), as ``compiled.as_text()`` gives it.

Only what `cost` needs: instructions with their shapes, operands and attributes, by computation, and
how often a loop runs.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping

# Bits of an element; what is not here (tokens, opaque handles) has no size.
_BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128, "tf32": 32}


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array of the program.

    Attributes:
        dtype: as 'f32' or 'bf16'.
        dims: its size along each axis.
        space: 0 in the device's main memory; others are caches and registers.
    """

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def bytes(self) -> int:
        """The size without padding."""
        number = re.search(r"\d+", self.dtype)
        bits = _BITS.get(self.dtype) or (int(number[0]) if number and self.dtype[0] in "sufi" else 0)
        return math.ceil(math.prod(self.dims) * bits / 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation; ``shapes`` are those of its result, a tuple's one after the other."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    def attribute(self, name: str) -> str:
        """Return the value of an attribute as ``index=4`` or ``body=%name``, or ''."""
        match = re.search(rf"\b{name}=%?([\w.$-]+)", self.attributes)
        return match[1] if match else ""


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in the order of the text."""

    name: str
    instructions: Mapping[str, Instruction]

    @functools.cached_property
    def root(self) -> Instruction:
        """What the computation returns."""
        return next(i for i in self.instructions.values() if i.is_root)

    @functools.cached_property
    def parameters(self) -> tuple[Instruction, ...]:
        """Its parameters, in the order of their numbers."""
        found = [i for i in self.instructions.values() if i.opcode == "parameter"]
        return tuple(sorted(found, key=lambda i: int(i.operands[0])))

    def traced(self, name: str) -> tuple[Instruction, int]:
        """Return where an integer comes from, through copies and additions of constants, and the sum of these.

        What comes from a constant has its value in the sum.
        """
        found = self.instructions[name]
        if found.opcode in ("copy", "bitcast"):
            return self.traced(found.operands[0])
        if found.opcode == "constant":
            return found, int(found.operands[0]) if found.operands else 0
        if found.opcode == "add":
            (a, x), (b, y) = map(self.traced, found.operands)
            if "constant" in (a.opcode, b.opcode):
                return (a if b.opcode == "constant" else b), x + y
        return found, 0

    @functools.cached_property
    def users(self) -> Mapping[str, tuple[Instruction, ...]]:
        """The instructions that read each one."""
        users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                if operand in users:
                    users[operand].append(instruction)
        return {name: tuple(found) for name, found in users.items()}


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program of one device."""

    computations: Mapping[str, Computation]
    entry: Computation

    def trips(self, computation: Computation, loop: Instruction) -> int | None:
        """Return how often a ``while`` of a computation runs its body; None where the text does not say."""
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known[1])
        # Its condition is: counter < limit, where the counter is a part of what the loop carries.
        condition = self.computations[loop.attribute("condition")]
        body = self.computations[loop.attribute("body")]
        start = computation.instructions[loop.operands[0]]
        for compare in condition.instructions.values():
            if compare.opcode != "compare" or "direction=LT" not in compare.attributes or start.opcode != "tuple":
                continue
            (counter, _), (limit, high) = (condition.traced(name) for name in compare.operands)
            if counter.opcode != "get-tuple-element" or limit.opcode != "constant":
                continue
            place = int(counter.attribute("index"))
            first, low = computation.traced(start.operands[place])
            before, step = body.traced(body.root.operands[place])
            if first.opcode == "constant" and before.attribute("index") == counter.attribute("index") and step > 0:
                return math.ceil((high - low) / step)
        return None


_LINE = re.compile(r"^\s*(ROOT )?%?([\w.$-]+) = (.*)$")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.$-]+) \(.*\) -> .*\{$")
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](\{[^{}]*\})?")


def parse(text: str) -> Program:
    """Read the text of a program."""
    computations: dict[str, Computation] = {}
    entry, name = "", ""
    lines: dict[str, Instruction] = {}
    for line in text.splitlines():
        if head := _HEAD.match(line):
            name, lines = head[2], {}
            entry = name if head[1] else entry
        elif line.startswith("}") and name:
            computations[name] = Computation(name, lines)
            name = ""
        elif name and (match := _LINE.match(line)):
            instruction = _instruction(match[2], match[3], is_root=bool(match[1]))
            lines[instruction.name] = instruction
    return Program(computations, computations[entry])


def _instruction(name: str, rest: str, *, is_root: bool) -> Instruction:
    """Read ``f32[2]{0} opcode(%a, %b), attributes``."""
    kind, rest = _split(rest) if rest.startswith("(") else rest.split(" ", 1)
    opcode, _, rest = rest.strip().partition("(")
    arguments, attributes = _split("(" + rest)
    operands = re.findall(r"%([\w.$-]+)", arguments)
    if opcode in ("parameter", "constant"):
        operands = re.findall(r"-?\d+", arguments)[:1]
    return Instruction(name, opcode, _shapes(kind), tuple(operands), attributes, is_root)


def _split(text: str) -> tuple[str, str]:
    """Split after the parenthesis that closes the first one."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[: i + 1], text[i + 1 :]
    return text, ""


def _shapes(kind: str) -> tuple[Shape, ...]:
    def shape(match: re.Match[str]) -> Shape:
        dims = tuple(int(n.removeprefix("<=")) for n in match[2].split(",") if n)
        space = re.search(r"S\((\d+)\)", match[3] or "")
        return Shape(match[1], dims, int(space[1]) if space else 0)

    return tuple(map(shape, _SHAPE.finditer(kind)))
