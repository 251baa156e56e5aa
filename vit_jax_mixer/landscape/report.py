"""The pictures of a landscape, and the page that shows them."""

import base64
import html
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax_mixer.errors import UserError, printable
from vit_jax_mixer.landscape import spectrum
from vit_jax_mixer.landscape.look import Found


def pictures(found: Found) -> dict[str, bytes]:
    """Return PNG files by name.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("pictures need matplotlib; pip install 'vit_jax_mixer[landscape]'.") from error

    made: dict[str, bytes] = {}

    def save(name: str, figure: Any) -> None:
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
        made[name] = file.getvalue()

    figure = Figure((6, 4), layout="constrained")
    axes = figure.subplots()
    at, density = spectrum.density(found.ritz)
    axes.semilogy(at, np.maximum(density, density.max() * 1e-7))
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set(xlabel="eigenvalue of the Hessian", ylabel="density")
    save("spectrum.png", figure)

    figure = Figure((6, 5), layout="constrained")
    axes = figure.subplots()
    grid = np.ma.masked_invalid(found.grid)
    filled = axes.contourf(found.coordinates, found.coordinates, grid.T, 30, cmap="viridis")
    axes.plot(0, 0, "w+", markersize=10)
    axes.set(xlabel="first direction", ylabel="second direction", aspect="equal")
    figure.colorbar(filled, label="loss")
    save("slice.png", figure)

    if found.frequencies:
        figure = Figure((6, 4), layout="constrained")
        axes = figure.subplots()
        last = max(len(found.frequencies) - 1, 1)
        from matplotlib import colormaps

        for i, one in enumerate(found.frequencies):
            frequency = np.linspace(0, 1, len(one), endpoint=False)
            colour = colormaps["viridis"](0.9 * i / last)
            axes.plot(frequency, one, "o-", color=colour, label=f"block {i}" if i in (0, last) else None)
        axes.set(xlabel="frequency, as a share of the highest", ylabel="log-amplitude, lowest frequency = 0")
        axes.legend()
        save("frequencies.png", figure)
    return made


_CAPTIONS = {
    "spectrum.png": "Density of the Hessian's eigenvalues, on a logarithmic scale",
    "slice.png": "The loss around the parameters (cross), along two random directions, filter-normalised",
    "frequencies.png": "What features are made of, after each block: how much less of a frequency than of the lowest",
}


def page(given: Mapping[str, str], found: Found, files: Mapping[str, bytes]) -> str:
    """Return one HTML page that needs no other file.

    Args:
        given: what was looked at, by name.
        found: the numbers.
        files: of `pictures`.
    """
    (value, error), *_ = found.top()
    rows = {
        **given,
        "loss": f"{found.loss:.6g} (mean of {found.examples:,} training examples; augmentation and dropout fixed)",
        "parameters": f"{found.parameters:,}",
        "largest eigenvalue": f"{value:.6g} (off by {error:.1g} at most, but for rounding)",
        "the next": ", ".join(f"{value:.4g}" for value, _ in found.top()[1:]),
        "smallest": f"{min(one.values[0] for one in found.ritz):.4g}",
        "share of negative eigenvalues": f"{100 * spectrum.negative_share(found.ritz):.1f} % (estimated)",
    }
    shown = lambda text: html.escape(printable(text))
    table = "\n".join(f"<tr><th>{shown(name)}</th><td>{shown(text)}</td></tr>" for name, text in rows.items())
    figures = "\n".join(
        f'<figure><img alt="{_CAPTIONS[name]}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'
        f"<figcaption>{_CAPTIONS[name]}</figcaption></figure>"
        for name, data in files.items()
    )
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Loss landscape</title>
<style>
body {{ font: 16px/1.4 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
th {{ text-align: left; font-weight: normal; color: #555; padding-right: 1.5rem; vertical-align: top }}
td {{ overflow-wrap: anywhere }}
figure {{ margin: 2rem 0 }}
img {{ max-width: 100% }}
figcaption {{ color: #555 }}
</style>
<h1>Loss landscape</h1>
<table>
{table}
</table>
{figures}
</html>
"""
