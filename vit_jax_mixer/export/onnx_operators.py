"""The ONNX operators that primitives of JAX become: by name alone, or by a function."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.extend import core
from onnx import helper

from vit_jax_mixer.errors import UserError

if TYPE_CHECKING:
    from vit_jax_mixer.export.onnx_graph import Graph


def aval(atom: Any) -> Any:
    """Return the type and shape of a value in a jaxpr, a ShapedArray, which its own type does not promise."""
    return atom.aval


def onnx_type(dtype: Any) -> int:
    """Return ONNX's number of a NumPy type."""
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


# Functions inside the function. A loop or a branch has a jaxpr too, and is more than that.
CALLS = ("closed_call", "custom_jvp_call", "custom_vjp_call", "jit", "remat2")
OPERATORS = {
    "abs": "Abs",
    "add": "Add",
    "and": "And",
    "ceil": "Ceil",
    "cos": "Cos",
    "div": "Div",
    "eq": "Equal",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "log": "Log",
    "logistic": "Sigmoid",
    "lt": "Less",
    "max": "Max",
    "min": "Min",
    "mul": "Mul",
    "neg": "Neg",
    "not": "Not",
    "or": "Or",
    "pow": "Pow",
    "sign": "Sign",
    "sin": "Sin",
    "sqrt": "Sqrt",
    "sub": "Sub",
    "tanh": "Tanh",
}


def _erfc(graph: "Graph", eqn: core.JaxprEqn, x: str) -> str:
    return graph.op("Sub", graph.constant(_one(eqn)), graph.op("Erf", x))


def _integer_pow(graph: "Graph", eqn: core.JaxprEqn, x: str) -> str:
    return graph.op("Pow", x, graph.constant(np.asarray(eqn.params["y"], aval(eqn.invars[0]).dtype)))


def _convert_element_type(graph: "Graph", eqn: core.JaxprEqn, x: str) -> str:
    return graph.op("Cast", x, to=onnx_type(eqn.params["new_dtype"]))


def _reshape(graph: "Graph", eqn: core.JaxprEqn, x: str) -> str:
    return graph.reshape(x, aval(eqn.invars[0]).shape, aval(eqn.outvars[0]).shape)


def _broadcast_in_dim(graph: "Graph", eqn: core.JaxprEqn, x: str) -> str:
    old, new, places = aval(eqn.invars[0]).shape, eqn.params["shape"], eqn.params["broadcast_dimensions"]
    spread = [old[places.index(i)] if i in places else 1 for i in range(len(new))]
    x = graph.reshape(x, old, spread)
    if spread == list(new):
        return x
    # Expand leaves an axis as it is where the new size is 1.
    return graph.op(
        "Expand", x, graph.sizes([1 if size == was else size for size, was in zip(new, spread, strict=True)])
    )


def _reduction(kind: str) -> Callable[["Graph", core.JaxprEqn, str], str]:
    return lambda graph, eqn, x: graph.op(kind, x, graph.integers(eqn.params["axes"]), keepdims=0)


def _dot_general(graph: "Graph", eqn: core.JaxprEqn, x: str, y: str) -> str:
    (x_summed, y_summed), (x_batch, y_batch) = eqn.params["dimension_numbers"]
    ranks = [len(aval(atom).shape) for atom in eqn.invars]
    if (tuple(x_summed), tuple(y_summed), ranks[1]) == ((ranks[0] - 1,), (0,), 2) and not x_batch:  # a dense layer
        return graph.op("MatMul", x, y)
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    xs, ys = [""] * ranks[0], [""] * ranks[1]
    for i, j in [*zip(x_batch, y_batch, strict=True), *zip(x_summed, y_summed, strict=True)]:
        xs[i] = ys[j] = next(letters)
    shared = {*xs, *ys}
    xs, ys = ([letter or next(letters) for letter in side] for side in (xs, ys))
    result = [xs[i] for i in x_batch] + [letter for letter in (*xs, *ys) if letter not in shared]
    return graph.op("Einsum", x, y, equation=f"{''.join(xs)},{''.join(ys)}->{''.join(result)}")


def _conv(graph: "Graph", eqn: core.JaxprEqn, x: str, kernel: str) -> str:
    params = eqn.params
    x_axes, kernel_axes, out_axes = params["dimension_numbers"]
    if params["batch_group_count"] != 1 or set(params["lhs_dilation"]) != {1}:
        raise UserError("the model has a transposed convolution, which is not written as ONNX here; leave onnx out.")
    padding = params["padding"]
    found = graph.op(
        "Conv",
        graph.op("Transpose", x, perm=x_axes),  # to [B, C, H, W]
        graph.op("Transpose", kernel, perm=kernel_axes),  # to [out, in, h, w]
        strides=params["window_strides"],
        dilations=params["rhs_dilation"],
        group=params["feature_group_count"],
        pads=[low for low, _ in padding] + [high for _, high in padding],
    )
    return graph.op("Transpose", found, perm=[out_axes.index(i) for i in range(len(out_axes))])


