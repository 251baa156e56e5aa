"""Which of a run's checkpoints is the best: their scores on disk, and whether higher or lower is better.

A leaf of the package: a run keeps by it, and who reads a workdir chooses by it.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

from vit_jax_mixer import files
from vit_jax_mixer.checkpoints import checksums
from vit_jax_mixer.errors import UserError

FILE = checksums.SCORES
Scores = Mapping[str, float]
# A metric is lowered if a word of its last part is one of these, or ends in one of the first three.
_ENDS = ("loss", "error", "entropy")
_LOWER = ("err", "mse", "rmse", "mae", "mape", "nll", "perplexity", "distance", "fid", "brier", "ece", "wer", "cer")


def metric(best: str) -> str:
    """Return the metric that ``config.checkpoint.best`` names, as 'test/skill' of 'min test/skill'."""
    return re.sub(r"^(min|max)\s+", "", best.strip())


def is_lowered(best: str) -> bool:
    """Say whether less of a metric is better.

    It is of 'min NAME', it is not of 'max NAME'; else the name says it: losses, errors and their like
    (``test/loss``, ``val/top1_error_ema``, ``test/rmse``) are lowered, all others raised.
    """
    if best.strip() != metric(best):
        return best.strip().startswith("min")
    words = re.findall("[a-z]+", best.rpartition("/")[2].lower())
    return any(word in _LOWER or word.endswith(_ENDS) for word in words)


def value(scores: Scores, best: str) -> float:
    """Return what the best checkpoint has most of; -inf without a finite score, which is never the best."""
    score = scores.get(metric(best), math.nan)
    if not math.isfinite(score):
        return -math.inf
    return -score if is_lowered(best) else score


def step(scores: Mapping[int, Scores], best: str) -> int | None:
    """Return the step with the best score, of equal ones the newest; None if ``best`` is '' or none has one."""
    scored = [step for step in scores if value(scores[step], best) > -math.inf]
    return max(scored, key=lambda step: (value(scores[step], best), step), default=None)


def steps(folder: Path) -> list[int]:
    """Return the steps of a folder ``checkpoints``, in order; whatever else lies there is passed over."""
    return sorted(int(path.name) for path in folder.iterdir() if is_step(path) and (path / "default").is_dir())


def is_step(path: Path) -> bool:
    """Say whether a run gives a checkpoint such a name."""
    return re.fullmatch("0|[1-9][0-9]{0,17}", path.name) is not None


def read(folder: Path) -> dict[str, float]:
    """Return the scores of a checkpoint; {} if it was not evaluated.

    Raises:
        UserError: they are damaged.
    """
    path, old = folder / FILE, folder / "metrics/metrics"  # the latter is Orbax's, of earlier runs
    if not (path.exists() or old.exists()):
        return {}
    found = checksums.read_json(path) if path.exists() else files.read_json(old)
    if not all(isinstance(score, int | float) for score in found.values()):
        raise UserError(f"{path if path.exists() else old} is damaged (a score is no number); restore or remove it.")
    return found


def write(folder: Path, scores: Scores) -> None:
    """Write the scores of a checkpoint, at once or not at all.

    Raises:
        OSError: they cannot be written.
    """
    checksums.write_json(folder / FILE, scores)
