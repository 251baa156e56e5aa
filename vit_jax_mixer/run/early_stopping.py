"""A run that ends before ``config.steps``, because a metric no longer improves (``config.early_stopping``)."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from vit_jax_mixer.checkpoints import best
from vit_jax_mixer.run.patience import Patience


@dataclasses.dataclass(frozen=True)
class EarlyStopping(Patience):
    """Ends a run by patience (Goodfellow, Bengio & Courville 2016, Deep Learning, algorithm 7.1).

    The learning rate's schedule stays that of ``config.steps``.
    """

    section: ClassVar[str] = "early_stopping"

    def reason(self, evaluations: Mapping[int, best.Scores], every: int = 1) -> str:
        """Return why the run ends after these evaluations, as `waited` takes them; '' if it goes on."""
        for step, since, count in self.waited(evaluations, every):
            if count == self.patience:
                name = best.metric(self.metric)
                at = f"since step {since}, when it was {evaluations[since][name]:.4g}" if since else "at all"
                return f"stopped early after step {step}: {name} has not improved {at} ({count} evaluations)"
        return ""