def _max_pool(graph: "Graph", eqn: core.JaxprEqn, x: str) -> str:
    params, rank = eqn.params, len(aval(eqn.invars[0]).shape)
    window, strides, padding = params["window_dimensions"], params["window_strides"], params["padding"]
    outer = [i for i in range(rank) if (window[i], strides[i], *padding[i]) == (1, 1, 0, 0)][:1]
    inner = [i for i in range(rank) if i not in outer and i != rank - 1]
    if not outer or (window[-1], strides[-1], *padding[-1]) != (1, 1, 0, 0) or set(params["base_dilation"]) != {1}:
        raise UserError("the model has a maximum over channels or examples, which is not written as ONNX here.")
    order = [*outer, rank - 1, *inner]  # to [B, C, ...]
    found = graph.op(
        "MaxPool",
        graph.op("Transpose", x, perm=order),
        kernel_shape=[window[i] for i in inner],
        strides=[strides[i] for i in inner],
        dilations=[params["window_dilation"][i] for i in inner],
        pads=[padding[i][0] for i in inner] + [padding[i][1] for i in inner],
    )
    return graph.op("Transpose", found, perm=[order.index(i) for i in range(rank)])


def _split(graph: "Graph", eqn: core.JaxprEqn, x: str) -> list[str]:
    sizes = [int(size) for size in eqn.params["sizes"]]
    return graph.split("Split", len(sizes), x, graph.integers(sizes), axis=eqn.params["axis"])


def _one(eqn: core.JaxprEqn) -> np.ndarray:
    return np.ones((), aval(eqn.invars[0]).dtype)


def _slice(graph: "Graph", eqn: core.JaxprEqn, x: str) -> str:
    shape, params = aval(eqn.invars[0]).shape, eqn.params
    starts, ends = params["start_indices"], params["limit_indices"]
    steps = params["strides"] or (1,) * len(shape)
    cut = [i for i, size in enumerate(shape) if (starts[i], ends[i], steps[i]) != (0, size, 1)]
    if not cut:
        return x
    if not all(isinstance(ends[i], int) for i in cut):
        raise UserError("the model takes a part of a batch, which is not written as ONNX here; leave onnx out.")
    of_cut = [graph.integers([of_all[i] for i in cut]) for of_all in (starts, ends)]
    return graph.op("Slice", x, *of_cut, graph.integers(cut), graph.integers([steps[i] for i in cut]))


def _select(graph: "Graph", eqn: core.JaxprEqn, which: str, *cases: str) -> str:
    if len(cases) != 2 or aval(eqn.invars[0]).dtype != np.bool_:
        raise UserError(
            "the model chooses among more than two values, which is not written as ONNX here; leave it out."
        )
    return graph.op("Where", which, cases[1], cases[0])


def _iota(graph: "Graph", eqn: core.JaxprEqn) -> str:
    shape, axis = eqn.params["shape"], eqn.params["dimension"]
    if not all(isinstance(size, int) for size in shape):
        raise UserError("the model counts along a batch, which is not written as ONNX here; leave onnx out.")
    return graph.constant(np.indices(shape)[axis].astype(eqn.params["dtype"]))


def _pad(graph: "Graph", eqn: core.JaxprEqn, x: str, value: str) -> str:
    low, high, between = zip(*eqn.params["padding_config"], strict=True)
    if any(between):
        raise UserError("the model pads between values, which is not written as ONNX here; leave onnx out.")
    return graph.op("Pad", x, graph.integers([*low, *high]), value)


def _gather(graph: "Graph", eqn: core.JaxprEqn, x: str, indices: str) -> str:
    """Write what takes values or slices along one axis, as ``x[:, 0]``, ``x[:, 1:]`` or an embedding's ``take``."""
    (of_x, of_indices, out), dtype = (aval(a).shape for a in (*eqn.invars, *eqn.outvars)), aval(eqn.invars[0]).dtype
    how, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    axis, count = how.start_index_map[0], len(of_indices) - 1
    whole = all(i == axis or sizes[i] == size for i, size in enumerate(of_x))
    if len(how.start_index_map) > 1 or how.operand_batching_dims or not whole:
        raise UserError("the model takes values along several axes at once, which is not written as ONNX here.")
    if not isinstance(of_x[axis], int) or not isinstance(sizes[axis], int):
        raise UserError("the model takes a part of a batch, which is not written as ONNX here; leave onnx out.")
    integer = lambda n: graph.constant(np.asarray(n, np.int64))
    begin = graph.op("Squeeze", graph.op("Cast", indices, to=onnx_type(np.int64)), graph.integers([count]))
    inside = graph.op("Min", graph.op("Max", begin, integer(0)), integer(of_x[axis] - sizes[axis]))
    places, is_slice = inside, not how.collapsed_slice_dims
    if is_slice:
        each = graph.op("Unsqueeze", inside, graph.integers([count]))
        places = graph.op("Add", each, integer(np.arange(sizes[axis])))
    found = graph.op("Gather", x, places, axis=axis)  # the axes of the places in that of the one
    if eqn.params["mode"].name == "FILL_OR_DROP":
        fill = eqn.params["fill_value"]
        fill = (np.nan if np.issubdtype(dtype, np.inexact) else 0) if fill is None else fill
        there = graph.op("Equal", inside, begin)
        after = [count + i for i in range(is_slice + len(of_x) - 1 - axis)]
        there = graph.op("Unsqueeze", there, graph.integers(after)) if after else there
        found = graph.op("Where", there, found, graph.constant(np.asarray(fill, dtype)))
    order = {i: n if n < axis else n + count for n, i in enumerate(how.offset_dims)}
    order |= {i: axis + n for n, i in enumerate(i for i in range(len(out)) if i not in how.offset_dims)}
    return graph.op("Transpose", found, perm=[order[i] for i in range(len(out))])


