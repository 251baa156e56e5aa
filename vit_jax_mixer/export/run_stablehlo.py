"""Run model.stablehlo, with jax and flatbuffers alone: `python run_stablehlo.py images.npy [outputs.npz]`.

images.npy holds u8[b, h, w, c], prepared as MODEL_CARD.md says; b may be any number. Each image's
likeliest class is printed, and outputs.npz takes all that the model says. In Python:
`outputs = load(folder)(images)`.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

HERE = Path(__file__).parent


def load(folder: str | Path = HERE) -> Callable[[Any], dict[str, jax.Array]]:
    """Return the model in the folder: a function from u8[b, h, w, c] to arrays of b rows by name.

    It is compiled once for each b. The program takes the weights, f32 by name, as its first argument.
    """
    program = jax.export.deserialize(bytearray((Path(folder) / "model.stablehlo").read_bytes()))
    with np.load(Path(folder) / "model.npz", allow_pickle=False) as file:
        weights = jax.device_put(dict(file))
    run = jax.jit(program.call)
    return lambda images: run(weights, images)


def main(arguments: list[str]) -> None:
    """Print the likeliest class of each image, and write the outputs."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    if not 1 <= len(arguments) <= 2:
        sys.exit("usage: python run_stablehlo.py images.npy [outputs.npz]")
    images = np.load(arguments[0], allow_pickle=False)
    outputs: dict[str, Any] = {name: np.asarray(value) for name, value in load()(images).items()}
    names = json.loads((HERE / "model.json").read_text(encoding="utf-8")).get("class_names")
    for row in outputs.get("probabilities", ()):
        best = int(row.argmax())
        name = names[best] if names else str(best)
        shown = "".join(
            c if c.isprintable() else ascii(c)[1:-1] for c in name
        )  # a terminal would obey other characters
        print(f"{100 * row[best]:6.2f} %  {shown}")
    if len(arguments) == 2:
        np.savez(arguments[1], **outputs)


if __name__ == "__main__":
    main(sys.argv[1:])
