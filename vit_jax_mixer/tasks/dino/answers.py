"""What a student and its teacher answer, and how the one follows the other: DINO's formulas as pure functions.

Those of the authors' code (facebookresearch/dino, ``main_dino.py`` and ``utils.py``), but for lengths in updates.
"""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp

from vit_jax_mixer.specs import Rate, Share, Within
from vit_jax_mixer.tasks.base import Tree

Temperature = Annotated[float, Within(1e-4, 100)]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a teacher's answers are made with; ``configs/dino.py`` says what each is."""

    momentum: Rate
    teacher_temperature: Temperature
    warmup_temperature: Temperature
    warmup_temperature_steps: Annotated[int, Within(0)]
    student_temperature: Temperature
    centre_momentum: Share


def distributions(outputs: jax.Array, centre: jax.Array, temperature: jax.typing.ArrayLike) -> jax.Array:
    """Return what the teacher tells, f32[..., K]: its outputs f32[..., K], less their centre f32[K], sharpened."""
    return jax.nn.softmax((outputs - jnp.broadcast_to(centre, outputs.shape)) / temperature)


def centre_after(centre: jax.Array, mean: jax.Array, momentum: float) -> jax.Array:
    """Return the centre f32[K] with a batch's mean of the teacher's outputs in it."""
    return centre * momentum + mean * (1 - momentum)


def cross_entropy(targets: jax.Array, outputs: jax.Array, temperature: float) -> jax.Array:
    """Return f32[], the mean cross-entropy of each crop's answer with the teacher's on each other large crop.

    Args:
        targets: f32[B, 2, K], the teacher's distributions on the large crops.
        outputs: f32[B, V, K], the student's on all, the large ones first.
        temperature: of the student.
    """
    logs = jax.nn.log_softmax(outputs / temperature)
    large = targets.shape[1]
    others = logs.sum(1, keepdims=True) - logs[:, :large]  # no crop is its own target
    return -jnp.mean(jnp.sum(targets * others, (1, 2))) / (large * (outputs.shape[1] - 1))


def teacher_temperature(settings: Settings, count: jax.typing.ArrayLike) -> jax.Array:
    """Return the temperature after so many updates: it rises linearly in the first of them, then stays."""
    low, high = settings.warmup_temperature, settings.teacher_temperature
    if settings.warmup_temperature_steps < 1:
        return jnp.full(jnp.shape(count), high, jnp.float32)
    return low + (high - low) * jnp.minimum(count / max(settings.warmup_temperature_steps - 1, 1), 1.0)


def teacher_rate(momentum: float, count: jax.typing.ArrayLike, steps: int) -> jax.Array:
    """Return the student's part in the teacher, one less its momentum, which rises by half a cosine to 1."""
    return (1 - momentum) * 0.5 * (1 + jnp.cos(jnp.pi * jnp.asarray(count) / steps))


def followed(teacher: Tree, student: Tree, rate: jax.Array | float) -> Tree:
    """Return the teacher with that part of the student in it."""
    return jax.tree.map(lambda old, new: old * (1 - rate) + new * rate, teacher, student)
