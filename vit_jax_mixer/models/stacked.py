"""The parameters of all blocks stacked, ``MixerBlock/*/...`` [L, ...], and back to ``MixerBlock_0/...``, ....

A model with ``scan=True`` computes with stacked parameters, and so does the state of its training.
Everywhere else, on disk and in what users hold, they have the published names: `unstack` and `stack`
stand at the edges. Both take any tree that has such dicts in it, as an optimizer's state. What is
stacked is below the key `MARK`, which `layers.apply_blocks` gives; names of modules say nothing.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import DictKey

Tree = Any
MARK = "*"


def init(model: Any, key: jax.Array, *inputs: Any) -> Tree:
    """Return fresh parameters as the model reads them; their values do not depend on ``model.scan``."""
    if not getattr(model, "scan", False):
        return model.init(key, *inputs)["params"]
    like = jax.eval_shape(model.init, key, *inputs)["params"]
    return stack(model.clone(scan=False).init(key, *inputs)["params"], like)


def unstack(tree: Tree) -> Tree:
    """Return the tree with ``MixerBlock_0``, ``MixerBlock_1``, ... in the place of each ``MixerBlock/*``.

    What is not stacked stays the same object. NumPy arrays become views, others are copied;
    for shapes alone there is ``jax.eval_shape(unstack, tree)``.
    """
    return jax.tree.map(lambda node: _unstack(node) if _has_stack(node) else node, tree, is_leaf=_has_stack)


def stack(tree: Tree, like: Tree) -> Tree:
    """Return the tree in the layout of ``like``, whose leaves need no more than a shape: the inverse of `unstack`."""
    found = dict(jax.tree_util.tree_leaves_with_path(tree))
    wanted, structure = jax.tree_util.tree_flatten_with_path(like)

    def leaf(path: tuple[Any, ...], shape: tuple[int, ...]) -> Any:
        if path in found:
            return found[path]
        parts = [found[one] for one in _paths(path, shape)]
        # Weights of a file stay where they are, until each device takes its part.
        return np.stack(parts) if isinstance(parts[0], np.ndarray) else _stack(parts)

    return jax.tree.unflatten(structure, [leaf(path, value.shape) for path, value in wanted])


def published_names(path: tuple[Any, ...], shape: tuple[int, ...]) -> list[str]:
    """Return the names, as ``MixerBlock_0/LayerNorm_0/scale``, of the arrays that a leaf holds: one, or one a block."""
    return [jax.tree_util.keystr(one, simple=True, separator="/") for one in _paths(path, shape)]


def _paths(path: tuple[Any, ...], shape: tuple[int, ...]) -> list[tuple[Any, ...]]:
    """Return the paths, in a tree that is not stacked, of the arrays that a leaf holds."""
    if DictKey(MARK) not in path:
        return [path]
    at = path.index(DictKey(MARK))
    return [(*path[: at - 1], DictKey(f"{path[at - 1].key}_{i}"), *path[at + 1 :]) for i in range(shape[0])]


def _is_stack(node: Any) -> bool:
    return isinstance(node, dict) and MARK in node


def _has_stack(node: Any) -> bool:
    return isinstance(node, dict) and any(map(_is_stack, node.values()))


def _unstack(node: dict[str, Tree]) -> dict[str, Tree]:
    result = {}
    for name, value in node.items():
        if not _is_stack(value):
            result[name] = unstack(value)
            continue
        leaves, structure = jax.tree.flatten(value[MARK])
        blocks = zip(*map(_parts, leaves), strict=True)
        result |= {f"{name}_{i}": jax.tree.unflatten(structure, block) for i, block in enumerate(blocks)}
    return result


def _parts(leaf: Any) -> list[Any]:
    return list(leaf) if isinstance(leaf, np.ndarray) else list(jnp.unstack(leaf))


_stack = jax.jit(lambda parts: jnp.stack(parts))
