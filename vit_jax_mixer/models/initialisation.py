"""Fresh parameters drawn otherwise than the model itself draws them, whatever the model."""

import re
import zlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax_mixer import specs
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models import stacked
from vit_jax_mixer.specs import Within

Tree = Any
# From (key, name as MixerBlock_0/token_mixing/Dense_0/kernel, its fresh values, fan_in of its layer or None) to values.
Scheme = Callable[[jax.Array, str, jax.Array, int | None], jax.Array]


def parse(spec: str, where: str = "config.init") -> Scheme | None:
    """Return what a spec of `SCHEMES` does to each parameter; None for '', which leaves them as they are.

    Raises:
        UserError: it is not known, or has an argument that makes no sense.
    """
    return specs.build(SCHEMES, spec, where) if spec else None


def draw(scheme: Scheme | None, key: jax.Array, params: Tree) -> Tree:
    """Return fresh parameters as a scheme draws them; pure.

    Each draws from its published name, so that values depend neither on the layout (`stacked`) nor on
    what else there is in the model.
    """
    if scheme is None:
        return params
    apart = stacked.unstack(params)
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(apart)
    }
    drawn = [
        scheme(jax.random.fold_in(key, zlib.crc32(name.encode())), name, leaf, _fan_in(found, name))
        for name, leaf in found.items()
    ]
    return stacked.stack(jax.tree.unflatten(jax.tree.structure(apart), drawn), params)


def _fan_in(found: Mapping[str, jax.Array], name: str) -> int | None:
    """Return from how many numbers the layer of a kernel or bias makes each of its own; None for other parameters.

    A kernel is [inputs..., outputs]. Its leading axes that its bias has too count layers, not inputs.
    """
    layer, _, last = name.rpartition("/")
    prefix = f"{layer}/" if layer else ""
    kernel, bias = found.get(f"{prefix}kernel"), found.get(f"{prefix}bias")
    if last not in ("kernel", "bias") or kernel is None:
        return None
    layers = 0 if bias is None else bias.ndim - 1
    return int(np.prod(kernel.shape[layers:-1]))


def kaiming_uniform(a: Annotated[float, Within(0, 1000)] = 5**0.5, keep: str = "") -> Scheme:
    """Kernels uniform with variance ``2 / ((1 + a^2) fan_in)`` (He et al. 2015, arXiv 1502.01852, equation 15).

    With ``a = sqrt(5)`` that is within ``1 / sqrt(fan_in)``, as PyTorch begins a linear layer and a
    convolution. Biases are within that whatever ``a`` is, as there. Norms, layer scales, tables stay as they are.

    Args:
        a: slope of the negative part of the leaky rectifier that the formula is made for.
        keep: regular expression; parameters where it is found in the name keep the model's own start, as 'head'.
    """
    try:
        re.compile(keep)
    except re.error as error:
        raise UserError(f"config.init: keep={keep!r} is no regular expression ({error}).") from error

    def values(key: jax.Array, name: str, fresh: jax.Array, fan_in: int | None) -> jax.Array:
        if not fan_in or (keep and re.search(keep, name)):
            return fresh
        bound = fan_in**-0.5 * (1.0 if name.endswith("bias") else (6 / (1 + a**2)) ** 0.5)
        return jax.random.uniform(key, fresh.shape, jnp.float32, -bound, bound).astype(fresh.dtype)

    return values


SCHEMES: Mapping[str, Callable[..., Scheme]] = {"kaiming_uniform": kaiming_uniform}
