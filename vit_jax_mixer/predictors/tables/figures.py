"""How good the answers for rows are, N in all; scikit-learn's figures where it has them.

It is imported where it is used: who trains on images needs none of it.
"""

import numpy as np

from vit_jax_mixer.data.tables.target import Target
from vit_jax_mixer.predictors.classification.scores import calibration_error

CRITERIA = ("accuracy", "balanced_accuracy", "f1")


def probabilities(target: Target, logits: np.ndarray) -> np.ndarray:
    """Return f64[N] of the positive class of two, or f64[N, K], for logits f32[N, K]."""
    from scipy.special import expit, softmax

    logits = logits.astype(np.float64)
    return expit(logits[:, 0]) if target.kind == "two" else softmax(logits, axis=1)


def losses(target: Target, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return f64[N]: cross-entropy, or squared distance in deviations."""
    logits = logits.astype(np.float64)
    if target.kind == "number":
        return (logits[:, 0] - labels) ** 2
    if target.kind == "two":
        return np.logaddexp(0, np.where(labels == 1, -logits[:, 0], logits[:, 0]))
    shifted = logits - logits.max(1, keepdims=True)
    return np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]


def best_threshold(probability: np.ndarray, labels: np.ndarray, criterion: str) -> float:
    """Return the threshold by which the positive class is told best; the middle one, if several are.

    Args:
        probability: f64[N], of the positive class.
        labels: i32[N], 0 or 1.
        criterion: of `CRITERIA`.
    """
    order = np.argsort(-probability, kind="stable")
    p, positive = probability[order], labels[order] == 1
    told = np.arange(len(p) + 1)  # the first so many are told to be positive
    right = np.concatenate([[0], np.cumsum(positive)])
    cut = np.concatenate([[True], p[1:] < p[:-1], [True]])  # between two that differ
    all_positive, all_negative = max(right[-1], 1), max(len(p) - right[-1], 1)
    negative_right = (len(p) - right[-1]) - (told - right)
    score = {
        "accuracy": (right + negative_right) / len(p),
        "balanced_accuracy": (right / all_positive + negative_right / all_negative) / 2,
        "f1": 2 * right / np.maximum(told + right[-1], 1),
    }[criterion]
    best = np.flatnonzero(cut & (score >= score[cut].max() - 1e-12))
    place = int(best[len(best) // 2])
    above, below = (p[place - 1] if place else 1.0), (p[place] if place < len(p) else 0.0)
    return float((above + below) / 2)


def figures(target: Target, logits: np.ndarray, labels: np.ndarray, threshold: float) -> dict[str, float]:
    """Return the figures of an evaluation; those that one class alone leaves open are left out.

    Args:
        target: what the rows were asked for.
        logits: f32[N, K].
        labels: i32[N], or f32[N] in deviations.
        threshold: least probability at which the positive class of two is told.
    """
    from sklearn import metrics

    found = {"loss": float(losses(target, logits, labels).mean())}
    if target.kind == "number":
        true, told = (side.astype(np.float64) * target.deviation + target.mean for side in (labels, logits[:, 0]))
        found |= {"mae": metrics.mean_absolute_error(true, told), "rmse": metrics.root_mean_squared_error(true, told)}
        return _floats(found | ({"r2": metrics.r2_score(true, told)} if len(true) > 1 else {}))
    p = probabilities(target, logits)
    two = target.kind == "two"
    told = (p >= threshold).astype(np.int32) if two else p.argmax(1)
    present = np.unique(labels)
    how: dict[str, object] = dict(average="binary" if two else "macro", zero_division=0)
    if not two:
        how["labels"] = present
    recalls = [float((told[labels == one] == one).mean()) for one in present]
    found |= {
        "accuracy": float((told == labels).mean()),
        "balanced_accuracy": float(np.mean(recalls)),
        "precision": metrics.precision_score(labels, told, **how),  # pyright: ignore[reportArgumentType]
        "recall": metrics.recall_score(labels, told, **how),  # pyright: ignore[reportArgumentType]
        "f1": metrics.f1_score(labels, told, **how),  # pyright: ignore[reportArgumentType]
    }
    if two:
        found["calibration_error"] = calibration_error(p, labels == 1)
        if len(present) == 2:
            found["auc"] = metrics.roc_auc_score(labels, p)
            found["average_precision"] = metrics.average_precision_score(labels, p)
    else:
        found["calibration_error"] = calibration_error(p.max(1), told == labels)
        if len(present) == p.shape[1]:
            found["auc"] = metrics.roc_auc_score(labels, p, multi_class="ovr", average="macro")
    return _floats(found)


def _floats(found: dict[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in found.items()}
