"""From examples to the arrays of a batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vit_jax_mixer.errors import UserError


def stack(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Stack each field along a new first axis."""

    def stack_field(*values: Any) -> np.ndarray:
        check_shapes(values)
        return np.stack(values)

    return jax.tree.map(stack_field, *examples)


def check_shapes(values: Sequence[Any]) -> None:
    """Raise a `UserError` unless all have one shape."""
    shapes = {np.shape(v) for v in values}
    if len(shapes) > 1:
        raise UserError(
            f"examples of a batch have shapes {sorted(shapes)[0]} and {sorted(shapes)[-1]}; "
            "bring them to one size, as with resize(224) in the config's operations."
        )
