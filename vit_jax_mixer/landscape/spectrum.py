"""Eigenvalues of a symmetric matrix that is known by its products with vectors alone.

Lanczos with full reorthogonalisation, and stochastic Lanczos quadrature for the density of all eigenvalues
(Ghorbani et al. 2019, arXiv 1901.10159, algorithm 1 and section 2).
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

Product = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Ritz:
    """What one run of Lanczos found: k values that stand for the eigenvalues that the start has a part in.

    Attributes:
        values: f64[k], ascending.
        weights: f64[k], the share of the start's square in each; they sum to 1.
        errors: f64[k]; an eigenvalue lies about so far from each at most, rounding and all.
    """

    values: np.ndarray
    weights: np.ndarray
    errors: np.ndarray


def lanczos(product: Product, start: np.ndarray, steps: int, tell: Callable[[int], None] = lambda done: None) -> Ritz:
    """Return the Ritz values of at most ``steps`` products.

    It ends earlier where the vectors span all that the matrix makes of the start: then they are exact.

    Args:
        product: the matrix times a vector [P].
        start: [P], not zero; its type is that of the vectors that are kept.
        steps: products, and vectors in memory; at most P are of use.
        tell: is told how many products are done.
    """
    steps = min(steps, start.size)
    basis = np.zeros((steps, start.size), start.dtype)
    alphas, betas = np.zeros(steps), np.zeros(steps)
    vector, largest, done = start / np.linalg.norm(start), 0.0, 0
    for i in range(steps):
        basis[i] = vector
        after = np.asarray(product(basis[i]), np.float64)
        alphas[i] = after @ basis[i].astype(np.float64)
        largest = max(largest, float(np.linalg.norm(after)))
        for _ in range(2):  # once leaves the rounding errors of what it takes away
            after = after - (basis[: i + 1] @ after.astype(start.dtype)) @ basis[: i + 1]
        betas[i] = np.linalg.norm(after)
        done = i + 1
        tell(done)
        if betas[i] <= 10 * np.finfo(start.dtype).eps * largest:  # nothing is left but rounding
            betas[i] = 0
            break
        vector = after / betas[i]
    between = betas[: done - 1]
    values, vectors = np.linalg.eigh(np.diag(alphas[:done]) + np.diag(between, 1) + np.diag(between, -1))
    rounding = 10 * np.finfo(start.dtype).eps * largest
    return Ritz(values, vectors[0] ** 2, betas[done - 1] * np.abs(vectors[-1]) + rounding)


def negative_share(found: Sequence[Ritz]) -> float:
    """Return the share of negative eigenvalues among all, as the mean over the starts estimates it.

    The sign of those within 1e-6 of the largest magnitude is that of rounding errors: they are not counted.
    """
    least = 1e-6 * max(float(np.abs(one.values).max()) for one in found)
    return float(np.mean([one.weights[one.values < -least].sum() for one in found]))


def density(found: Sequence[Ritz], points: int = 400, width: float = 0.01) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues f64[points] and the density f64[points] there, each Ritz value a Gaussian.

    Args:
        found: of several random starts.
        points: of the curve.
        width: standard deviation of a Gaussian, as a share of the range of all values.
    """
    low, high = min(one.values[0] for one in found), max(one.values[-1] for one in found)
    deviation = width * (high - low) or 1.0
    at = np.linspace(low - 4 * deviation, high + 4 * deviation, points)
    bells = [
        np.exp(-(((at[:, None] - one.values) / deviation) ** 2) / 2) @ one.weights / (deviation * np.sqrt(2 * np.pi))
        for one in found
    ]
    return at, np.mean(bells, 0)


def starts(size: int, count: int, dtype: np.dtype, seed: int) -> list[np.ndarray]:
    """Return ``count`` vectors [size] of random signs, each of which meets all eigenvectors alike on average."""
    rng = np.random.default_rng(seed)
    return [rng.choice(np.array([-1, 1], dtype), size) for _ in range(count)]
