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
from vit_jax_mixer.predictors.base import Program
from vit_jax_mixer.pretrained import formats
from vit_jax_mixer.trained import Trained

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
TOLERANCE = 1e-4  # of the largest value of an output
ONE_FILE = 1_900_000_000  # bytes of weights in model.onnx itself, which protobuf limits to 2 GiB
Inputs = Mapping[str, Any]
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
    """Write each program, the weights and what runs them.

    The weights are an argument: inside the program, those of Mixer-L/16 took 12 GB to compile, half
    a minute for each batch size.
    """
    weights = pretrained.flatten(trained.params)
    formats.write(folder / "model.npz", weights)
    shapes = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in weights.items()}
    (batch,) = jax.export.symbolic_shape("b")
    # JAX calls a GPU by its maker here, and by 'gpu' there.
    here = {"gpu": {"cuda", "rocm"}}.get(jax.default_backend(), {jax.default_backend()})
    programs = trained.about.programs(trained.module)
    difference = 0.0 if here & set(platforms) else None
    for name, program in programs.items():
        function, like = _plain(_flat(program), program.like(batch))
        exported = jax.export.export(jax.jit(function), platforms=platforms)(shapes, like)
        (folder / f"{name}.stablehlo").write_bytes(exported.serialize())
        if difference is not None:
            run = run_stablehlo.load(folder, name)
            given = lambda inputs, run=run: run(next(iter(inputs.values())) if len(inputs) == 1 else inputs)
            difference = max(difference, _largest_difference(program, trained.params, given, f"{name}.stablehlo"))
    note = f"For {', '.join(platforms)}. `model.npz` holds the weights, which a program takes as an argument."
    runners = _runners(trained, folder, run_stablehlo.__file__)
    return Written((*(f"{name}.stablehlo" for name in programs), "model.npz", *runners), note, difference)


def _plain(function: Any, like: Inputs) -> tuple[Any, Any]:
    """Return the function and the shapes of its inputs; without a dict around it where there is one input."""
    if len(like) > 1:
        return function, like
    ((name, shape),) = like.items()
    return lambda weights, inputs: function(weights, {name: inputs}), shape


def write_onnx(trained: Trained, folder: Path, platforms: tuple[str, ...]) -> Written:
    """Write each program as ONNX, in two files if one cannot hold it.

    Raises:
        UserError: the model computes what is not written as ONNX here.
    """
    del platforms
    from vit_jax_mixer.export import onnx_graph

    weights, description = pretrained.flatten(trained.params), trained.about.as_json()
    properties = {pretrained.DESCRIPTION: json.dumps(description)}
    if names := description.get("class_names"):
        properties["class_names"] = json.dumps(names)
    (batch,) = jax.export.symbolic_shape("b")
    written: list[str] = []
    difference = 0.0
    for name, program in trained.about.programs(trained.module).items():
        model = onnx_graph.convert_program(_flat(program), weights, program.like(batch))
        files, run = _save_onnx(model, properties, folder / f"{name}.onnx")
        written.extend(files)
        with jax.default_matmul_precision("highest"):  # a GPU or TPU would round more than ONNX does on a CPU
            difference = max(difference, _largest_difference(program, trained.params, run, f"{name}.onnx"))
    note = f"Opset {onnx_graph.OPSET}, with a free batch size. Its metadata hold {' and '.join(properties)}, as JSON."
    return Written((*written, *_runners(trained, folder)), note, difference)


def _save_onnx(model: Any, properties: dict[str, str], path: Path) -> tuple[tuple[str, ...], Any]:
    """Write a model, and return the names of its files, and what runs it."""
    import onnx
    import onnxruntime

    onnx.helper.set_model_props(model, properties)
    apart = sum(len(one.raw_data) for one in model.graph.initializer) > ONE_FILE
    onnx.save_model(model, path, save_as_external_data=apart, location=f"{path.name}.data")
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]

    def run(inputs: dict[str, np.ndarray]) -> Outputs:
        return dict(zip(outputs, map(np.asarray, session.run(None, inputs)), strict=True))

    return (path.name, f"{path.name}.data") if apart else (path.name,), run


def _runners(trained: Trained, folder: Path, *more: str) -> tuple[str, ...]:
    """Copy the files that run an export without this package, and return their names."""
    sources = [Path(file) for file in (*more, *trained.about.runners)]
    for source in sources:
        (folder / source.name).write_bytes(source.read_bytes())
    return tuple(source.name for source in sources)


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


def _flat(program: Program) -> Any:
    """Return the function of a program with parameters by name."""
    return lambda weights, inputs: program.run(traverse_util.unflatten_dict(weights, sep="/"), inputs)


def _largest_difference(program: Program, params: Any, run: Any, name: str) -> float:
    """Compare what was written with the program itself, relative to the largest value of an output.

    Raises:
        UserError: they differ.
    """
    inputs = program.random(params, 3)
    expected, found = jax.device_get(jax.jit(program.run)(params, inputs)), jax.device_get(run(inputs))
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
