"""What the names in a PyTorch pickle stand for: descriptions of tensors, checked, and nothing that runs."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from vit_jax_mixer.pretrained.inert_pickle import OPAQUE, BadPickleError, StandIn

_TYPES: Mapping[str, Any] = {
    "Float": np.float32,
    "Double": np.float64,
    "Half": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
    "ComplexFloat": np.complex64,
    "ComplexDouble": np.complex128,
}


@dataclasses.dataclass(frozen=True)
class Storage:
    """Numbers in a row, of which the file has ``count`` from ``start`` of the storage ``key``."""

    key: str
    dtype: np.dtype
    start: int
    count: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage: element (i, j, ...) is number ``offset + i * strides[0] + ...`` of it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _natural(*values: Any) -> bool:
    return all(type(value) is int and 0 <= value < 1 << 48 for value in values)


def storage(dtypes: dict[str, np.dtype], saved: Any) -> Storage:
    """Make a storage of its persistent id, ("storage", type, key, device, count[, (key, start, count)]).

    ``dtypes`` takes each key's type; a storage with two would be read twice.
    """
    if not (isinstance(saved, tuple) and len(saved) in (5, 6) and saved[0] == "storage"):
        raise BadPickleError("refers to something that is no storage")
    kind, key, count = saved[1], saved[2], saved[4]
    if not isinstance(kind, StandIn) or kind.name not in _TYPES or not isinstance(key, str) or not _natural(count):
        raise BadPickleError("describes a storage in a way that PyTorch does not")
    start = 0
    if len(saved) == 6 and saved[5] is not None:  # a part of a storage, as PyTorch had before 0.4
        if not (isinstance(saved[5], tuple) and len(saved[5]) == 3 and _natural(*saved[5][1:])):
            raise BadPickleError("describes a part of a storage in a way that PyTorch does not")
        _, start, count = saved[5]
    dtype = np.dtype(_TYPES[kind.name])
    if dtypes.setdefault(key, dtype) != dtype:
        raise BadPickleError("gives one storage two types")
    return Storage(key, dtype, start, count)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    """Check that every element lies in the storage, and that none is repeated more than there are."""
    if not (isinstance(storage, Storage) and isinstance(shape, tuple) and isinstance(strides, tuple)):
        raise BadPickleError("describes a tensor in a way that PyTorch does not")
    if len(shape) != len(strides) or len(shape) > 16 or not _natural(offset, *shape, *strides):
        raise BadPickleError("describes a tensor of an impossible shape")
    count = math.prod(shape)
    last = (
        offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True)) if count else offset - 1
    )
    if count > storage.count or last >= storage.count:
        raise BadPickleError("describes a tensor that reaches beyond its storage")
    return Tensor(storage, offset, shape, strides)


def _first(value: Any, *_: Any) -> Any:
    """Return a Parameter's tensor, or the tuple of a ``torch.Size``."""
    return value if isinstance(value, (Tensor, tuple)) else OPAQUE


def _dict(*arguments: Any) -> dict[str, Any]:
    """Make the dict of an OrderedDict, which Python 2 wrote as a list of pairs."""
    if not arguments:
        return {}
    (pairs,) = arguments
    if isinstance(pairs, list) and all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        return {key: value for key, value in pairs if isinstance(key, str)}
    raise BadPickleError("describes an OrderedDict in a way that Python does not")


# What lies beside the weights in published files, and is dropped.
_BESIDE = (
    "argparse Namespace, collections defaultdict, collections Counter, pathlib PosixPath, pathlib WindowsPath, "
    "builtins set, __builtin__ set, builtins slice, builtins complex, _codecs encode, torch device, "
    "numpy dtype, numpy.core.multiarray scalar, numpy._core.multiarray scalar"
)
_DTYPES = "float16 float32 float64 bfloat16 int8 int16 int32 int64 uint8 bool half float double int long"
KNOWN: Mapping[str, StandIn] = {
    "collections OrderedDict": StandIn("OrderedDict", _dict),
    "torch._utils _rebuild_tensor": StandIn("_rebuild_tensor", _tensor),
    "torch._utils _rebuild_tensor_v2": StandIn("_rebuild_tensor_v2", _tensor),
    "torch._utils _rebuild_parameter": StandIn("_rebuild_parameter", _first),
    "torch._utils _rebuild_parameter_with_state": StandIn("_rebuild_parameter_with_state", _first),
    "torch.nn.parameter Parameter": StandIn("Parameter", _first),
    "torch Size": StandIn("Size", _first),
    **{f"{place} {kind}Storage": StandIn(kind) for place in ("torch", "torch.cuda") for kind in _TYPES},
    **{name: StandIn(name) for name in _BESIDE.split(", ")},
    **{f"torch {name}": StandIn(name) for name in _DTYPES.split()},
}