def _size(graph: "Graph", eqn: core.JaxprEqn) -> str:
    """Write the number of examples as a value."""
    size = graph.op("Squeeze", graph.sizes((eqn.params["dim"],)), graph.integers([0]))
    return graph.op("Cast", size, to=onnx_type(aval(eqn.outvars[0]).dtype))


def _dynamic_slice(graph: "Graph", eqn: core.JaxprEqn, x: str, *starts: str) -> str:
    shape, sizes = aval(eqn.invars[0]).shape, eqn.params["slice_sizes"]
    cut = [i for i, size in enumerate(shape) if sizes[i] != size]
    if not all(isinstance(shape[i], int) for i in cut):
        raise UserError("the model takes a part of a batch, which is not written as ONNX here; leave onnx out.")
    if not cut:
        return x
    begins = graph.op("Concat", *(_inside(graph, starts[i], shape[i] - sizes[i]) for i in cut), axis=0)
    ends = graph.op("Add", begins, graph.integers([sizes[i] for i in cut]))
    return graph.op("Slice", x, begins, ends, graph.integers(cut))


def _dynamic_update_slice(graph: "Graph", eqn: core.JaxprEqn, x: str, new: str, *starts: str) -> str:
    """Write what sets one place of an axis, as a cache of all positions is filled."""
    shape, of_new = (aval(atom).shape for atom in eqn.invars[:2])
    axes = [i for i, size in enumerate(shape) if of_new[i] != size]
    if not axes:
        return new
    if len(axes) > 1 or of_new[axes[0]] != 1 or not isinstance(shape[axes[0]], int):
        raise UserError("the model sets several places at once, which is not written as ONNX here; leave onnx out.")
    size, behind = shape[axes[0]], (1,) * (len(shape) - axes[0] - 1)
    places = graph.constant(np.arange(size, dtype=np.int64).reshape(size, *behind))
    return graph.op("Where", graph.op("Equal", places, _inside(graph, starts[axes[0]], size - 1)), new, x)


def _inside(graph: "Graph", start: str, most: int) -> str:
    """Return a place i64[1], brought into 0 .. most, as JAX does."""
    begin = graph.op("Unsqueeze", graph.op("Cast", start, to=onnx_type(np.int64)), graph.integers([0]))
    return graph.op("Min", graph.op("Max", begin, graph.integers([0])), graph.integers([most]))


HANDLERS: Mapping[str, Callable[..., str | list[str]]] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "clamp": lambda graph, eqn, least, x, most: graph.op("Min", graph.op("Max", x, least), most),
    "concatenate": lambda graph, eqn, *parts: graph.op("Concat", *parts, axis=eqn.params["dimension"]),
    "conv_general_dilated": _conv,
    "convert_element_type": _convert_element_type,
    "dim_as_value": _size,
    "dot_general": _dot_general,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "erfc": _erfc,
    "expand_dims": _reshape,
    "expm1": lambda graph, eqn, x: graph.op("Sub", graph.op("Exp", x), graph.constant(_one(eqn))),
    "gather": _gather,
    "integer_pow": _integer_pow,
    "iota": _iota,
    "log1p": lambda graph, eqn, x: graph.op("Log", graph.op("Add", x, graph.constant(_one(eqn)))),
    "ne": lambda graph, eqn, x, y: graph.op("Not", graph.op("Equal", x, y)),
    "pad": _pad,
    "reduce_max": _reduction("ReduceMax"),
    "reduce_min": _reduction("ReduceMin"),
    "reduce_sum": _reduction("ReduceSum"),
    "reduce_window_max": _max_pool,
    "reshape": _reshape,
    "rsqrt": lambda graph, eqn, x: graph.op("Reciprocal", graph.op("Sqrt", x)),
    "select_n": _select,
    "slice": _slice,
    "split": _split,
    "square": lambda graph, eqn, x: graph.op("Mul", x, x),
    "squeeze": _reshape,
    "transpose": lambda graph, eqn, x: graph.op("Transpose", x, perm=eqn.params["permutation"]),
}
