"""The loss of fixed examples as a function of the parameters, batch by batch: its values and its curvature."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

Tree = Any
Batch = Mapping[str, np.ndarray]
# From parameters, a batch and its number to the mean loss and what that mean is over.
BatchLoss = Callable[[Tree, Any, Any], tuple[jax.Array, jax.Array]]

_KEPT = 256 << 20  # bytes of batches that stay in memory; with more, each pass reads the data anew


class Batches:
    """The same batches at every pass; few stay in memory, many are read each time."""

    def __init__(self, read: Callable[[], Iterable[Batch]], count: int) -> None:
        """Take what begins to read, the same each time, and how many batches it is to give."""
        self._read, self._count = read, count
        self._kept: list[Batch] = []

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Batch]:
        if self._kept:
            yield from self._kept
            return
        kept: list[Batch] | None = []
        size = 0
        for batch in itertools.islice(self._read(), self._count):
            size += sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(batch))
            kept = [*kept, batch] if kept is not None and size <= _KEPT else None
            yield batch
        self._kept = kept or []


class Objective:
    """The mean loss over batches. Memory is that of one batch, however many there are.

    Attributes:
        params: where it is looked at.
        size: P, how many numbers they are.
    """

    def __init__(self, loss: BatchLoss, params: Tree, batches: Batches) -> None:
        """Take the loss of one batch, the parameters and the batches."""
        self.params, self._batches = params, batches
        flat, self._unravel = ravel_pytree(params)
        self.size, self.dtype = flat.size, np.dtype(flat.dtype)

        def product(params: Tree, vector: jax.Array, batch: Any, number: Any) -> tuple[jax.Array, jax.Array]:
            gradient = lambda params: jax.grad(loss, has_aux=True)(params, batch, number)
            _, curved, weight = jax.jvp(gradient, (params,), (self._unravel(vector),), has_aux=True)
            return weight * ravel_pytree(curved)[0], weight

        def row(params: Tree, one: Tree, other: Tree, batch: Any, number: Any, a: Any, bs: Any) -> Any:
            def at(b: jax.Array) -> tuple[jax.Array, jax.Array]:
                moved = jax.tree.map(lambda w, d, e: w + a.astype(w.dtype) * d + b.astype(w.dtype) * e, *trees)
                value, weight = loss(moved, batch, number)
                return weight * value, weight

            trees = (params, one, other)
            return jax.lax.map(at, bs)

        self._product, self._row = jax.jit(product), jax.jit(row)

    def product(self, vector: np.ndarray) -> np.ndarray:
        """Return the Hessian times a vector, [P]."""
        # Sums of many batches are kept as exact as those of one.
        total, weights = np.zeros(self.size, np.float64), 0.0
        for number, batch in enumerate(self._batches):
            with jax.default_matmul_precision("float32"):  # an accelerator's faster one is not symmetric enough
                curved, weight = self._product(self.params, vector.astype(self.dtype), batch, number)
            total += np.asarray(curved, np.float64)
            weights += float(weight)
        return total / weights

    def grid(self, one: Tree, other: Tree, coordinates: np.ndarray, tell: Callable[[int, int], None]) -> np.ndarray:
        """Return f64[n, n], the loss at ``params + coordinates[a] * one + coordinates[b] * other``.

        Args:
            one: a direction, a tree like the parameters.
            other: the second one.
            coordinates: f64[n].
            tell: is told how many rows are done, of how many.
        """
        total, weights = np.zeros((len(coordinates),) * 2), np.zeros((len(coordinates),) * 2)
        rows = len(self._batches) * len(coordinates)
        for number, batch in enumerate(self._batches):
            for i, a in enumerate(coordinates):
                values, weight = self._row(self.params, one, other, batch, number, jnp.asarray(a), coordinates)
                total[i] += np.asarray(values, np.float64)
                weights[i] += np.asarray(weight, np.float64)
                tell(number * len(coordinates) + i + 1, rows)
        return total / weights
