"""From a run and a target to a plan: memory, cost, time, the largest batch."""

import dataclasses
from collections.abc import Callable, Mapping

from vit_jax_mixer.config import Config
from vit_jax_mixer.plan.compiled import Compiled, Memory, Planned, compiler_of, in_float32
from vit_jax_mixer.plan.cost import Cost
from vit_jax_mixer.plan.roofline import Bill, Roofline, bill, roofline
from vit_jax_mixer.plan.targets import Target

ATTEMPTS = 7  # compilations of a search


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run needs and costs on a target.

    Attributes:
        target: as it was given.
        chips: how many there are.
        capacity: bytes of a chip's memory that a program can use.
        fits: whether the memory's peak is no more than that.
        batch_size: the config's.
        noun: what it counts.
        memory: bytes of each chip.
        cost: of each chip and step; None, as all that follows from it, where the program does not fit.
        xla: what XLA's own analysis says, which counts a loop's body once.
        roofline: the times of a step.
        bill: of the run.
        largest_batch: that fits; 0 if none does, None where it was not looked for.
        compile_seconds: CPU time of the compiler.
        compiler: its name and version.
        estimate: whether another machine's compiler stood in for the target's.
    """

    target: str
    chips: int
    capacity: float
    fits: bool
    batch_size: int
    noun: str
    memory: Memory
    cost: Cost | None
    xla: Mapping[str, float] | None
    roofline: Roofline | None
    bill: Bill | None
    largest_batch: int | None
    compile_seconds: float
    compiler: str
    estimate: bool


def estimate(
    run: Config, target: Target, *, utilisation: float, search: bool, tell: Callable[[str], None] = lambda text: None
) -> Plan:
    """Compile the run's step for the target and work out the plan.

    Args:
        run: the config; its data must be there, or blank.
        target: where it would run.
        utilisation: share of the roofline's speed that the run is expected to reach, above 0, to 1.
        search: look for the largest batch that fits, which compiles a few more times.
        tell: is given a line on what is going on.

    Raises:
        UserError: what training would say of the config, a batch that the chips do not divide, or
            no compiler for the target.
    """
    on_gpu = target.chip.kind == "gpu"
    halve = on_gpu and run.model.get("dtype") == "bfloat16"
    planned = Planned(in_float32(run) if halve else run, target)

    def compiled(batch_size: int) -> Compiled:
        tell(f"compiling for {target.name}, batch {batch_size:,}")
        found = planned.compile(batch_size)
        return _as_bfloat16(found) if halve else found

    first = compiled(run.batch_size)
    capacity = target.chip.memory
    line = roofline(first.cost, target) if first.cost else None
    largest = None
    if search:
        unit = target.count * run.accum_steps
        steps = {run.batch_size // unit: first.memory.step}
        starts = first.memory.start <= capacity  # with any batch, or with none
        largest = unit * largest_that_fits(lambda n: compiled(n * unit).memory.step, steps, capacity) if starts else 0
    return Plan(
        target=target.name,
        chips=target.count,
        capacity=capacity,
        fits=first.memory.peak <= capacity,
        batch_size=run.batch_size,
        noun=planned.noun,
        memory=first.memory,
        cost=first.cost,
        xla=first.xla,
        roofline=line,
        bill=bill(line, utilisation=utilisation, steps=run.steps, batch_size=run.batch_size, chips=target.count)
        if line
        else None,
        largest_batch=largest,
        compile_seconds=first.seconds,
        compiler=compiler_of(target),
        estimate=on_gpu,
    )


def largest_that_fits(peak: Callable[[int], float], peaks: Mapping[int, float], capacity: float) -> int:
    """Return the largest n with ``peak(n) <= capacity``, to a sixteenth or in `ATTEMPTS` calls; 0 if there is none.

    Args:
        peak: grows nearly linearly; it may be infinite where nothing fits.
        peaks: what is known of it, at least one value.
        capacity: the bound.
    """
    known = dict(peaks)
    for _ in range(ATTEMPTS):
        fits = max((n for n, size in known.items() if size <= capacity), default=0)
        fails = min((n for n, size in known.items() if size > capacity), default=None)
        step = max(fits // 16, 1)
        if fails is not None and fails - fits <= step:
            break
        guess = _guess(known, capacity, fits, fails)
        if fails is not None:
            guess = min(guess, fails - 1)
        guess = max(guess // step * step, fits + step)
        known[guess] = peak(guess)
    return max((n for n, size in known.items() if size <= capacity), default=0)


def _guess(known: Mapping[int, float], capacity: float, fits: int, fails: int | None) -> int:
    """Return where a line through what is known meets the capacity."""
    points = sorted((n, size) for n, size in known.items() if size != float("inf"))
    if len(points) >= 2:
        (a, low), (b, high) = sorted(sorted(points, key=lambda p: abs(p[1] - capacity))[:2])
        if high > low:
            return int(a + (capacity - low) * (b - a) / (high - low))
    if fails is None:
        return 2 * fits
    return (fits + fails) // 2


def _as_bfloat16(found: Compiled) -> Compiled:
    """Return the estimate for bfloat16, from the step in float32: half of all but the state and its traffic."""
    memory = found.memory
    state = memory.parameters + memory.optimizer + memory.other_state
    memory = dataclasses.replace(memory, temporaries=memory.temporaries / 2, step=memory.step - memory.temporaries / 2)
    cost = found.cost
    if cost:
        traffic = min(2 * state, cost.bytes)  # read and written once
        halved = traffic + (cost.bytes - traffic) / 2
        cost = dataclasses.replace(cost, flop={"bf16": sum(cost.flop.values())}, bytes=halved)
    return dataclasses.replace(found, memory=memory, cost=cost)
