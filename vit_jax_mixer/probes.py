"""Probes: how well the classes of images can be told from frozen features, by a simple classifier.

``config.task.probe`` and ``--probe`` name them as specs joined by ``|``: ``ridge(5)|knn(20)|logistic``.
A probe is a pure function of arrays: what it draws comes from a seed of its own.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax_mixer import specs
from vit_jax_mixer.data.sources import Source
from vit_jax_mixer.data.sources.base import traits
from vit_jax_mixer.errors import UserError

TOP5_FROM = 11  # classes; with fewer, the top-5 accuracy says little
Penalty = Annotated[float, specs.Within(1e-12, 1e12)]
TEST_ROWS, TRAIN_ROWS = 1024, 16_384  # of a block; they bound the memory that `nearest` takes on the device

# (training features f32[M, C], labels i32[M], test features f32[T, C], K) -> scores [b, K], block by block
Scores = Callable[[np.ndarray, np.ndarray, np.ndarray, int], Iterator[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Probe:
    """A classifier of features.

    Attributes:
        name: of its metric.
        scores: learns from training features and yields the scores of test features, in order; a
            class that cannot be the answer has -inf.
        every: it is tried in each so-many-th evaluation of a training, and in the last.
    """

    name: str
    scores: Scores
    every: int = 1


def parse(text: str, where: str) -> tuple[Probe, ...]:
    """Return the probes of specs joined by ``|``; none for ''.

    Raises:
        UserError: one is not known, does not work, or has the name of another.
    """
    found = tuple(specs.build(PROBES, part, where) for part in text.split("|")) if text else ()
    names = [probe.name for probe in found]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{where}: two of {text!r} give the metric {name}; leave one out.")
    return found


def evaluate(
    probes: Sequence[Probe],
    train_features: Any,
    train_labels: Any,
    test_features: Any,
    test_labels: Any,
    num_classes: int,
) -> dict[str, float]:
    """Return each probe's accuracy by its name, and the top-5 one as NAME_top5 if K > 10.

    Features that are not finite end no training: such an example is not learnt from, and counts as
    wrong where it is tried; so do all where nothing is left to learn from.

    Args:
        probes: from `parse`.
        train_features: f32[M, C] that they learn from.
        train_labels: i32[M], of 0 to K - 1.
        test_features: f32[T, C] that they are tried on.
        test_labels: i32[T].
        num_classes: K.
    """
    train, test = (np.asarray(x, np.float32) for x in (train_features, test_features))
    labels, truth = (np.asarray(x, np.int64) for x in (train_labels, test_labels))
    learnt, answered = (np.isfinite(x).all(1) for x in (train, test))
    if not learnt.all():
        train, labels = train[learnt], labels[learnt]
    tried = test if answered.all() else test[answered]
    metrics = {}
    for probe in probes:
        ranks = np.full(len(truth), num_classes)
        if len(train) and len(tried):
            ranks[answered] = _ranks(probe.scores(train, labels, tried, num_classes), truth[answered])
        metrics[probe.name] = float(np.mean(ranks == 0))
        if num_classes >= TOP5_FROM:
            metrics[f"{probe.name}_top5"] = float(np.mean(ranks < 5))
    return metrics


def ridge(
    shots: specs.Count = 5, l2: Penalty = 1024.0, seed: Annotated[int, specs.Within(0)] = 0, every: specs.Count = 1
) -> Probe:
    """Few-shot linear regression in closed form, as the Mixer paper (arXiv 2105.01601, section 3) reports it.

    The regression is to the targets {-1, 1}^K (arXiv 2010.11929, section 4.1), of features that are
    standardised on the shots, in float64, with a bias that is not regularised.

    Args:
        shots: examples of each class: the first of a seeded order, or all of a class that has fewer.
        l2: times the sum of squared weights is added to the sum of squared errors. The default is
            the fixed value of the public few-shot evaluations of the papers' authors (big_vision).
        seed: of the order.
        every: see `Probe`.
    """

    def scores(train: np.ndarray, labels: np.ndarray, test: np.ndarray, num_classes: int) -> Iterator[np.ndarray]:
        from sklearn.linear_model import Ridge

        chosen = few(labels, shots, seed)
        shown = train[chosen].astype(np.float64)
        standardise = _standardiser(shown)
        targets = np.full((len(chosen), num_classes), -1.0)
        targets[np.arange(len(chosen)), labels[chosen]] = 1.0
        # 'cholesky' solves for the weights [C, C] or for the examples [M, M], whichever is smaller.
        model = Ridge(alpha=l2, solver="cholesky").fit(standardise(shown), targets)
        for block in _blocks(test, TEST_ROWS):
            yield model.predict(standardise(block.astype(np.float64))).reshape(-1, num_classes)

    return Probe(f"ridge_{shots}shot", scores, every)


def knn(
    k: specs.Count = 20, temperature: Annotated[float | None, specs.Within(1e-6, 1e6)] = 0.07, every: specs.Count = 1
) -> Probe:
    """Weighted vote of the nearest neighbours by cosine similarity, as DINO's (arXiv 2104.14294, section 4.2).

    Args:
        k: neighbours, or all training examples where those are fewer.
        temperature: T of a neighbour's weight, exp(similarity / T); None for a weight of 1 each.
        every: see `Probe`.
    """

    def scores(train: np.ndarray, labels: np.ndarray, test: np.ndarray, num_classes: int) -> Iterator[np.ndarray]:
        similarities, neighbours = nearest(train, test, min(k, len(train)))
        for near, who in zip(_blocks(similarities, TEST_ROWS), _blocks(neighbours, TEST_ROWS), strict=True):
            # The nearest has the weight 1; so no temperature makes a weight overflow.
            weights = (
                np.exp((near.astype(np.float64) - near[:, :1]) / temperature) if temperature else np.ones(who.shape)
            )
            votes = np.zeros((len(who), num_classes))
            np.add.at(votes, (np.arange(len(who))[:, None], labels[who]), weights)
            yield np.where(votes > 0, votes, -np.inf)

    return Probe(f"knn_{k}", scores, every)


def logistic(l2: Penalty = 1e-3, max_iter: specs.Count = 100, every: specs.Count = 1) -> Probe:
    """Multinomial logistic regression of all training features, standardised, by L-BFGS on the first device.

    It holds the features f32[M, C] and a few arrays f32[M, K] there, and an iteration takes about
    4 * M * C * K operations: 10,000 examples of 768 features and 1000 classes are fine on a CPU;
    a whole ImageNet (about 30 GB) wants a large accelerator.

    Args:
        l2: half of it, times the sum of squared weights, is added to the mean cross-entropy.
        max_iter: iterations at most; fewer if the gradient's norm falls to 1e-4.
        every: see `Probe`.
    """

    def scores(train: np.ndarray, labels: np.ndarray, test: np.ndarray, num_classes: int) -> Iterator[np.ndarray]:
        standardise = _standardiser(train)
        with jax.debug_nans(False):  # the line search leaves such out by itself
            fitted = _fit_logistic(standardise(train), labels.astype(np.int32), num_classes, l2, max_iter)
        weights, bias = jax.device_get(fitted)
        return (standardise(block) @ weights + bias for block in _blocks(test, TEST_ROWS))

    return Probe("logistic", scores, every)


PROBES: Mapping[str, Callable[..., Probe]] = {"ridge": ridge, "knn": knn, "logistic": logistic}


def few(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Return the indices of the first examples of each class, in a seeded order: i64[K * shots] or fewer."""
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    _, first, which = np.unique(labels[by_class], return_index=True, return_inverse=True)
    return by_class[np.arange(len(labels)) - first[which] < shots]


