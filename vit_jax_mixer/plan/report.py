"""A plan as a text for people, and as JSON."""

import dataclasses
import json
import math
from collections.abc import Iterator

from vit_jax_mixer.config import Config
from vit_jax_mixer.plan.cost import Cost
from vit_jax_mixer.plan.estimate import Plan
from vit_jax_mixer.plan.roofline import Roofline

LESS_STATE = "--config.parallel='jit(fsdp=N)'"
LESS_MEMORY = ("--config.model.remat=True", "--config.accum_steps=2", LESS_STATE, "--config.model.dtype=bfloat16")

ASSUMPTIONS = (
    "An estimate: the step was compiled for this machine's CPU, on simulated devices and in float32. Of a bfloat16",
    "model, half of the temporaries and of the memory traffic is taken. A GPU's compiler joins more operations:",
    "the memory and its traffic are rather too high than too low. The capacity is the 75 % of a GPU's memory that",
    "JAX takes; XLA_PYTHON_CLIENT_MEM_FRACTION changes it.",
)


def text(plan: Plan, run: Config, utilisation: float) -> str:
    """Return the plan as aligned lines."""
    return "\n".join(_lines(plan, run, utilisation))


def as_json(plan: Plan) -> str:
    """Return the plan as JSON: bytes, seconds and FLOP of each chip; what is not known is null."""
    fields = dataclasses.asdict(plan)
    fields["memory"]["peak"] = plan.memory.peak
    if plan.roofline:
        fields["roofline"] |= {"seconds": plan.roofline.seconds, "bound": plan.roofline.bound}
    return json.dumps(_finite(fields), indent=2)


def _lines(plan: Plan, run: Config, utilisation: float) -> Iterator[str]:
    each = _each(plan.batch_size, plan.chips)
    name = run.model.get("name") or run.task["name"]
    yield f"{name}, {run.parallel}, batch {plan.batch_size:,} ({each}), on {plan.target}"
    yield f"compiled in {plan.compile_seconds:.0f} s of CPU time by {plan.compiler}"
    yield from ("", "memory of each chip")
    memory = plan.memory
    for name, value in (
        ("parameters", memory.parameters),
        ("optimizer state", memory.optimizer),
        ("other state", memory.other_state),
        ("batch", memory.batch),
        ("activations, temporaries", memory.temporaries),
        ("program", memory.program),
        ("all in a step", memory.step),
        ("start, save: state twice", memory.start),
    ):
        if value >= 1000:  # not the step count alone; what is not known is not a number
            yield _row(name, value, "B")
    verdict = f"{memory.peak / plan.capacity:.0%} of {_quantity(plan.capacity, 'B')}"
    yield _row("peak", memory.peak, "B", f"{verdict}: {'fits' if plan.fits else 'DOES NOT FIT'}")
    if plan.cost and plan.roofline and plan.bill:
        yield from _times(plan.cost, plan.roofline)
        yield from ("", f"{run.steps:,} steps at {utilisation:.0%} of that speed")
        yield _row("a step", plan.bill.step_seconds, "s")
        yield f"  {plan.noun + ' a second':<28}{plan.bill.examples_per_second:>10,.0f}"
        yield f"  {'hours':<28}{plan.bill.hours:>10,.2f}"
        yield f"  {'chip-hours':<28}{plan.bill.chip_hours:>10,.1f}"
    if plan.largest_batch is not None:
        each = _each(plan.largest_batch, plan.chips)
        yield from ("", f"{'largest batch that fits':<30}{plan.largest_batch:>10,}      {each}")
    if memory.start > plan.capacity:
        yield from ("", f"For a smaller state: {LESS_STATE}.")
    elif not plan.fits:
        yield from ("", f"For less memory: {', '.join(LESS_MEMORY)}, or a smaller batch.")
    if plan.estimate:
        yield from ("", *ASSUMPTIONS)


def _times(cost: Cost, line: Roofline) -> Iterator[str]:
    yield from ("", "work of each chip in a step")
    for dtype, flop in sorted(cost.flop.items(), key=lambda item: -item[1]):
        yield _row(f"matrix products, {dtype}", flop, "FLOP")
    yield _row("main memory", cost.bytes, "B")
    for collective in cost.collectives:
        nodes = f" on {collective.nodes} nodes" if collective.nodes > 1 else ""
        yield _row(f"{collective.kind} of {collective.group}{nodes}", collective.bytes, "B")
    if cost.unknown_loops:
        yield f"  TOO LOW: how often these loops run is not known, once is counted: {', '.join(cost.unknown_loops)}"
    yield from ("", "least time of a step")
    for name, seconds in dataclasses.asdict(line).items():
        yield _row(name, seconds, "s", "binds" if name == line.bound else "")


def _each(batch: int, chips: int) -> str:
    return f"{round(batch / chips, 2):,}".removesuffix(".0") + " a chip"


def _row(name: str, value: float, unit: str, more: str = "") -> str:
    number, unit = _quantity(value, unit).split(" ")
    return f"  {name:<28}{number:>10} {unit:<6} {more}".rstrip()


def _quantity(value: float, unit: str) -> str:
    """Return a number with three digits that count, as '12.3 GB'."""
    if not value or not math.isfinite(value):
        return f"{value:g} {unit}"
    power = min(max(math.floor(math.log10(abs(value)) / 3), -3), 4)
    scaled = value / 1000**power
    digits = max(0, 2 - math.floor(math.log10(abs(scaled))))
    return f"{scaled:.{digits}f} {('n', 'u', 'm', '', 'k', 'M', 'G', 'T')[power + 3]}{unit}"


def _finite(value):
    """Return the value with null in the place of what is not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
