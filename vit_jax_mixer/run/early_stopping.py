"""A run that ends before ``config.steps``, because a metric no longer improves (``config.early_stopping``)."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated

from vit_jax_mixer.checkpoints import best
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.specs import Count, Within


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """Ends a run by patience (Goodfellow, Bengio & Courville 2016, Deep Learning, algorithm 7.1).

    It is a function of the evaluations alone, which the run's log keeps: so a run that was stopped and goes on
    ends at the same step as one that was not. The learning rate's schedule stays that of ``config.steps``.

    Attributes:
        metric: of the evaluation, as ``config.checkpoint.best`` names one ('min test/skill' where the name does
            not say the direction); '' for a run that ends at ``config.steps``.
        patience: evaluations, one after another, that may be no improvement; the last of them ends the run.
        min_delta: by how much a better value must be better.
    """

    metric: str = ""
    patience: Count = 10
    min_delta: Annotated[float, Within(0)] = 0.0

    def reason(self, evaluations: Mapping[int, best.Scores], every: int = 1) -> str:
        """Return why the run ends after these evaluations, by step; '' if it goes on.

        One that lacks the metric, as one that is not due each time, does not count; nor does one that comes not
        ``every`` so many steps, as that at the end of a run which went on after it.
        """
        if not self.metric:
            return ""
        name, least, since, waited = best.metric(self.metric), -float("inf"), 0, 0
        for step in sorted(evaluations):
            if step % every or name not in evaluations[step]:
                continue
            value = best.value(evaluations[step], self.metric)
            if value > least + self.min_delta:
                least, since, waited = value, step, 0
            else:
                waited += 1
            if waited == self.patience:
                at = f"since step {since}, when it was {evaluations[since][name]:.4g}" if since else "at all"
                return f"stopped early after step {step}: {name} has not improved {at} ({waited} evaluations)"
        return ""

    def check(self, evaluations: Mapping[int, best.Scores], start: int, every: int) -> None:
        """Raise a `UserError` if a run that goes on from ``start`` has lost the evaluations that it had."""
        if self.metric and start >= every and not evaluations:
            raise UserError(
                "config.early_stopping decides by all evaluations, but metrics.jsonl has none of those until step "
                f"{start}; restore that file, or set config.early_stopping.metric='' and pass --change_config."
            )
