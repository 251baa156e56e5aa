"""A search: how values of fields are drawn, and whether some runs end before others (docs/sweeps.md); by Optuna."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from vit_jax_mixer import specs
from vit_jax_mixer.checkpoints import best
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.specs import Count, Within

Range = Callable[[Any, str], Any]  # from an Optuna trial and a field's name to a value


def uniform(low: float, high: float) -> Range:
    """A number, each as likely."""
    _check(low, high)
    return lambda trial, name: trial.suggest_float(name, low, high)


def log(low: Annotated[float, Within(1e-300)], high: float) -> Range:
    """A number above 0 whose logarithm is as likely each."""
    _check(low, high)
    return lambda trial, name: trial.suggest_float(name, low, high, log=True)


def whole(low: int, high: int) -> Range:
    """A whole number from ``low`` to ``high``, each as likely."""
    _check(low, high)
    return lambda trial, name: trial.suggest_int(name, low, high)


RANGES: Mapping[str, Callable[..., Range]] = {"uniform": uniform, "log": log, "whole": whole}


def _check(low: float, high: float) -> None:
    if not low < high:
        raise UserError(f"a range is from {low} to {high}; the first must be less.")


def range_of(values: str | Sequence[str], where: str) -> Range:
    """Return the range that a file tells: a spec of `RANGES`, or values of which each is as likely."""
    if isinstance(values, str):
        return specs.build(RANGES, values, where)
    return lambda trial, name: trial.suggest_categorical(name, [*values])


@dataclasses.dataclass(frozen=True)
class Halving:
    """Successive halving as ASHA has it (Li et al. 2020, arXiv 1810.05934): no run waits for another.

    Attributes:
        first: steps after which a run is first compared; then after ``factor`` times as many, and so on.
        factor: of the runs that came so far, the best 1 / factor go on.
    """

    first: Count
    factor: Annotated[int, Within(2, 1000)] = 3


@dataclasses.dataclass(frozen=True)
class Search:
    """The section ``search`` of a file.

    Attributes:
        ranges: by the names of fields.
        trials: how many variants are drawn; fewer, if the ranges have no more.
        method: 'random', or 'halving(first=200, factor=3)', a spec of `Halving`.
        metric: what is looked for, as ``config.checkpoint.best`` names one; '' for that field's.
        seed: of the draws.
    """

    ranges: Mapping[str, Range]
    trials: Annotated[int, Within(1, 10_000)]
    method: str = "random"
    metric: str = ""
    seed: Annotated[int, Within(0, 2**32 - 1)] = 0

    def __post_init__(self) -> None:
        if not self.ranges:
            raise UserError("search.ranges has no fields; give some, as optim.learning_rate = 'log(1e-4, 1e-2)'.")
        _ = self.halving  # what is wrong with it is said at once

    @functools.cached_property
    def halving(self) -> Halving | None:
        """Which runs end before others."""
        return specs.build({"random": lambda: None, "halving": Halving}, self.method, "search.method")

    def draw(self) -> list[dict[str, str]]:
        """Return fields and their values, as a command line has them, of each trial; the same each time."""
        study = optuna().create_study(sampler=optuna().samplers.RandomSampler(seed=self.seed))
        drawn: list[dict[str, str]] = []
        for _ in range(100 * self.trials):  # where few values are left, most are drawn in vain
            trial = study.ask()
            values = {name: _text(draw(trial, name)) for name, draw in self.ranges.items()}
            if values not in drawn:
                drawn.append(values)
            if len(drawn) == self.trials:
                break
        return drawn

    def metric_of(self, fields: Mapping[str, Any]) -> str:
        """Return the metric, with its split, for runs with these fields of a config.

        Raises:
            UserError: neither the search nor the config names one.
        """
        wanted = self.metric or fields["checkpoint"].get("best", "")
        if not wanted or not fields["data"].get("eval"):
            raise UserError("search.metric is '', and so is config.checkpoint.best, or config.data.eval; name one.")
        name = best.metric(wanted)
        return wanted if "/" in name else f"{wanted.removesuffix(name)}{fields['data']['eval']}/{name}"


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def optuna() -> Any:
    """Return the library.

    Raises:
        UserError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError("[search] needs Optuna: pip install -e '.[sweep]'.") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
