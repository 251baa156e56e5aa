"""Whether a teacher tells images from each other, by figures from 0 to 1."""

from collections.abc import Mapping

import numpy as np

FLAT, SAME = 0.9999, 1e-3  # figures beyond which it does not


def figures(features: np.ndarray, entropies: np.ndarray, outputs: np.ndarray, prototypes: int) -> dict[str, float]:
    """Return three figures of a teacher on T examples.

    * ``teacher_entropy``: mean entropy of its answers, as a share of the largest; 1 where it is undecided about all.
    * ``output_entropy``: entropy, over the examples, of which output is the likeliest, as a share of the largest; 0
      where it is the same one for all.
    * ``feature_deviation``: deviation of features of length 1 about their mean; 0 where they are the same for all.

    Args:
        features: f32[T, C].
        entropies: f32[T], as shares of the largest.
        outputs: i32[T], the likeliest.
        prototypes: K, how many outputs there are.
    """
    shares = np.bincount(outputs) / len(outputs)
    used = shares[shares > 0]
    rows = features.astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    return {
        "teacher_entropy": float(np.mean(entropies)),
        "output_entropy": float(np.sum(used * np.log(1 / used)) / np.log(max(min(prototypes, len(outputs)), 2))),
        "feature_deviation": float(np.sqrt(np.mean(np.sum((rows - rows.mean(0)) ** 2, 1)))),
    }


def sentence(found: Mapping[str, float]) -> str:
    """Return what to say of these figures, and what helps; '' where nothing is wrong."""
    told = ", ".join(f"{name} {found[name]:.5g}" for name in ("teacher_entropy", "output_entropy", "feature_deviation"))
    how = f"({told}): it has collapsed, or not begun to learn; if this stays, lower"
    if found["output_entropy"] < SAME or found["feature_deviation"] < SAME:
        return f"the teacher gives all images one answer {how} config.task.centre_momentum or the learning rate."
    if found["teacher_entropy"] > FLAT:
        return f"the teacher is undecided about every image {how} config.task.teacher_temperature."
    return ""
