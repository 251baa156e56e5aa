"""The learning rate by step: a warm-up, then what ``config.optim.schedule`` says.

Formulas are in updates made so far. A rate that a source gives by epochs is had with lengths in steps.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from vit_jax_mixer import specs
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.specs import Count, Within

NotNegative = Annotated[float, Within(0)]


def create(peak: float, *, schedule: str, warmup: str = "from_zero", warmup_steps: int, steps: int) -> optax.Schedule:
    """Return the rate by step.

    Args:
        peak: the highest rate.
        schedule: a spec of `SCHEDULES`, what follows the warm-up.
        warmup: a spec of `WARMUPS`, how the rate rises.
        warmup_steps: length of the warm-up; 0 for none.
        steps: length of the run.

    Raises:
        UserError: something is not known, or the warm-up is longer than the run.
    """
    if not 0 <= warmup_steps < steps:
        raise UserError(
            f"config.optim.warmup_steps is {warmup_steps}; it must be from 0 to config.steps - 1 = {steps - 1}."
        )
    rises = specs.build(WARMUPS, warmup, "config.optim.warmup", peak=peak, steps=max(warmup_steps, 1))
    of_warmup = {"cosine": cosine, "inverse_sqrt": inverse_sqrt}
    known = {**SCHEDULES, **{name: partial(function, warmup_steps) for name, function in of_warmup.items()}}
    follows = specs.build(known, schedule, "config.optim.schedule", peak=peak, steps=steps - warmup_steps)
    return optax.join_schedules([rises, follows], [warmup_steps])


def cosine(
    warmup_steps: int,
    peak: float,
    steps: int,
    *,
    decay_steps: Annotated[int | None, Within(1, 2**31 - 1)] = None,
    floor: NotNegative = 0.0,
    whole: bool = False,
) -> optax.Schedule:
    """Half a cosine (Loshchilov & Hutter 2017, arXiv 1608.03983, equation 5, of one cycle).

    Args:
        warmup_steps: those before it.
        peak: the rate at its begin.
        steps: from the warm-up to the end of the run.
        decay_steps: in which it falls; where they are fewer, the floor stays for the rest, as in the "sharp"
            cosine of the tabular Mixer's document, whose decay takes 15 % of the run. None for all ``steps``.
        floor: the rate that it falls to.
        whole: it begins with the run, and the warm-up is in the place of its first steps: timm's cosine, which DeiT and
            ResMLP train with.
    """
    before = warmup_steps if whole else 0
    falls = optax.cosine_decay_schedule(peak, decay_steps or steps + before, _share(floor, peak, "cosine"))
    return (lambda step: falls(step + before)) if before else falls


def inverse_sqrt(warmup_steps: int, peak: float, steps: int) -> optax.Schedule:
    """``peak sqrt(w / s)`` after s updates, w of them warm-up: the Transformer's (arXiv 1706.03762, equation 3).

    Without a warm-up, w is 1 and the first s is 1.

    Args:
        warmup_steps: those before it.
        peak: the rate at its begin.
        steps: from the warm-up to the end of the run.
    """
    del steps
    first = max(warmup_steps, 1)
    return lambda step: peak * jnp.sqrt(first / (first + jnp.asarray(step, jnp.float32)))


def restarts(
    peak: float, steps: int, *, first: Count, factor: Annotated[int, Within(1, 1000)] = 1, floor: NotNegative = 0.0
) -> optax.Schedule:
    """Half cosines, one after another: SGDR (Loshchilov & Hutter 2017, arXiv 1608.03983, equation 5).

    Args:
        peak: the rate at the begin of each.
        steps: from the warm-up to the end of the run.
        first: T_0, steps of the first.
        factor: T_mult, by which each is longer than the one before.
        floor: the rate that each falls to, and reaches only as the next begins.
    """
    share = _share(floor, peak, "restarts")
    begins, lengths = [0], [first]
    while factor > 1 and begins[-1] + lengths[-1] < steps:
        begins.append(begins[-1] + lengths[-1])
        lengths.append(lengths[-1] * factor)

    def rate(step: jax.typing.ArrayLike) -> jax.Array:
        count = jnp.asarray(step)
        cycle = jnp.searchsorted(jnp.asarray(begins), count, side="right") - 1
        position = count % first if factor == 1 else count - jnp.asarray(begins)[cycle]
        turned = position / jnp.asarray(lengths, jnp.float32)[cycle]
        return peak * ((1 - share) * 0.5 * (1 + jnp.cos(jnp.pi * turned)) + share)

    return rate


def rising(peak: float, steps: int, *, first: Annotated[float, Within(1e-30)] = 1e-6) -> optax.Schedule:
    """Of update s, counted from 0, ``first (peak / first)^(s / (steps - 1))``: a range test of rates.

    It is that of Smith 2017 (arXiv 1506.01186, section 3.3), with a rate that rises by a factor instead of a number.
    """
    if not first < peak:
        raise UserError(
            f"config.optim.schedule: rising(first={first}) is not below config.optim.learning_rate ({peak}); lower it."
        )
    return lambda step: first * (peak / first) ** (jnp.asarray(step, jnp.float32) / max(steps - 1, 1))


def from_rate(peak: float, steps: int, first: NotNegative = 1e-6) -> optax.Schedule:
    """Of update s, counted from 0, ``first + (peak - first) s / steps``: timm's warm-up."""
    if first > peak:
        raise UserError(
            f"config.optim.warmup: from_rate({first}) is above config.optim.learning_rate ({peak}); lower it."
        )
    return optax.linear_schedule(first, peak, steps)


def _share(floor: float, peak: float, name: str) -> float:
    """Return the floor as a share of the peak."""
    if floor > peak:
        raise UserError(
            f"config.optim.schedule: {name}: floor is {floor}, above config.optim.learning_rate ({peak}); lower it."
        )
    return floor / peak if peak else 0.0


# (peak=highest rate, steps=steps after the warm-up, ...) -> schedule
SCHEDULES: Mapping[str, Callable[..., optax.Schedule]] = {
    "cosine": partial(cosine, 0),
    "inverse_sqrt": partial(inverse_sqrt, 0),
    "restarts": restarts,
    "rising": rising,
    "linear": lambda peak, steps: optax.linear_schedule(peak, 0.0, steps),
    "constant": lambda peak, steps: optax.constant_schedule(peak),
}

# (peak=highest rate, steps=steps of the warm-up, 1 or more, ...) -> schedule
WARMUPS: Mapping[str, Callable[..., optax.Schedule]] = {
    # Of update s, counted from 0, it is s / steps of the highest: the first changes nothing.
    "from_zero": lambda peak, steps: optax.linear_schedule(0.0, peak, steps),
    # (s + 1) / steps: the last of the warm-up has the highest rate, as in the tabular Mixer's document.
    "from_one": lambda peak, steps: optax.linear_schedule(peak / steps, peak, max(steps - 1, 1)),
    "from_rate": from_rate,
    # s / (steps - 1): none at the first, the highest at the last of the warm-up and the first after it, as in DINO.
    "zero_to_one": lambda peak, steps: optax.linear_schedule(0.0, peak, max(steps - 1, 1)),
    # The highest from the first on, which the schedule only waits for: what that document's restarts do.
    "none": lambda peak, steps: optax.constant_schedule(peak),
}
