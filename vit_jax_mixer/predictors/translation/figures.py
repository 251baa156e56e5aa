"""BLEU and chrF, as sacrebleu counts them (Post 2018, arXiv 1804.08771), and how many translations are as given."""

import functools
import importlib
from collections.abc import Sequence
from typing import Any

from vit_jax_mixer.errors import UserError


@functools.cache
def _metrics() -> dict[str, Any]:
    try:
        metrics = importlib.import_module("sacrebleu.metrics")
    except ModuleNotFoundError as error:
        raise UserError("text needs the packages of the extra 'text'; run: pip install -e '.[text]'.") from error
    return {"bleu": metrics.BLEU(force=True), "chrf": metrics.CHRF()}


def figures(translations: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return BLEU and chrF of the corpus, from 0 to 100, and the share of translations that are the reference."""
    found = {name: metric.corpus_score(translations, [references]).score for name, metric in _metrics().items()}
    same = sum(map(str.__eq__, translations, references))
    return {**found, "exact_match": same / len(references)}


def signatures() -> dict[str, str]:
    """Return how BLEU and chrF were counted, to be told with them; there must have been `figures` before."""
    return {name: str(metric.get_signature()) for name, metric in _metrics().items()}
