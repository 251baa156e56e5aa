"""A JAX function as an ONNX graph: each primitive of its jaxpr becomes one operator, or a few.

So every model whose primitives stand in `_OPERATORS` and `_HANDLERS` can be written, with a batch of any size.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from jax.extend import core
from onnx import helper, numpy_helper

from vit_jax_mixer.errors import UserError

OPSET = 18  # from 2022; the first whose reductions all take their axes alike
Flat = Mapping[str, Any]
Shape = Sequence[Any]  # of numbers, and the batch's 'b'
Function = Callable[[dict[str, jax.Array], jax.Array], dict[str, jax.Array]]


def convert(function: Function, weights: Flat, name: str, example: jax.ShapeDtypeStruct) -> onnx.ModelProto:
    """Return ``function(weights, inputs)`` as a model with one input, [b, ...] for any b.

    Args:
        function: pure; from weights by name and inputs to arrays by name.
        weights: arrays; become initializers of these names.
        name: of the input.
        example: shape and type of one row of it.

    Raises:
        UserError: a primitive of the function has no operator here.
    """
    batch = jax.export.symbolic_shape("b")
    traced = jax.jit(function).trace(weights, jax.ShapeDtypeStruct((*batch, *example.shape), example.dtype))
    graph = _Graph()
    order = sorted(weights)  # as JAX flattens a dict
    arguments = [graph.constant(np.asarray(weights[one]), one) for one in order] + [name]
    found = graph.inline(traced.jaxpr, arguments)
    outputs = []
    for output, value, like in zip(sorted(traced.out_info), found, traced.jaxpr.out_avals, strict=True):
        graph.nodes.append(helper.make_node("Identity", [value], [output]))
        outputs.append(_info(output, like))
    body = helper.make_graph(
        graph.nodes,
        "vit_jax_mixer",
        [_info(name, traced.jaxpr.in_avals[-1])],
        outputs,
        [numpy_helper.from_array(value, constant) for constant, value in graph.constants.items()],
    )
    opset = [helper.make_opsetid("", OPSET)]
    return helper.make_model(
        body, producer_name="vit_jax_mixer", opset_imports=opset, ir_version=helper.find_min_ir_version_for(opset)
    )


def _info(name: str, like: Any) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(
        name, _type(like.dtype), [d if isinstance(d, int) else str(d) for d in like.shape]
    )


def _like(atom: Any) -> Any:
    return atom.aval  # a ShapedArray, which its type does not promise


def _type(dtype: Any) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


class _Graph:
    """Nodes and constants in the making; a value is the name of a node's output or of a constant."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self._names: dict[Any, str] = {}

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add an operator with one output."""
        return self.split(kind, 1, *inputs, **attributes)[0]

    def split(self, kind: str, count: int, *inputs: str, **attributes: Any) -> list[str]:
        """Add an operator with ``count`` outputs."""
        outputs = [f"{kind}_{len(self.nodes)}_{i}" for i in range(count)]
        self.nodes.append(helper.make_node(kind, inputs, outputs, **attributes))
        return outputs

    def constant(self, value: np.ndarray, name: str = "") -> str:
        """Add a constant; unnamed ones that are alike are one."""
        key = name or (value.tobytes(), value.dtype, value.shape)
        if key not in self._names:
            self._names[key] = name or f"constant_{len(self.constants)}"
            self.constants[self._names[key]] = value
        return self._names[key]

    def integers(self, values: Sequence[int]) -> str:
        return self.constant(np.asarray(values, np.int64))

    def reshape(self, value: str, old: Shape, new: Shape) -> str:
        if tuple(old) == tuple(new):
            return value
        sizes = [size if isinstance(size, int) else -1 for size in new]
        if sizes.count(-1) > 1:
            raise UserError(f"the model reshapes to {tuple(new)}, where ONNX cannot tell two sizes; leave onnx out.")
        return self.op("Reshape", value, self.integers(sizes))

    def inline(self, closed: Any, arguments: Sequence[str]) -> list[str]:
        """Add the equations of a jaxpr, with or without constants, and return the values of its outputs."""
        # Since JAX 0.11 a jaxpr holds its constants; before, another type held both.
        jaxpr, consts = closed if hasattr(closed, "invars") else closed.jaxpr, getattr(closed, "consts", ())
        values = dict(zip(jaxpr.invars, arguments, strict=True))
        values |= {var: self.constant(np.asarray(const)) for var, const in zip(jaxpr.constvars, consts, strict=True)}

        def read(atom: Any) -> str:
            if isinstance(atom, core.Literal):
                return self.constant(np.asarray(atom.val, _like(atom).dtype))
            return values[atom]

        for eqn in jaxpr.eqns:
            found = self._equation(eqn, [read(atom) for atom in eqn.invars])
            values |= dict(zip(eqn.outvars, found, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, eqn: core.JaxprEqn, inputs: list[str]) -> list[str]:
        name = eqn.primitive.name
        if name in ("copy", "stop_gradient"):
            return inputs
        if name in _OPERATORS:
            return [self.op(_OPERATORS[name], *inputs)]
        if name in _HANDLERS:
            found = _HANDLERS[name](self, eqn, *inputs)
            return found if isinstance(found, list) else [found]
        if name in _CALLS:
            return self.inline(eqn.params.get("jaxpr", eqn.params.get("call_jaxpr")), inputs)
        raise UserError(f"the model computes {name!r}, which is not written as ONNX here; leave onnx out of --format.")


# Functions inside the function. A loop or a branch has a jaxpr too, and is more than that.
_CALLS = ("closed_call", "custom_jvp_call", "custom_vjp_call", "jit", "remat2")
_OPERATORS = {
    "abs": "Abs",
    "add": "Add",
    "div": "Div",
    "erf": "Erf",
    "exp": "Exp",
    "log": "Log",
    "logistic": "Sigmoid",
    "max": "Max",
    "min": "Min",
    "mul": "Mul",
    "neg": "Neg",
    "sqrt": "Sqrt",
    "sub": "Sub",
    "tanh": "Tanh",
}


def _erfc(graph: _Graph, eqn: core.JaxprEqn, x: str) -> str:
    return graph.op("Sub", graph.constant(np.ones((), _like(eqn.invars[0]).dtype)), graph.op("Erf", x))


def _integer_pow(graph: _Graph, eqn: core.JaxprEqn, x: str) -> str:
    return graph.op("Pow", x, graph.constant(np.asarray(eqn.params["y"], _like(eqn.invars[0]).dtype)))


def _convert_element_type(graph: _Graph, eqn: core.JaxprEqn, x: str) -> str:
    return graph.op("Cast", x, to=_type(eqn.params["new_dtype"]))


def _reshape(graph: _Graph, eqn: core.JaxprEqn, x: str) -> str:
    return graph.reshape(x, _like(eqn.invars[0]).shape, _like(eqn.outvars[0]).shape)


def _broadcast_in_dim(graph: _Graph, eqn: core.JaxprEqn, x: str) -> str:
    old, new, places = _like(eqn.invars[0]).shape, eqn.params["shape"], eqn.params["broadcast_dimensions"]
    spread = [old[places.index(i)] if i in places else 1 for i in range(len(new))]
    x = graph.reshape(x, old, spread)
    if spread == list(new):
        return x
    if any(not isinstance(size, int) and size != was for size, was in zip(new, spread, strict=True)):
        raise UserError(f"the model repeats a value for the batch, as {tuple(new)}, which is not written as ONNX here.")
    # Expand leaves an axis as it is where the new size is 1.
    return graph.op("Expand", x, graph.integers([size if isinstance(size, int) else 1 for size in new]))


def _reduction(kind: str) -> Callable[[_Graph, core.JaxprEqn, str], str]:
    return lambda graph, eqn, x: graph.op(kind, x, graph.integers(eqn.params["axes"]), keepdims=0)


def _dot_general(graph: _Graph, eqn: core.JaxprEqn, x: str, y: str) -> str:
    (x_summed, y_summed), (x_batch, y_batch) = eqn.params["dimension_numbers"]
    ranks = [len(_like(atom).shape) for atom in eqn.invars]
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


def _conv(graph: _Graph, eqn: core.JaxprEqn, x: str, kernel: str) -> str:
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


def _max_pool(graph: _Graph, eqn: core.JaxprEqn, x: str) -> str:
    params, rank = eqn.params, len(_like(eqn.invars[0]).shape)
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


def _split(graph: _Graph, eqn: core.JaxprEqn, x: str) -> list[str]:
    sizes = [int(size) for size in eqn.params["sizes"]]
    return graph.split("Split", len(sizes), x, graph.integers(sizes), axis=eqn.params["axis"])


_HANDLERS: Mapping[str, Callable[..., str | list[str]]] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "conv_general_dilated": _conv,
    "convert_element_type": _convert_element_type,
    "dot_general": _dot_general,
    "erfc": _erfc,
    "expand_dims": _reshape,
    "integer_pow": _integer_pow,
    "reduce_max": _reduction("ReduceMax"),
    "reduce_sum": _reduction("ReduceSum"),
    "reduce_window_max": _max_pool,
    "reshape": _reshape,
    "rsqrt": lambda graph, eqn, x: graph.op("Reciprocal", graph.op("Sqrt", x)),
    "split": _split,
    "square": lambda graph, eqn, x: graph.op("Mul", x, x),
    "squeeze": _reshape,
    "transpose": lambda graph, eqn, x: graph.op("Transpose", x, perm=eqn.params["permutation"]),
}
