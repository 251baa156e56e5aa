"""A teacher that is an ONNX file: onnxruntime runs it on the host, on each batch that the loader makes."""

import functools
import hashlib
import importlib
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax_mixer import files
from vit_jax_mixer.data.logits import FIELD
from vit_jax_mixer.data.pipeline import Batch
from vit_jax_mixer.errors import UserError

_BLOCK = 1 << 20


class OnnxTeacher:
    """An ONNX file from u8[b, h, w, c] to logits f32[b, K], as `export` writes such; its normalisation is inside.

    Called by the loader, it adds its logits to a batch, which are a function of the batch alone; worker
    processes get a copy.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        """Open it and try it on a blank image.

        Args:
            path: of the file.
            shape: (h, w, c) of the images.

        Raises:
            UserError: it cannot be read, onnxruntime is missing, or it is no function of such images.
        """
        self.path = path
        self._places: Any = slice(None)
        digest = hashlib.blake2b(digest_size=16)
        for part in (path, path.with_name(f"{path.name}.data")):  # which holds large weights
            if part == path or part.exists():
                with files.open_regular(part) as file:
                    while block := file.read(_BLOCK):
                        digest.update(block)
        self.digest = digest.hexdigest()
        session = _session(path)
        inputs = session.get_inputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(uint8)":
            raise UserError(
                f"{path} reads {', '.join(f'{one.name}: {one.type}' for one in inputs)}; a teacher reads images "
                "uint8[b, h, w, c] and has its normalisation inside, as export writes them."
            )
        wanted = inputs[0].shape[1:]
        if len(wanted) != 3 or any(isinstance(a, int) and a != b for a, b in zip(wanted, shape, strict=True)):
            raise UserError(f"{path} reads images of shape {tuple(wanted)}, those of the data are {shape}; change one.")
        logits = self._logits(np.zeros((1, *shape), np.uint8))
        if logits.ndim != 2 or logits.dtype != np.float32:
            raise UserError(f"{path} gives {logits.dtype}{list(logits.shape)}; a teacher gives logits float32[b, K].")
        self.classes = logits.shape[1]

    def reorder(self, places: np.ndarray) -> None:
        """Give the logits of these classes, i32[K], in this order."""
        self._places = places

    def __call__(self, positions: np.ndarray, batch: Batch) -> Batch:
        """Add `logits.FIELD`."""
        return {**batch, FIELD: self._logits(batch["image"])[:, self._places]}

    def _logits(self, images: np.ndarray) -> np.ndarray:
        session = _session(self.path)
        names = [output.name for output in session.get_outputs()]
        return session.run(["logits" if "logits" in names else names[0]], {session.get_inputs()[0].name: images})[0]


@functools.lru_cache(maxsize=1)  # one for each process
def _session(path: Path) -> Any:
    try:
        import onnxruntime

        errors = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    except ImportError as error:
        raise UserError("an ONNX file as a teacher needs onnxruntime; pip install vit_jax_mixer[onnx].") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the loader's threads share the cores, and sums have one order
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except (errors.InvalidProtobuf, errors.InvalidGraph, errors.Fail, errors.InvalidArgument) as error:
        raise UserError(f"{path} is no ONNX model that can be run ({str(error)[:200]}); export it again.") from error
