"""Run model.stablehlo, with jax and flatbuffers alone: `python run_stablehlo.py inputs.npy [outputs.npz]`.

inputs.npy holds b examples, as images u8[b, h, w, c], prepared as MODEL_CARD.md says; b may be any number.
Of each, the likeliest class is printed, or the numbers that the model says, and outputs.npz takes all of it.
In Python: `outputs = load(folder)(inputs)`.
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


def load(folder: str | Path = HERE, name: str = "model") -> Callable[[Any], dict[str, jax.Array]]:
    """Return the model in the folder: a function from b examples to arrays of b rows by name.

    It is compiled once for each b. The program takes the weights, f32 by name, as its first argument. A model of
    several programs, as one that writes text, has each of them by name; it takes a dict where it takes more than one.
    """
    program = jax.export.deserialize(bytearray((Path(folder) / f"{name}.stablehlo").read_bytes()))
    with np.load(Path(folder) / "model.npz", allow_pickle=False) as file:
        weights = jax.device_put(dict(file))
    run = jax.jit(program.call)
    return lambda inputs: run(weights, inputs)


def main(arguments: list[str]) -> None:
    """Print the likeliest class of each example, or its numbers, and write the outputs."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    if not 1 <= len(arguments) <= 2:
        sys.exit("usage: python run_stablehlo.py inputs.npy [outputs.npz]")
    inputs = np.load(arguments[0], allow_pickle=False)
    outputs: dict[str, Any] = {name: np.asarray(value) for name, value in load()(inputs).items()}
    names = json.loads((HERE / "model.json").read_text(encoding="utf-8")).get("class_names")
    for row in outputs.get("probabilities", ()):
        best = int(row.argmax())
        name = names[best] if names else str(best)
        shown = "".join(
            c if c.isprintable() else ascii(c)[1:-1] for c in name
        )  # a terminal would obey other characters
        print(f"{100 * row[best]:6.2f} %  {shown}")
    numbers = {name: value for name, value in outputs.items() if value.ndim == 1}
    for i in range(len(inputs) if numbers else 0):
        print("  ".join(f"{name} {value[i]:.6g}" for name, value in numbers.items()))
    if len(arguments) == 2:
        np.savez(arguments[1], **outputs)


if __name__ == "__main__":
    main(sys.argv[1:])
