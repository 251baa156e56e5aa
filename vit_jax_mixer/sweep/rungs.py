"""Which runs of a search end before others: decided by Optuna, and kept in a file beside the runs."""

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_jax_mixer.checkpoints import best
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.sweep.plan import Run
from vit_jax_mixer.sweep.search import Halving, optuna

FILE = "halving.jsonl"  # Optuna's journal


class Rungs:
    """Compares each run, when it comes to a rung, with those that came before it."""

    def __init__(self, folder: Path, halving: Halving, metric: str) -> None:
        """Go on with what a folder has of an earlier call.

        Args:
            folder: the sweep's.
            halving: where the rungs are.
            metric: by which runs are compared, as ``config.checkpoint.best`` names one.
        """
        library, path = optuna(), folder / FILE
        backend = library.storages.journal.JournalFileBackend(str(path))
        pruner = library.pruners.SuccessiveHalvingPruner(min_resource=halving.first, reduction_factor=halving.factor)
        try:
            self._study = library.create_study(
                storage=library.storages.JournalStorage(backend),
                study_name=f"{metric}, {halving}",  # with other rungs, what is known is of no use
                pruner=pruner,
                direction="maximize",
                load_if_exists=True,
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}); remove it: runs are then compared anew.") from error
        self._library, self._metric = library, metric
        self._lock = threading.Lock()  # runs at the same time ask in threads of their own

    def reason(self, run: Run) -> str:
        """Return why a run ended before others; '' if it did not."""
        trial = self._known(run)
        return self._said(trial) if trial and trial.state.name == "PRUNED" else ""

    def compare(self, run: Run, evaluations: Mapping[int, Mapping[str, float]], steps: int) -> str:
        """Take all evaluations so far, by step, of a run of so many, and return why it ends; '' if it goes on."""
        with self._lock:
            if reason := self.reason(run):
                return reason
            trial = self._trial(run)
            name = best.metric(self._metric)
            for step in sorted(evaluations):
                if step in self._known(run).intermediate_values or name not in evaluations[step]:
                    continue
                trial.report(best.value(evaluations[step], self._metric), step)
                if step < steps and trial.should_prune():
                    self._study.tell(trial, state=self._library.trial.TrialState.PRUNED)
                    break
            return self.reason(run)

    def _known(self, run: Run) -> Any:
        key = _key(run)
        return next((t for t in self._study.get_trials(deepcopy=False) if t.user_attrs.get("run") == key), None)

    def _trial(self, run: Run) -> Any:
        if known := self._known(run):
            return self._library.trial.Trial(self._study, known._trial_id)
        trial = self._study.ask()
        trial.set_user_attr("run", _key(run))
        return trial

    def _said(self, trial: Any) -> str:
        step = max(trial.intermediate_values)
        value = trial.intermediate_values[step] * (-1 if best.is_lowered(self._metric) else 1)
        return f"ended after step {step}: others had a better {best.metric(self._metric)} than {value:.4g} there"


def _key(run: Run) -> str:
    """Return what tells a run from others, so that a changed file has others."""
    return json.dumps([run.place, run.fields], sort_keys=True)
