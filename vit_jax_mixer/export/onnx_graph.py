"""A JAX function as an ONNX graph: each primitive of its jaxpr becomes one operator, or a few.

So every model whose primitives stand in `onnx_operators` can be written, with a batch of any size.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from jax.extend import core
from onnx import helper, numpy_helper

from vit_jax_mixer.errors import UserError
from vit_jax_mixer.export.onnx_operators import CALLS, HANDLERS, OPERATORS, aval, onnx_type

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
    (batch,) = jax.export.symbolic_shape("b")
    like = {name: jax.ShapeDtypeStruct((batch, *example.shape), example.dtype)}
    return convert_program(lambda weights, inputs: function(weights, inputs[name]), weights, like)


def convert_program(
    function: Callable[[dict[str, jax.Array], dict[str, jax.Array]], dict[str, jax.Array]],
    weights: Flat,
    like: Mapping[str, jax.ShapeDtypeStruct],
) -> onnx.ModelProto:
    """Return a function of several inputs as a model: as `convert`, with inputs by name and of the shapes ``like``.

    A batch's axis is the symbol b. Weights that the function does not read are left out.
    """
    traced = jax.jit(function).trace(weights, dict(like))
    names = sorted(like)  # as JAX flattens a dict
    graph = Graph(next(name for name in names if like[name].shape))
    arguments = [graph.constant(np.asarray(weights[one]), one) for one in sorted(weights)] + names
    found = graph.inline(traced.jaxpr, arguments)
    outputs = []
    for output, value, shape in zip(sorted(traced.out_info), found, traced.jaxpr.out_avals, strict=True):
        graph.nodes.append(helper.make_node("Identity", [value], [output]))
        outputs.append(_info(output, shape))
    read = {name for node in graph.nodes for name in node.input}
    body = helper.make_graph(
        graph.nodes,
        "vit_jax_mixer",
        [_info(name, like[name]) for name in names],
        outputs,
        [numpy_helper.from_array(value, name) for name, value in graph.constants.items() if name in read],
    )
    opset = [helper.make_opsetid("", OPSET)]
    return helper.make_model(
        body, producer_name="vit_jax_mixer", opset_imports=opset, ir_version=helper.find_min_ir_version_for(opset)
    )


def _info(name: str, like: Any) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(
        name, onnx_type(like.dtype), [d if isinstance(d, int) else str(d) for d in like.shape]
    )


class Graph:
    """Nodes and constants in the making; a value is the name of a node's output or of a constant."""

    def __init__(self, batch: str) -> None:
        """Begin one; ``batch`` is the name of an input whose first axis is the batch's."""
        self._batch = batch
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

    def sizes(self, shape: Shape) -> str:
        """Return the name of a shape i64[rank], which is not a constant where the batch is in it."""
        if any(not isinstance(size, int) and str(size) != "b" for size in shape):
            raise UserError(f"the model makes a value of shape {tuple(shape)}, which is not written as ONNX here.")
        if all(isinstance(size, int) for size in shape):
            return self.integers(shape)
        batch = self.op("Shape", self._batch, start=0, end=1)
        return self.op("Concat", *(self.integers([s]) if isinstance(s, int) else batch for s in shape), axis=0)

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
                return self.constant(np.asarray(atom.val, aval(atom).dtype))
            return values[atom]

        for eqn in jaxpr.eqns:
            found = self._equation(eqn, [read(atom) for atom in eqn.invars])
            values |= dict(zip(eqn.outvars, found, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, eqn: core.JaxprEqn, inputs: list[str]) -> list[str]:
        name = eqn.primitive.name
        if name in ("copy", "stop_gradient"):
            return inputs
        if name in OPERATORS:
            return [self.op(OPERATORS[name], *inputs)]
        if name in HANDLERS:
            found = HANDLERS[name](self, eqn, *inputs)
            return found if isinstance(found, list) else [found]
        if name in CALLS:
            return self.inline(eqn.params.get("jaxpr", eqn.params.get("call_jaxpr")), inputs)
        raise UserError(f"the model computes {name!r}, which is not written as ONNX here; leave onnx out of --format.")
