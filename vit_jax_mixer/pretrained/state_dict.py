"""Which of the dicts in a training checkpoint are the model's parameters, and what they are called."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from vit_jax_mixer.errors import UserError
from vit_jax_mixer.pretrained.archive import check_name

T = TypeVar("T")

# Keys under which training code saves a state dict, and what wrappers of modules put before names.
WRAPPERS = ("model", "state_dict", "teacher", "student")
PREFIXES = ("module.", "backbone.")


def unwrap(tree: Any, tensor: type[T], path: Path) -> dict[str, T]:
    """Return the tensors of the model, by their names in it.

    A dict under one of `WRAPPERS` is taken, then one in that, and what lies beside it is dropped.
    A prefix of `PREFIXES` that all names have is cut off. Where names have "backbone." but for a
    "head.", as in a checkpoint of self-supervision, that head is no classifier, and is dropped.

    Raises:
        UserError: there is more than one such dict or none, or it holds other things than tensors.
    """
    for _ in range(4):
        if not isinstance(tree, dict) or any(isinstance(value, tensor) for value in tree.values()):
            break
        found = [key for key in WRAPPERS if isinstance(tree.get(key), dict)]
        if len(found) > 1:
            raise UserError(
                f"{path} holds several models, {' and '.join(map(repr, found))} (its keys: {_listed(tree)}); "
                "save the one that you mean to a file of its own."
            )
        if not found:
            break
        tree = tree[found[0]]
    if not isinstance(tree, dict) or not any(isinstance(value, tensor) for value in tree.values()):
        keys = f" (its keys: {_listed(tree)})" if isinstance(tree, dict) else ""
        raise UserError(f"{path} holds no parameters{keys}; give a file with a model's state dict.")
    for name, value in tree.items():
        check_name(name, path)
        if not isinstance(value, tensor):
            raise UserError(f"{path}: {name} is no tensor; give a file with the model's state dict alone.")
    return _cut_prefixes(tree, path)


def _cut_prefixes(tensors: dict[str, T], path: Path) -> dict[str, T]:
    for _ in range(4):
        with_prefix = {p: [name for name in tensors if name.startswith(p)] for p in PREFIXES}
        prefix = next((p for p, names in with_prefix.items() if names), None)
        if prefix is None:
            break
        others = [name for name in tensors if not name.startswith(prefix)]
        if any(prefix != "backbone." or not name.startswith("head.") for name in others):
            raise UserError(
                f"{path}: some names begin with {prefix!r} and others, as {others[0]}, do not; "
                "save the model that you mean to a file of its own."
            )
        tensors = {name.removeprefix(prefix): tensors[name] for name in with_prefix[prefix]}
    return tensors


def _listed(tree: Mapping[str, Any]) -> str:
    """Return the first keys of a dict, for a sentence."""
    keys = [repr(key[:40]) for key in tree]
    return ", ".join(keys[:10]) + (f" and {len(keys) - 10} more" if len(keys) > 10 else "") or "none"
