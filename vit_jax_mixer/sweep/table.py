"""What became of all runs, in one table: for people, and for programs."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from vit_jax_mixer import files
from vit_jax_mixer.checkpoints import best
from vit_jax_mixer.errors import printable
from vit_jax_mixer.sweep.plan import Sweep
from vit_jax_mixer.sweep.running import Result, mean_and_deviation

TABLE, ROWS, RUNS = "table.md", "table.csv", "runs.csv"


def write(out: Path, sweep: Sweep, results: Sequence[Result]) -> str:
    """Write the three files, each at once or not at all, and return the Markdown.

    Args:
        out: the sweep's folder.
        sweep: which metrics are wanted.
        results: one for each run, in its order.
    """
    metrics = columns(sweep, results)
    fields = list(dict.fromkeys(field for one in results for field in one.run.variant.overrides))
    runs = [["variant", *fields, "seed", "status", "reason", *metrics]]
    for one in results:
        own = [one.run.variant.overrides.get(field, "") for field in fields]
        values = [repr(one.metrics[name]) if name in one.metrics else "" for name in metrics]
        runs.append([one.run.variant.name, *own, str(one.run.seed), one.status, printable(one.reason), *values])
    rows = [["variant", *fields, "runs", "failed", *(f"{m} {what}" for m in metrics for what in ("mean", "deviation"))]]
    text = [["variant", "runs", *metrics]]
    for variant in dict.fromkeys(one.run.variant.name for one in results):
        of_it = [one for one in results if one.run.variant.name == variant]
        statuses = ("complete", "failed", "ended")
        complete, failed, ended = (sum(one.status == status for one in of_it) for status in statuses)
        row, line = [], []
        for name in metrics:
            values = [one.metrics[name] for one in of_it if name in one.metrics]
            mean, deviation = mean_and_deviation(values) if values else (math.nan, math.nan)
            row += ["" if math.isnan(value) else repr(value) for value in (mean, deviation)]
            line.append("" if not values else f"{mean:.5g}" + ("" if len(values) == 1 else f" ± {deviation:.2g}"))
        overrides = of_it[0].run.variant.overrides
        rows.append([variant, *(overrides.get(field, "") for field in fields), str(complete), str(failed), *row])
        others = "".join(f", {n} {what}" for n, what in ((failed, "failed"), (ended, "ended before")) if n)
        text.append([variant, f"{complete} of {len(of_it)}{others}", *line])
    markdown = _markdown(text)
    reasons = [f"- {_cell(one.run.place)}: {_cell(one.reason)}" for one in results if one.status == "failed"]
    if reasons:
        markdown += "\nFailed:\n\n" + "\n".join(reasons) + "\n"
    for name, content in ((TABLE, markdown), (ROWS, _csv(rows)), (RUNS, _csv(runs))):
        files.write_atomically(out / name, content)
    return markdown


def best_of(sweep: Sweep, results: Sequence[Result]) -> str:
    """Return a line with the variant whose complete runs have the best mean of what a search is for; '' without."""
    name = best.metric(sweep.best)
    values: dict[str, list[float]] = {}
    for one in results:
        if one.status == "complete" and name in one.metrics:
            values.setdefault(one.run.variant.name, []).append(one.metrics[name])
    means = {variant: mean_and_deviation(found)[0] for variant, found in values.items()}
    top = max(means, key=lambda variant: best.value({name: means[variant]}, sweep.best), default="")
    return f"best: {top} with {name} {means[top]:.5g}" if top else ""


def columns(sweep: Sweep, results: Sequence[Result]) -> list[str]:
    """Return the metrics that are wanted: those of the file, or all of evaluations."""
    if sweep.metrics:
        return list(sweep.metrics)
    found = dict.fromkeys(name for one in results for name in one.metrics)
    return [name for name in found if not name.startswith(("train/", "perf/"))]


def _csv(rows: Sequence[Sequence[str]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"


def _cell(text: str) -> str:
    return printable(text).replace("|", "\\|").replace("<", "&lt;")
