"""What is in a table: types, missing values, different ones, and a sheet of histograms."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vit_jax_mixer import charts, drawing
from vit_jax_mixer.data.tables import target
from vit_jax_mixer.data.tables.encoding import kind
from vit_jax_mixer.data.tables.reading import Table
from vit_jax_mixer.errors import UserError, printable

_BINS, _BARS = 24, 8
_MOST = 120  # histograms of a sheet


def lines(table: Table) -> Iterator[str]:
    """Yield a line for each column: what it holds, how much is missing, how many values differ, and some of them."""
    width = min(max(len(printable(name)) for name in table.names), 32)
    chosen = target.choose(table, "")
    yield f"  {'column':{width}}  {'holds':17}  {'missing':>7}  {'different':>9}  values"
    for name in table.names:
        codes, words = table.words(name)
        holds = kind(table, name)
        if holds == "number":
            values, _ = table.numbers(name)
            shown = "{:.4g} to {:.4g}, median {:.4g}".format(*np.nanquantile(values, [0, 1, 0.5]))
        else:
            shown = ", ".join(drawing.short(printable(word), 16) for word in words[:4])
        mark = "  <- the target, if none is named" if name == chosen else ""
        missing = 100 * float((codes < 0).mean())
        short = drawing.short(printable(name), width)
        yield f"  {short:{width}}  {holds:17}  {missing:5.1f} %  {len(words):9,}  {shown}{mark}"


def sheet(table: Table, path: Path) -> None:
    """Draw a histogram of each column, of the most frequent words or of the numbers; save as PNG.

    Raises:
        UserError: the file cannot be written.
    """
    pictures = []
    for name in table.names[:_MOST]:
        if kind(table, name) in ("number", "number of the row"):
            values, _ = table.numbers(name)
            values = values[np.isfinite(values)]
            counts, edges = np.histogram(np.clip(values, *np.quantile(values, [0.005, 0.995])), _BINS)
            pictures.append(charts.histogram(printable(name), f"{edges[0]:.3g} to {edges[-1]:.3g}", counts.tolist()))
            continue
        codes, words = table.words(name)
        counts = np.bincount(codes[codes >= 0], minlength=max(len(words), 1))
        order = np.argsort(-counts, kind="stable")[:_BARS]
        names = [printable(words[place]) for place in order if place < len(words)]
        more = f"{len(words):,} different" if len(words) > _BARS else ""
        pictures.append(charts.histogram(printable(name), more, counts[order].tolist(), names))
    try:
        charts.beside(pictures, 6).save(path, "PNG")
    except OSError as error:
        raise UserError(f"cannot write the sheet {path} ({error.strerror}); choose another --sheet.") from error
