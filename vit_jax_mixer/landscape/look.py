"""What `landscape` finds of a run: its numbers."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax_mixer import specs
from vit_jax_mixer.data.pipeline import Loader
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.landscape import directions, fourier, spectrum
from vit_jax_mixer.landscape.objective import Batches, Objective
from vit_jax_mixer.run import step as step_lib
from vit_jax_mixer.run.assemble import Opened
from vit_jax_mixer.trained import Trained

Tell = Callable[[str, int, int], None]  # of what, how much is done, of how much


@dataclasses.dataclass(frozen=True)
class Found:
    """The numbers of a landscape.

    Attributes:
        loss: of the examples, with the draws that are fixed.
        examples: how many they are.
        parameters: P.
        ritz: of each random start.
        coordinates: f64[n], of the slice.
        grid: f64[n, n], the loss there.
        frequencies: f64[n / 2] for each block; none where the model offers none.
    """

    loss: float
    examples: int
    parameters: int
    ritz: list[spectrum.Ritz]
    coordinates: np.ndarray
    grid: np.ndarray
    frequencies: list[np.ndarray]

    def top(self, count: int = 5) -> list[tuple[float, float]]:
        """Return the largest eigenvalues, each with how far it may be off, of the start that came nearest."""
        best = min(self.ritz, key=lambda one: one.errors[-1])
        return [(float(v), float(e)) for v, e in zip(best.values[::-1][:count], best.errors[::-1], strict=False)]

    def as_json(self) -> dict[str, Any]:
        """Return all of it for JSON; what is not finite is null."""
        at, density = spectrum.density(self.ritz)
        grid = [[value if np.isfinite(value) else None for value in row] for row in self.grid.tolist()]
        return {
            "loss": self.loss,
            "examples": self.examples,
            "parameters": self.parameters,
            "largest_eigenvalues": [{"value": value, "error": error} for value, error in self.top()],
            "smallest_eigenvalue": min(float(one.values[0]) for one in self.ritz),
            "trace": self.parameters * float(np.mean([one.weights @ one.values for one in self.ritz])),
            "negative_share": spectrum.negative_share(self.ritz),
            "ritz": [{"values": one.values.tolist(), "weights": one.weights.tolist()} for one in self.ritz],
            "density": {"eigenvalue": at.tolist(), "density": density.tolist()},
            "slice": {"coordinates": self.coordinates.tolist(), "loss": grid},
            "relative_log_amplitude": [one.tolist() for one in self.frequencies],
        }


def look(
    opened: Opened,
    trained: Trained | None,
    tell: Tell,
    *,
    examples: int,
    batch_size: int,
    products: int,
    starts: int,
    points: int,
    reach: float,
    seed: int,
) -> Found:
    """Look at the loss around an opened run.

    The loss is the task's own, of the first training examples, with what it draws (augmentation, dropout)
    fixed: each batch always has the same draws.

    Args:
        opened: the run.
        trained: its model as users have it, for the frequencies; None where there is none.
        tell: is told how far it is.
        examples: how many, rounded to whole batches; at most those there are.
        batch_size: of a batch; 0 for that of a part of a training step.
        products: of Lanczos, of each start.
        starts: random vectors.
        points: of a side of the slice.
        reach: of the slice, in norms of the weights.
        seed: of starts and directions.
    """
    run, task, state = opened
    batch_size = batch_size or run.batch_size // run.accum_steps
    if not len(task.train_data):
        raise UserError("the training data have no example; name a run that has some.")
    views = task.train_data.views
    if batch_size % views:
        raise UserError(f"--batch_size is {batch_size}, no multiple of config.data.views ({views}); change it.")
    count = max(min(examples, len(task.train_data) * views) // batch_size, 1)
    loader = dataclasses.replace(specs.call(Loader, run.loader, "config.loader"), workers=0)
    read = lambda: loader.train_batches(task.train_data, seed=run.seed, batch_size=batch_size, start=0)
    key = step_lib.step_key(run.seed, state.step)

    def loss(params: Any, batch: Any, number: Any) -> tuple[jax.Array, jax.Array]:
        batch = step_lib.augmented(task.train_data, run.seed, batch)
        value, aux = task.loss(params, state, batch, jax.random.fold_in(key, number))
        return value, jnp.float32(1) if aux.weight is None else aux.weight

    objective = Objective(loss, state.params, Batches(read, count))
    ritz = []
    for i, start in enumerate(spectrum.starts(objective.size, starts, objective.dtype, seed)):
        of_start = partial(_tell_of_start, tell, i * products, starts * products)
        ritz.append(spectrum.lanczos(objective.product, start, products, of_start))
        if not np.isfinite(ritz[-1].values).all():
            raise UserError("the loss has no finite curvature here; name another --step.")
    half = np.linspace(0, reach, points // 2 + 1)
    coordinates = np.concatenate([-half[:0:-1], half])
    one, other = (directions.random(state.params, seed=seed * 2 + i) for i in (0, 1))
    grid = objective.grid(one, other, coordinates, lambda done, of: tell("slice", done, of))
    middle = len(coordinates) // 2
    frequencies = fourier.by_depth(trained, _inputs(opened, trained, loader, batch_size, count)) if trained else []
    return Found(float(grid[middle, middle]), count * batch_size, objective.size, ritz, coordinates, grid, frequencies)


def _tell_of_start(tell: Tell, before: int, of: int, done: int) -> None:
    tell("curvature", before + done, of)


def _inputs(opened: Opened, trained: Trained, loader: Loader, batch_size: int, count: int) -> Iterator[np.ndarray]:
    """Yield batches of what the model reads, of the first evaluation data that have it."""
    for dataset in opened.task.eval_data.values():
        batches = loader.eval_batches(dataset, batch_size=min(batch_size, len(dataset)))
        for batch in itertools.islice(batches, count):
            if trained.about.field not in batch:
                break
            yield batch[trained.about.field]
        return