def nearest(train: np.ndarray, test: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the most similar training features of each test feature, on the first device.

    Training features pass through the device once, block by block, and each test feature keeps the
    best so far: the device never holds more than a block of similarities.

    Args:
        train: f32[M, C], M >= k.
        test: f32[T, C].
        k: how many.

    Returns:
        Cosine similarities f32[T, k], the highest first, and indices i32[T, k]; of equals, the first.
    """
    size = min(TRAIN_ROWS, len(train))
    tests = [jnp.asarray(block) for block in _blocks(test, TEST_ROWS)]
    best = [(jnp.full((len(block), k), -jnp.inf), jnp.zeros((len(block), k), jnp.int32)) for block in tests]
    for start in range(0, len(train), size):
        block = train[start : start + size]
        padded = jnp.asarray(np.pad(block, ((0, size - len(block)), (0, 0))))  # one shape, compiled once
        best = [_nearer(old, rows, padded, start, len(block)) for old, rows in zip(best, tests, strict=True)]
    similarities, indices = zip(*jax.device_get(best), strict=True)
    return np.concatenate(similarities), np.concatenate(indices)


@jax.jit
def _nearer(
    best: tuple[jax.Array, jax.Array], test: jax.Array, train: jax.Array, start: jax.Array, count: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the best of those so far, [b, k], and of the first ``count`` rows of the block at ``start``."""
    unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-30)
    # Accelerators would round the factors, so that neighbours differed between devices.
    similarities = jnp.matmul(unit(test), unit(train).T, precision="highest")
    rows = jnp.arange(len(train), dtype=jnp.int32)[None]
    found, where = jax.lax.top_k(jnp.where(rows < count, similarities, -jnp.inf), min(best[0].shape[1], len(train)))
    candidates = jnp.concatenate([best[0], found], 1), jnp.concatenate([best[1], where + start], 1)
    found, where = jax.lax.top_k(candidates[0], best[0].shape[1])
    return found, jnp.take_along_axis(candidates[1], where, 1)


