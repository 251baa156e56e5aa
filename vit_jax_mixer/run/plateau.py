"""A learning rate that is lowered whenever a metric of the evaluation no longer improves (``config.plateau``).

The factor is a number in the optimizer's state, which the loop sets after each evaluation: no step is compiled anew.
It is computed from all evaluations in the run's log each time, so a run that goes on has the same.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax_mixer.checkpoints import best
from vit_jax_mixer.run.optimizers import Elementwise
from vit_jax_mixer.run.patience import Patience
from vit_jax_mixer.specs import Within
from vit_jax_mixer.tasks.base import TrainState


class ScaleState(NamedTuple):
    """The state of `lowered`."""

    plateau_scale: jax.Array  # f32[], what updates are multiplied with


@dataclasses.dataclass(frozen=True)
class Plateau(Patience):
    """Multiplies the rate of the schedule with ``factor`` after ``patience`` evaluations without improvement.

    And again after each so many more, until there is one: PyTorch's ReduceLROnPlateau and optax's
    ``reduce_on_plateau``, without a cooldown, and by evaluations instead of the loss of training.

    Attributes:
        factor: above 0 and below 1.
    """

    section: ClassVar[str] = "plateau"

    patience: Annotated[int, Within(1, 2**31 - 1)] = 3
    factor: Annotated[float, Within(1e-6, 0.999999)] = 0.1

    def lowered(self, evaluations: Mapping[int, best.Scores], every: int = 1) -> list[int]:
        """Return the steps after which the rate is lowered; evaluations are as in `waited`."""
        return [step for step, _, count in self.waited(evaluations, every) if count and count % self.patience == 0]

    def applied(self, state: TrainState, evaluations: Mapping[int, best.Scores], every: int) -> TrainState:
        """Return a state, on the devices, that trains on at the rate that these evaluations lead to."""
        if not self.metric:
            return state
        scale = self.factor ** len(self.lowered(evaluations, every))
        old: Any = optax.tree.get(state.opt_state, "plateau_scale")
        value = np.full(old.shape, scale, old.dtype)
        new = jax.make_array_from_callback(old.shape, old.sharding, lambda index: value[index])
        return dataclasses.replace(state, opt_state=optax.tree.set(state.opt_state, plateau_scale=new))

    def remark(self, evaluations: Mapping[int, best.Scores], step: int, every: int) -> str:
        """Return a sentence if the evaluation after ``step`` lowers the rate; '' if not."""
        lowered = self.lowered(evaluations, every)
        if step not in lowered:
            return ""
        name, scale = best.metric(self.metric), self.factor ** len(lowered)
        return f"{name} no longer improves: from step {step} on the learning rate is {scale:.4g} times the schedule's"


def scaled(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return the optimizer with its updates multiplied by a number in its state, 1 at first."""

    def update(updates: optax.Updates, state: Any, params: Any = None) -> tuple[optax.Updates, Any]:
        del params
        return jax.tree.map(lambda one: one * state.plateau_scale.astype(one.dtype), updates), state

    scale = optax.GradientTransformation(lambda params: ScaleState(jnp.ones((), jnp.float32)), update)
    both = optax.chain(optimizer, scale)
    return Elementwise(*both) if isinstance(optimizer, Elementwise) else both


def scale_of(opt_state: Any) -> jax.Array | float:
    """Return the number that updates are multiplied with; 1 where no plateau is looked for."""
    return optax.tree.get(opt_state, "plateau_scale", 1.0)
