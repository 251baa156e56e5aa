"""How good predictions are: figures of one row an example, N in all, and K classes."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import numpy as np
import optax

# (logits f32[B, K], targets f32[B, K]) -> f32[B]
PROBABILITIES = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}
Loss = Callable[[jax.Array, jax.Array], jax.Array]
LOSSES: Mapping[str, Loss] = {
    "softmax": optax.softmax_cross_entropy,
    "sigmoid": lambda logits, targets: optax.sigmoid_binary_cross_entropy(logits, targets).sum(-1),
}


@dataclasses.dataclass(frozen=True)
class PerClass:
    """What the examples of each class give.

    Attributes:
        count: i64[K], examples of the class.
        correct: i64[K], those of them that are predicted as it.
        predicted: i64[K], examples of any class that are predicted as it.
    """

    count: np.ndarray
    correct: np.ndarray
    predicted: np.ndarray

    @property
    def accuracy(self) -> np.ndarray:
        """f64[K], the share of the class that is predicted as it, its recall; NaN for a class without examples."""
        return np.divide(self.correct, self.count, out=np.full(len(self.count), np.nan), where=self.count > 0)

    @property
    def precision(self) -> np.ndarray:
        """f64[K], the share of what is predicted as the class that is of it; 0 where nothing is predicted so."""
        return self.correct / np.maximum(self.predicted, 1)

    @property
    def f1(self) -> np.ndarray:
        """f64[K], the harmonic mean of both; NaN for a class without examples."""
        shares = 2 * self.correct / np.maximum(self.count + self.predicted, 1)
        return np.where(self.count > 0, shares, np.nan)


def per_class(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> PerClass:
    """Count by class.

    Args:
        labels: i32[N].
        predictions: i32[N].
        num_classes: K.
    """
    return PerClass(
        count=np.bincount(labels, minlength=num_classes),
        correct=np.bincount(labels[labels == predictions], minlength=num_classes),
        predicted=np.bincount(predictions, minlength=num_classes),
    )


def confusion_counts(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Return i64[M, 3], rows of (label, prediction, how often), for the pairs that occur, in their order."""
    pairs, counts = np.unique(labels.astype(np.int64) * num_classes + predictions, return_counts=True)
    return np.stack([*np.divmod(pairs, num_classes), counts], axis=1)


def calibration_error(confidences: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """Return the expected calibration error (Guo et al. 2017, arXiv 1706.04599, equation 3).

    It is the mean distance of confidence and accuracy over bins of equal width, weighted by their
    examples; bin m of M is for confidences above (m - 1) / M, up to m / M.

    Args:
        confidences: f32[N], the probability of what is predicted.
        correct: bool[N].
        bins: M.
    """
    of_bin = np.clip(np.ceil(confidences.astype(np.float64) * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(of_bin, weights=correct.astype(np.float64) - confidences, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidences))


def of_batch(logits: jax.Array, labels: jax.Array, loss: Loss) -> dict[str, jax.Array]:
    """Return the arguments of `means`, and 'in_top' of `summary`, for logits f32[B, K] and labels i32[B]; traced."""
    best = jax.lax.top_k(logits, min(5, logits.shape[-1]))[1]  # i32[B, 5]
    return {
        "labels": labels,
        "predictions": best[:, 0],
        "in_top": (best == labels[:, None]).any(-1),
        "losses": loss(logits, jax.nn.one_hot(labels, logits.shape[-1])),
    }


def means(labels: np.ndarray, predictions: np.ndarray, losses: np.ndarray) -> dict[str, float]:
    """Return the loss and the accuracy, of the same arguments as `summary`: what is told while training."""
    return {"loss": float(losses.mean(dtype=np.float64)), "accuracy": float((labels == predictions).mean())}


def summary(
    labels: np.ndarray,
    predictions: np.ndarray,
    in_top: np.ndarray,
    losses: np.ndarray,
    confidences: np.ndarray,
    num_classes: int,
) -> dict[str, float]:
    """Return the figures of a whole evaluation.

    Args:
        labels: i32[N].
        predictions: i32[N], the likeliest class.
        in_top: bool[N], whether the label is among the likeliest five.
        losses: f32[N].
        confidences: f32[N], the probability of the prediction.
        num_classes: K.
    """
    told = means(labels, predictions, losses)
    found = per_class(labels, predictions, num_classes)
    return {
        "accuracy": told["accuracy"],
        "top5_accuracy": float(in_top.mean()),
        "mean_class_accuracy": float(np.nanmean(found.accuracy)),
        "mean_class_precision": float(found.precision[found.count > 0].mean()),
        "mean_class_f1": float(np.nanmean(found.f1)),
        "loss": told["loss"],
        "calibration_error": calibration_error(confidences, labels == predictions),
    }
