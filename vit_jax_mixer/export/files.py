"""The files of an export: each is written, run on random inputs, and compared with the model itself."""

import dataclasses
import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
from flax import traverse_util

from vit_jax_mixer import pretrained
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.export import run_stablehlo
from vit_jax_mixer.pretrained import formats
from vit_jax_mixer.trained import Trained

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
TOLERANCE = 1e-4  # of the largest value of an output
ONE_FILE = 1_900_000_000  # bytes of weights in model.onnx itself, which protobuf limits to 2 GiB
Outputs = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Written:
    """What was written of a format.

    Attributes:
        names: of the files; the first is the one to name.
        note: what a user should know.
        difference: the largest from the model, relative to the largest value of an output; None if
            the file cannot be run here.
    """

    names: tuple[str, ...]
    note: str
    difference: float | None = None


def write_stablehlo(trained: Trained, folder: Path, platforms: tuple[str, ...]) -> Written:
    """Write the program, its weights and what runs them.

    The weights are an argument: inside the program, those of Mixer-L/16 took 12 GB to compile, half
    a minute for each batch size.
    """
    weights = pretrained.flatten(trained.params)
    like = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in weights.items()}
    example = trained.about.input()
    inputs = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("b"), *example.shape), example.dtype)
    exported = jax.export.export(jax.jit(_flat(trained)), platforms=platforms)(like, inputs)
    (folder / "model.stablehlo").write_bytes(exported.serialize())
    formats.write(folder / "model.npz", weights)
    source = Path(run_stablehlo.__file__)
    (folder / source.name).write_bytes(source.read_bytes())
    # JAX calls a GPU by its maker here, and by 'gpu' there.
    here = {"gpu": {"cuda", "rocm"}}.get(jax.default_backend(), {jax.default_backend()})
    difference = None
    if here & set(platforms):
        run = run_stablehlo.load(folder)
        difference = _largest_difference(trained, lambda inputs: jax.device_get(run(inputs)), "model.stablehlo")
    note = f"For {', '.join(platforms)}. `model.npz` holds the weights, which the program takes as an argument."
    return Written(("model.stablehlo", "model.npz", source.name), note, difference)


def write_onnx(trained: Trained, folder: Path, platforms: tuple[str, ...]) -> Written:
    """Write the model as ONNX, in two files if one cannot hold it.

    Raises:
        UserError: the model computes what is not written as ONNX here.
    """
    del platforms
    import onnx
    import onnxruntime

    from vit_jax_mixer.export import onnx_graph

    weights, name = pretrained.flatten(trained.params), f"{trained.about.field}s"
    model = onnx_graph.convert(_flat(trained), weights, name, trained.about.input())
    description = trained.about.as_json()
    properties = {pretrained.DESCRIPTION: json.dumps(description)}
    if names := description.get("class_names"):
        properties["class_names"] = json.dumps(names)
    onnx.helper.set_model_props(model, properties)
    path = folder / "model.onnx"
    apart = sum(value.nbytes for value in weights.values()) > ONE_FILE
    onnx.save_model(model, path, save_as_external_data=apart, location=f"{path.name}.data")
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(inputs: np.ndarray) -> Outputs:
        outputs = [output.name for output in session.get_outputs()]
        return dict(zip(outputs, map(np.asarray, session.run(None, {name: inputs})), strict=True))

    with jax.default_matmul_precision("highest"):  # a GPU or TPU would round more than ONNX does on a CPU
        difference = _largest_difference(trained, run, path.name)
    files = (path.name, f"{path.name}.data") if apart else (path.name,)
    note = f"Opset {onnx_graph.OPSET}, with a free batch size. Its metadata hold {' and '.join(properties)}, as JSON."
    return Written(files, note, difference)


def check_onnx() -> None:
    """Raise a `UserError` that says which package ONNX lacks here, if it lacks one."""
    for name in ("onnx", "onnxruntime"):
        if not importlib.util.find_spec(name):
            raise UserError(f"ONNX needs the package {name}; install both by: pip install onnx onnxruntime.")


def write_safetensors(trained: Trained, folder: Path, platforms: tuple[str, ...]) -> Written:
    """Write the parameters in timm's names, or in ours where timm has none."""
    del platforms
    flat, _, convention = pretrained.rename(trained.params, ".safetensors")
    formats.write(folder / "model.safetensors", flat)
    names = "timm's names and layout" if convention.startswith("timm") else "the names and layout of vit_jax_mixer"
    return Written(("model.safetensors",), f"The weights alone, in {names}.")


def _flat(trained: Trained) -> Any:
    """Return `Trained.outputs` with parameters by name."""
    return lambda weights, inputs: trained.outputs(traverse_util.unflatten_dict(weights, sep="/"), inputs)


def _largest_difference(trained: Trained, run: Any, name: str) -> float:
    """Compare a written model with `Trained.outputs`, relative to the largest value of an output.

    Raises:
        UserError: they differ.
    """
    inputs = trained.about.random_inputs(3)
    expected, found = jax.device_get(jax.jit(trained.outputs)(trained.params, inputs)), run(inputs)
    differences = [
        np.abs(found[key] - value).max() / max(np.abs(value).max(), np.finfo(np.float32).tiny)
        for key, value in expected.items()
    ]
    largest = float(np.max(differences))  # unlike Python's, NaN if one is
    if not largest <= TOLERANCE:
        raise UserError(
            f"{name} differs from the model by {largest:.1e} of the largest output, more than {TOLERANCE:.0e}, and is "
            "not kept; report it, with the versions of jax and onnxruntime."
        )
    return largest


WRITERS: Mapping[str, Callable[[Trained, Path, tuple[str, ...]], Written]] = {
    "stablehlo": write_stablehlo,
    "onnx": write_onnx,
    "safetensors": write_safetensors,
}
