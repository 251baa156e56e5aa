"""How a column of numbers becomes what a model reads: piecewise linear maps, fitted to the training rows.

Each is two lists of the same length: numbers, increasing, and what they become; between them it is linear.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated

import numpy as np

from vit_jax_mixer import specs
from vit_jax_mixer.specs import Within

Points = tuple[tuple[float, ...], tuple[float, ...]]
Bins = Annotated[int, Within(2, 4096)]


@dataclasses.dataclass(frozen=True)
class Scaling:
    """One of them.

    Attributes:
        fit: from the numbers of a column, f64[N], one at least, to the points of its map.
        extrapolates: whether the map goes on beyond its ends, or stays as it is there.
        whole: whether all columns, codes too, are scaled by one maximum, mean and deviation afterwards.
        own_maximum: whether that maximum is that of the rows at hand.
        least_count: rows that a category must have to be one of its own.
    """

    fit: Callable[[np.ndarray], Points]
    extrapolates: bool = True
    whole: bool = False
    own_maximum: bool = False
    least_count: int = 5


def standard() -> Scaling:
    """Mean 0 and deviation 1."""

    def fit(numbers: np.ndarray) -> Points:
        mean, deviation = float(numbers.mean()), float(numbers.std())
        if not np.isfinite(deviation):  # of numbers near the largest there are
            mean, deviation = 0.0, float(np.abs(numbers).max())
        return (mean, mean + (deviation or 1.0)), (0.0, 1.0)

    return Scaling(fit)


def quantile(points: Bins = 256) -> Scaling:
    """Normally distributed, by the quantiles of the training rows; what is beyond them is as far as the last."""

    def fit(numbers: np.ndarray) -> Points:
        from scipy.stats import norm

        x, rank = _quantiles(numbers, points)
        return x, tuple(norm.ppf(np.clip(rank, 0.5 / points, 1 - 0.5 / points)).tolist())

    return Scaling(fit, extrapolates=False)


def piecewise(bins: Bins = 16) -> Scaling:
    """The quantile, from 0 to 1, linear in each of ``bins``; for a model's ``numbers='piecewise(bins)'``."""

    def fit(numbers: np.ndarray) -> Points:
        x, rank = _quantiles(numbers, bins + 1)
        return x, tuple(np.asarray(rank).tolist())

    return Scaling(fit)


def original(own_maximum: bool = False) -> Scaling:
    """The document's: codes and numbers alike, divided by the one largest entry, less one mean, by one deviation.

    Args:
        own_maximum: as its code acts: a set of rows is divided by its own largest entry, not by training's.
    """
    return Scaling(lambda numbers: ((0.0, 1.0), (0.0, 1.0)), whole=True, own_maximum=own_maximum, least_count=1)


SCALINGS: Mapping[str, Callable[..., Scaling]] = {
    "original": original,
    "piecewise": piecewise,
    "quantile": quantile,
    "standard": standard,
}


def parse(spec: str, where: str) -> Scaling:
    """Return the scaling of a spec, as 'quantile' or 'piecewise(bins=32)'.

    Raises:
        UserError: it is none.
    """
    return specs.build(SCALINGS, spec, where)


def apply(x: tuple[float, ...], y: tuple[float, ...], numbers: np.ndarray, extrapolates: bool) -> np.ndarray:
    """Return what the map of those points makes of finite numbers, f64[N]."""
    if len(x) == 1:
        return np.full(len(numbers), y[0])
    found = np.interp(numbers, x, y)
    if not extrapolates:
        return found
    below, above = numbers < x[0], numbers > x[-1]
    found[below] = y[0] + (numbers[below] - x[0]) * ((y[1] - y[0]) / (x[1] - x[0]))
    found[above] = y[-1] + (numbers[above] - x[-1]) * ((y[-1] - y[-2]) / (x[-1] - x[-2]))
    return found


def fit_original(rows: np.ndarray) -> tuple[float, float, float]:
    """Return the largest entry, and mean and deviation of all entries divided by it; float32, as the document's."""
    rows = rows.astype(np.float32)
    largest = rows.max() or np.float32(1)
    scaled = rows / largest
    return float(largest), float(scaled.mean()), float(scaled.std()) or 1.0


def scale_as_original(rows: np.ndarray, largest: float, mean: float, deviation: float, *, own: bool) -> np.ndarray:
    """Return the rows as the document has them, f32[N, F]."""
    rows = rows.astype(np.float32)
    by = (rows.max() or np.float32(1)) if own else np.float32(largest)
    return (rows - np.float32(mean) * by) / (np.float32(deviation) * by)


def _quantiles(numbers: np.ndarray, count: int) -> tuple[tuple[float, ...], list[float]]:
    """Return different quantiles, and their ranks from 0 to 1: of numbers that several have, the middle one."""
    ranks = np.linspace(0, 1, count)
    x = np.quantile(numbers, ranks)
    different, place = np.unique(x, return_inverse=True)
    middle = np.bincount(place, weights=ranks) / np.bincount(place)
    return tuple(different.tolist()), middle.tolist()
