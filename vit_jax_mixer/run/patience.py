"""A metric that is followed from evaluation to evaluation, and how long it has not improved."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, NamedTuple

from vit_jax_mixer.checkpoints import best
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.specs import Count, Within


class Waited(NamedTuple):
    """What an evaluation shows of the metric."""

    step: int  # of the evaluation
    since: int  # of the last improvement; 0 for none yet
    times: int  # evaluations since then, this one with them


@dataclasses.dataclass(frozen=True)
class Patience:
    """What follows from the evaluations alone, which the run's log keeps.

    So a run that was stopped and goes on finds the same at the same steps as one that was not.

    Attributes:
        metric: of the evaluation, as ``config.checkpoint.best`` names one ('min test/skill' where the name does
            not say the direction); '' for none, and nothing follows.
        patience: evaluations, one after another, that may be no improvement; something is done after the last.
        min_delta: by how much a better value must be better.
    """

    section: ClassVar[str]  # of the config

    metric: str = ""
    patience: Count = 10
    min_delta: Annotated[float, Within(0)] = 0.0

    def waited(self, evaluations: Mapping[int, best.Scores], every: int = 1) -> Iterator[Waited]:
        """Yield what each of these evaluations, by step, shows.

        One that lacks the metric, as one that is not due each time, does not count; nor does one that comes not
        ``every`` so many steps, as that at the end of a run which went on after it.
        """
        name, least, since, count = best.metric(self.metric), -float("inf"), 0, 0
        for step in sorted(evaluations) if self.metric else ():
            if step % every or name not in evaluations[step]:
                continue
            value = best.value(evaluations[step], self.metric)
            if value > least + self.min_delta:
                least, since, count = value, step, 0
            else:
                count += 1
            yield Waited(step, since, count)

    def check(self, evaluations: Mapping[int, best.Scores], start: int, every: int) -> None:
        """Raise a `UserError` if a run that goes on from ``start`` has lost the evaluations that it had."""
        if self.metric and start >= every and not evaluations:
            raise UserError(
                f"config.{self.section} decides by all evaluations, but metrics.jsonl has none of those until step "
                f"{start}; restore that file, or set config.{self.section}.metric='' and pass --change_config."
            )
