"""The operations of a model of images, beyond running them: what each does, and what any file needs."""

import inspect

import numpy as np

from vit_jax_mixer import plugins, specs
from vit_jax_mixer.data import images


def explained(eval_ops: str) -> list[dict[str, str]]:
    """Return the operations with what they do, and who does it: 'you', or 'the model'."""
    found = []
    outside = len(images.parse(eval_ops, "eval_ops").host)
    for i, part in enumerate(eval_ops.split("|")):
        inside = i >= outside
        name, _, _ = specs.parse(part, "eval_ops")
        function = plugins.lookup({**images.HOST_OPS, **images.DEVICE_OPS}, name, "eval_ops")
        does = (inspect.getdoc(function) or "").partition("\n")[0]
        found.append({"operation": part.strip(), "does": does, "by": "the model" if inside else "you"})
    return found


def of_any_image(eval_ops: str, shape: tuple[int, ...]) -> str:
    """Return operations that bring any file to the shape of the model's images, and those as they are to themselves.

    An evaluation needs no resizing where all images have one size; those that people ask about have others.
    """
    height, width, channels = shape
    parts = eval_ops.split("|")
    if not images.parse(eval_ops, "config.data.eval_ops").decodes:
        parts.insert(0, f"decode({channels})")
    size = f"resize({height})" if height == width else f"resize({height}, {width})"
    for tried in ("|".join(parts), "|".join([parts[0], size, *parts[1:]])):
        if _gives(tried, shape):
            return tried
    return eval_ops


def _gives(ops: str, shape: tuple[int, ...]) -> bool:
    """Say whether operations bring a larger image to a shape."""
    larger = np.zeros((2 * shape[0] + 1, 3 * shape[1] + 1, shape[2]), np.uint8)
    try:
        return images.parse(ops, "config.data.eval_ops")(larger, np.random.default_rng(0)).shape == shape
    except Exception:  # of an operation that reads one size, and which the data's own images have passed
        return False