@partial(jax.jit, static_argnames="num_classes")
def _fit_logistic(
    features: jax.Array, labels: jax.Array, num_classes: int, l2: jax.Array, max_iter: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the weights f32[C, K] and bias f32[K] of the lowest cross-entropy, which begin at 0."""

    def loss(params: tuple[jax.Array, jax.Array]) -> jax.Array:
        weights, bias = params
        logits = jnp.matmul(features, weights, precision="highest") + bias[None]
        errors = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(errors) + l2 / 2 * jnp.sum(weights**2)

    optimizer = optax.lbfgs()
    of_state = optax.value_and_grad_from_state(loss)  # the line search has computed both already

    def step(carry: Any) -> Any:
        params, state, count, _ = carry
        value, gradient = of_state(params, state=state)
        updates, state = optimizer.update(gradient, state, params, value=value, grad=gradient, value_fn=loss)
        return optax.apply_updates(params, updates), state, count + 1, optax.tree.norm(gradient)

    start = jnp.zeros((features.shape[1], num_classes)), jnp.zeros(num_classes)
    goes_on = lambda carry: (carry[2] < max_iter) & (carry[3] > 1e-4)
    return jax.lax.while_loop(goes_on, step, (start, optimizer.init(start), 0, jnp.inf))[0]


def _standardiser(features: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return what brings features [M, C] to mean 0 and deviation 1, and a constant one to 0."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(features)
    return lambda rows: np.asarray(scaler.transform(rows))


def _blocks(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _ranks(blocks: Iterator[np.ndarray], truth: np.ndarray) -> np.ndarray:
    """Return how many classes are ahead of the true one, of equals those with a lower number; K where it has -inf."""
    ranks, start = [], 0
    for scores in blocks:
        label = truth[start : start + len(scores), None]
        own = np.take_along_axis(scores, label, 1)
        before = np.arange(scores.shape[1])[None] < label
        ahead = ((scores > own) | ((scores == own) & before)).sum(1)
        ranks.append(np.where(np.isfinite(own[:, 0]), ahead, scores.shape[1]))
        start += len(scores)
    return np.concatenate(ranks)


@dataclasses.dataclass(frozen=True)
class _Chosen:
    """Some examples of a source."""

    source: Source
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source.examples[int(self.indices[index])]

    def traits(self) -> Iterator[bytes]:
        yield from traits(self.source.examples)
        yield self.indices.tobytes()

    def where(self, index: int) -> str:
        return self.source.where(int(self.indices[index]))


def sample(source: Source, count: int) -> Source:
    """Return ``count`` examples of a source, or all if there are fewer; the same ones for every run."""
    if count >= len(source.examples):
        return source
    indices = np.sort(np.random.default_rng(0).choice(len(source.examples), count, replace=False))
    chosen = _Chosen(source, indices)
    return Source(chosen, source.class_names, chosen.where)
