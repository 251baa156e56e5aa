"""What several model families share."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax_mixer import specs
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models import stacked
from vit_jax_mixer.specs import Within

Classes = Annotated[int, Within(0, 1 << 20)]  # 0 for a model without a head
Blocks = Annotated[int, Within(1, 10_000)]
Ratio = Annotated[float, Within(0, 1000)]


def embed_patches(
    images: jax.Array, patch_size: int | tuple[int, int], hidden_dim: int, dtype: Any, **init: Any
) -> jax.Array:
    """Project each patch to a token: f32[B, H, W, 3] -> f32[B, N, C]; called in a compact module.

    Args:
        images: f32[B, H, W, 3].
        patch_size: pixels of a patch's side, or (height, width).
        hidden_dim: C, channels of a token.
        dtype: of the computation.
        **init: ``kernel_init`` and ``bias_init`` of the projection; by default those of Flax.

    Raises:
        UserError: the patch size does not divide the image size.
    """
    patch = patch_sides(patch_size)
    size = images.shape[1:3]
    if not all(size) or size[0] % patch[0] or size[1] % patch[1]:
        raise UserError(
            f"images of {size[0]}x{size[1]} pixels cannot be cut into patches of {patch[0]}x{patch[1]}; "
            "choose an image size that is a multiple of the patch size."
        )
    x = nn.Conv(hidden_dim, patch, strides=patch, padding="VALID", dtype=dtype, name="stem", **init)(images)
    return x.reshape(x.shape[0], -1, hidden_dim)  # [B, H/P, W/P, C] -> [B, N, C]


def patch_sides(patch_size: Any) -> tuple[int, int]:
    """Return the height and width of a patch.

    Raises:
        UserError: it is neither a whole number of pixels nor two of them.
    """
    sides = tuple(patch_size) if isinstance(patch_size, (tuple, list)) else (patch_size, patch_size)
    if len(sides) != 2 or not all(type(side) is int and 1 <= side <= 1 << 20 for side in sides):
        raise UserError(f"patch_size is {str(patch_size)[:80]}; it must be a number of pixels, or (height, width).")
    return sides


def hidden_width(mlp_ratio: float, channels: int, field: str = "mlp_ratio", of: str = "channels") -> int:
    """Return the hidden width of an MLP; ``field`` and ``of`` are what a message calls the two.

    Raises:
        UserError: there would be none.
    """
    width = int(mlp_ratio * channels)
    if width < 1:
        raise UserError(f"{field} {mlp_ratio} of {channels} {of} leaves no hidden width; choose a larger one.")
    return width


def activation(spec: str, *, exact_gelu: bool = True) -> Callable[[jax.Array], jax.Array]:
    """Return the function between two dense layers of a block: 'gelu', 'relu', 'silu' or 'tanh'.

    Args:
        spec: its name.
        exact_gelu: whether 'gelu' is by the error function, not by tanh.

    Raises:
        UserError: there is no such function.
    """
    known: dict[str, Callable[[], Any]] = {
        "gelu": lambda: partial(nn.gelu, approximate=not exact_gelu),
        "relu": lambda: nn.relu,
        "silu": lambda: nn.silu,
        "tanh": lambda: nn.tanh,
    }
    return specs.build(known, spec, "config.model.activation")


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016, arXiv 1603.09382): some examples become zero.

    Attributes:
        rate: probability that an example is dropped; the others are divided by ``1 - rate``.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, rate: jax.Array | None = None) -> jax.Array:
        """Map f32[B, N, C] to f32[B, N, C]; ``rate``, f32[], is for a scan, where it cannot be an attribute."""
        if not train or self.rate == 0:
            return x
        keep: Any = 1 - (self.rate if rate is None else rate)
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, (len(x), 1, 1))
        scaled = x / (keep if rate is None else keep.astype(x.dtype))
        return jnp.where(kept, scaled, jnp.zeros_like(x))


def apply_blocks(
    model: Any,
    block: Callable[..., nn.Module],
    rates: Sequence[float],
    x: jax.Array,
    *,
    train: bool,
    before: Mapping[int, Sequence[nn.Module]] = MappingProxyType({}),
) -> jax.Array:
    """Map f32[B, N, C] to f32[B, N, C] by one block after another; called in a compact module.

    Args:
        model: has the fields ``scan`` and ``remat``; block i is offered as its intermediate ``block_i``.
        block: a partial of the blocks' class, which has a field ``stochastic_depth_rate``.
        rates: the value of that field for each block.
        x: f32[B, N, C].
        train: whether blocks draw.
        before: other modules, called with x and ``train``, that precede the block of that number.

    With ``remat``, the backward pass keeps the input of each block and computes the rest of it again.
    With ``scan``, one block is compiled and run in a loop, its parameters those of all blocks along
    a first axis, and marked as such (`stacked`).
    """
    kind = getattr(block, "func", block).__name__

    def call(module: Any, x: jax.Array, rate: jax.Array | None) -> jax.Array:
        return module(x, train=train, depth_rate=rate)

    def call_before(module: Any, x: jax.Array) -> jax.Array:
        return module(x, train=train)

    if model.remat:
        # A loop's body is a computation of its own: nothing in it can be merged with the forward pass.
        call = nn.remat(call, prevent_cse=not model.scan)  # pyright: ignore
        call_before = nn.remat(call_before)  # pyright: ignore
    if not model.scan:
        for i, rate in enumerate(rates):
            for one in before.get(i, ()):
                x = call_before(one, x)
            x = call(block(stochastic_depth_rate=rate, name=f"{kind}_{i}"), x, None)
            expose(model, f"block_{i}", x)
        return x

    return _looped(model, block(stochastic_depth_rate=max(rates), name=kind), rates, x, before, call, call_before)


def _looped(
    model: Any,
    module: nn.Module,
    rates: Sequence[float],
    x: jax.Array,
    before: Mapping[int, Sequence[nn.Module]],
    call: Callable[..., jax.Array],
    call_before: Callable[..., jax.Array],
) -> jax.Array:
    """Do what `apply_blocks` does with ``scan``: a loop over the blocks up to the next that something precedes."""
    exposed, making = model.is_mutable_collection("intermediates"), model.is_initializing()

    def body(module: Any, x: jax.Array, rate: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        x = call(module, x, rate)
        return x, x if exposed else None

    # Parameters are made for all blocks at once.
    parts = {0: [one for ones in before.values() for one in ones]} if making else {0: (), **before}
    starts = sorted(parts)
    # What is sown within blocks has an axis of one length for all loops.
    axes: dict[Any, Any] = {"params": 0, "intermediates": 0} if len(starts) == 1 else {"params": 0}
    for start, end in zip(starts, [*starts[1:], len(rates)], strict=True):
        for one in parts[start]:
            x = call_before(one, x)
        loop = nn.scan(body, variable_axes=axes, split_rngs={"params": True, "dropout": True})
        part = slice(start, end) if len(starts) > 1 else None
        loop = nn.map_variables(loop, "params", partial(_unmarked, part), _marked, init=making, mutable=making)
        x, tokens = loop(module, x, jnp.asarray(rates[start:end]))
        if tokens is not None:
            for i in range(start, end):
                expose(model, f"block_{i}", tokens[i - start])
    return x


def _marked(variables: Any) -> Any:
    return {"params": {stacked.MARK: variables["params"]}} if variables.get("params") else variables


def _unmarked(part: slice | None, variables: Any) -> Any:
    """Return the parameters as a loop reads them, of those blocks alone if not None."""
    if not variables.get("params"):
        return variables
    params = variables["params"][stacked.MARK]
    return {"params": params if part is None else jax.tree.map(lambda leaf: leaf[part], params)}


def expose(module: nn.Module, name: str, x: jax.Array) -> None:
    """Offer ``x`` as the intermediate ``name`` of the module."""
    module.sow("intermediates", name, x, init_fn=lambda: x, reduce_fn=lambda _, new: new)
