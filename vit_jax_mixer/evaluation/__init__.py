"""How good a model is on labelled examples."""

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from vit_jax_mixer.data.pipeline import Dataset, Loader
from vit_jax_mixer.data.sources import Source
from vit_jax_mixer.data.sources.base import RandomAccess
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.run.inference import Inference
from vit_jax_mixer.trained import Trained


def evaluate(
    trained: Trained,
    source: Source,
    where: str,
    *,
    batch_size: int,
    by_number: bool = False,
    skip_bad: bool = False,
    on_skipped: Callable[[str], None] = lambda reason: None,
) -> Any:
    """Evaluate a model on labelled examples.

    Args:
        trained: the model.
        source: the examples.
        where: the name of the data, for messages.
        batch_size: about how many examples are run at a time.
        by_number: the data's labels are the model's by number, whatever their names.
        skip_bad: leave bad examples out; or else the first one is an error.
        on_skipped: is told what is wrong with each one that is left out.

    Returns:
        What the model's predictor makes of the rows, `predictors.Evaluated`.

    Raises:
        UserError: the model gives no answers, the labels do not match, or an example is bad.
    """
    predictor = trained.about
    if lack := predictor.lack():
        raise UserError(f"the model {lack}; evaluate its features, with --probe, or another.")
    labelled = predictor.labelled(source, where, by_number=by_number)
    skipped: dict[int, str] = {}

    def leave_out(index: int, reason: str) -> None:
        if not skip_bad:
            raise UserError(reason)
        skipped[index] = " ".join(reason.splitlines())
        on_skipped(skipped[index])

    batches = predictor.batches(source, leave_out)
    dataset = Dataset(source, labelled, skip_bad=skip_bad, batches=batches)

    def skip(dataset: Dataset, index: int) -> None:
        if index not in skipped:  # padding repeats the last example
            leave_out(index, dataset.fault(index))

    def outputs(params: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return predictor.scores(trained.outputs(params, batch[predictor.field]), batch["label"])

    inference = Inference(trained, outputs, batch_size, {"label": predictor.label()})
    found_rows = inference.rows(dataset, Loader(-1, -1, 2), skip)
    begun = time.perf_counter()
    rows = _together(found_rows)
    seconds = time.perf_counter() - begun
    found = predictor.evaluated(rows, labelled, len(dataset) / seconds, tuple(skipped.values()))

    if skipped:  # from here on, the examples are those that were read
        kept, every = np.setdiff1d(np.arange(len(dataset)), list(skipped)), source
        source = dataclasses.replace(
            every, examples=_Some(every.examples, kept), where=lambda i: every.where(int(kept[i]))
        )

    def scores(examples: RandomAccess) -> dict[str, np.ndarray]:
        more = Dataset(dataclasses.replace(source, examples=examples), labelled)
        return _together(inference.rows(more, Loader(-1, -1, 2), skip))

    return predictor.explained(found, source, scores)


@dataclasses.dataclass(frozen=True)
class _Some:
    """Some of the examples, by their indices."""

    examples: RandomAccess
    chosen: np.ndarray

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        return self.examples[int(self.chosen[index])]


def _together(parts: Iterable[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    kept = list(parts)
    return {name: np.concatenate([part[name] for part in kept]) for name in kept[0]}
