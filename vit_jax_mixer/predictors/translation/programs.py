"""What an export writes of a model of text: the encoder, and one step of decoding.

Both are of static length L, ``max_length``, and for any number b of sentences, or of beams. `run_translation` searches
with them.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from vit_jax_mixer.predictors.base import Program

Arrays = dict[str, jax.Array]


def programs(
    module: nn.Module, params_like: Any, length: int, random_inputs: Callable[[int], np.ndarray]
) -> dict[str, Program]:
    """Return both programs.

    ``encoder``: 'inputs' i32[b, L], tokens that EOS ends and PAD follows, to 'source_i' and 'state_i' [b, ...]: what
    a step reads of the source, and what it knows of the target before the first position.

    ``step``: 'inputs', all that ``encoder`` gave, 'tokens' i32[b] and 'position' i32[], from 0, where the tokens stand,
    to 'logits' f32[b, V] of the tokens that follow, and 'next_i', the next 'state_i'.

    Args:
        module: a `seq2seq.Seq2Seq`.
        params_like: shapes of its parameters.
        length: L.
        random_inputs: from b to 'inputs'.
    """
    call: Callable[..., Any] = lambda method, params, *args: module.apply({"params": params}, *args, method=method)
    tokens_of = lambda *shape: jax.ShapeDtypeStruct(shape, np.int32)

    def start(params: Any, inputs: jax.Array) -> Any:
        return call("start", params, call("encode", params, inputs), inputs, 1, length)

    def tree_of(b: Any) -> Any:
        return jax.eval_shape(start, params_like, tokens_of(b, length))

    def encoder(params: Any, given: Arrays) -> Arrays:
        return _named(start(params, given["inputs"]))

    def step(params: Any, given: Arrays) -> Arrays:
        tree = tree_of(given["tokens"].shape[0])
        source, state = (jax.tree.structure(part) for part in (tree["source"]["keys_values"], tree["state"]))
        cache = {
            "source": {"keys_values": _tree(source, given, "source"), "there": given["inputs"] != 0},
            "state": _tree(state, given, "state"),
        }
        logits, cache = call("step", params, cache, given["tokens"], given["position"])
        return {"logits": logits, **_leaves("next", cache["state"])}

    def like_step(b: Any) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            "inputs": tokens_of(b, length),
            "tokens": tokens_of(b),
            "position": tokens_of(),
            **_named(tree_of(b)),
        }

    def random_step(params: Any, count: int) -> dict[str, np.ndarray]:
        inputs = random_inputs(count)
        at = lambda i: {"inputs": inputs, "tokens": inputs[:, i], "position": np.array(i, np.int32)}
        first = at(0) | jax.jit(encoder)(params, {"inputs": inputs})
        found = jax.jit(step)(params, first)
        state = {name: found[name.replace("state", "next")] for name in first if name.startswith("state")}
        second = first | state | at(1)  # which has something before it
        return {name: np.asarray(value) for name, value in second.items()}

    return {
        "encoder": Program(
            encoder, lambda b: {"inputs": tokens_of(b, length)}, lambda _, count: {"inputs": random_inputs(count)}
        ),
        "step": Program(step, like_step, random_step),
    }


def _named(cache: Any) -> Any:
    """Return the arrays of a cache by name, but for which inputs are there."""
    return _leaves("source", cache["source"]["keys_values"]) | _leaves("state", cache["state"])


def _leaves(name: str, tree: Any) -> dict[str, Any]:
    return {f"{name}_{i}": leaf for i, leaf in enumerate(jax.tree.leaves(tree))}


def _tree(structure: Any, given: Arrays, name: str) -> Any:
    return jax.tree.unflatten(structure, [given[f"{name}_{i}"] for i in range(structure.num_leaves)])
