"""Model modules by name: `list_models`, `create`.

Names are those of the papers ('Mixer-B/16'); a family's own name ('MlpMixer') takes every size
from the caller.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax_mixer import plugins, specs
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models import layers
from vit_jax_mixer.models.gmlp import GMlp
from vit_jax_mixer.models.mixer import MlpMixer
from vit_jax_mixer.models.mnist_mixer import MnistMixer
from vit_jax_mixer.models.resmlp import ResMlp
from vit_jax_mixer.models.seq2seq import Seq2Seq
from vit_jax_mixer.models.tabular import TabularMixer

FLOATS = ("float32", "bfloat16", "float16")  # types that can be computed in


@dataclasses.dataclass(frozen=True)
class Entry:
    """A named model: its module, the sizes that the name stands for, and what it was made for."""

    module: Callable[..., nn.Module]
    sizes: Mapping[str, Any]
    image_shape: tuple[int, int, int] | None = None  # H, W, channels
    num_classes: int = 1000


def _mixer(num_blocks: int, patch_size: int, hidden_dim: int) -> Entry:
    """Return a row of the paper's table 1, where D_S is C / 2 and D_C is 4 C throughout."""
    sizes = dict(
        num_blocks=num_blocks,
        patch_size=patch_size,
        hidden_dim=hidden_dim,
        tokens_mlp_dim=hidden_dim // 2,
        channels_mlp_dim=hidden_dim * 4,
    )
    return Entry(MlpMixer, sizes, (224, 224, 3))


def _resmlp(num_blocks: int, patch_size: int, hidden_dim: int, layerscale_init: float) -> Entry:
    """Return a ResMLP of the paper; all of them keep an MLP ratio of 4."""
    sizes = dict(num_blocks=num_blocks, patch_size=patch_size, hidden_dim=hidden_dim, layerscale_init=layerscale_init)
    return Entry(ResMlp, sizes, (224, 224, 3))


def _gmlp(hidden_dim: int) -> Entry:
    """Return a gMLP of the paper's table 1; all of them have 30 blocks and an MLP ratio of 6."""
    return Entry(GMlp, dict(num_blocks=30, patch_size=16, hidden_dim=hidden_dim), (224, 224, 3))


MODELS: Mapping[str, Entry] = {
    "Mixer-S/32": _mixer(8, 32, 512),
    "Mixer-S/16": _mixer(8, 16, 512),
    "Mixer-S/8": _mixer(8, 8, 512),
    "Mixer-B/32": _mixer(12, 32, 768),
    "Mixer-B/16": _mixer(12, 16, 768),
    "Mixer-L/32": _mixer(24, 32, 1024),
    "Mixer-L/16": _mixer(24, 16, 1024),
    "Mixer-H/14": _mixer(32, 14, 1280),
    "ResMLP-S12": _resmlp(12, 16, 384, 0.1),
    "ResMLP-S24": _resmlp(24, 16, 384, 1e-5),
    "ResMLP-S36": _resmlp(36, 16, 384, 1e-6),
    "ResMLP-B24": _resmlp(24, 8, 768, 1e-6),
    "ResMLP-B24/16": _resmlp(24, 16, 768, 1e-6),
    "gMLP-Ti16": _gmlp(128),
    "gMLP-S16": _gmlp(256),
    "gMLP-B16": _gmlp(512),
    "MnistMixer": Entry(MnistMixer, {}, (28, 28, 1), num_classes=10),
    "MlpMixer": Entry(MlpMixer, {}),
    "ResMlp": Entry(ResMlp, {}),
    "GMlp": Entry(GMlp, {}),
    "TabularMixer": Entry(TabularMixer, {}),
    "Seq2Seq": Entry(Seq2Seq, {}),
}


def list_models() -> list[str]:
    """Return the names that `create` knows."""
    return list(MODELS)


def named(name: str, where: str) -> Entry:
    """Return what a name stands for: one of ours, or a user's module or `Entry`, as ``my_module:MyMixer``.

    Raises:
        UserError: there is none of that name, or it is no model.
    """
    found = plugins.lookup(MODELS, name, where)
    entry = found if isinstance(found, Entry) else Entry(found, {})
    if not (isinstance(entry.module, type) and issubclass(entry.module, nn.Module)):
        raise UserError(f"{where}: {name!r} is no flax.linen.Module; name one.")
    return entry


def create(name: str, num_classes: int | None = None, **overrides: Any) -> nn.Module:
    """Return the module of that name, with any of its attributes overridden.

    Args:
        name: of a model.
        num_classes: of the head; None for a model that knows no classes, as for a regression.
        overrides: attributes.

    Raises:
        UserError: the name or an override is not known, with the nearest that is; or a value makes no sense.
    """
    entry = named(name, "model name")
    fields = {**entry.sizes, **overrides}
    dtype = fields.get("dtype", "float32")
    if dtype not in (*FLOATS, *map(jnp.dtype, FLOATS), *(getattr(jnp, known) for known in FLOATS)):
        raise UserError(f"model {name}: dtype is {dtype!r}; choose from {', '.join(FLOATS)}.")
    if "patch_size" in fields:
        layers.patch_sides(fields["patch_size"])
    if num_classes is not None and "num_classes" not in specs.parameters_of(entry.module, ()):
        raise UserError(f"model {name} has no attribute num_classes, which a classifier needs; give it one.")
    head = {} if num_classes is None else {"num_classes": num_classes}
    # Flax's own two attributes are not a user's to set.
    return specs.call(entry.module, fields, f"model {name}", **head, parent=None, name=None)


def forward_flop(model: nn.Module, image_shape: tuple[int, ...]) -> float:
    """Return the FLOP of a forward pass of one image (h, w, c), 2 per multiply-add; 0 where JAX has no CPU.

    Nothing is computed: XLA's own analysis of the traced program counts, elementwise work included. GPUs and
    TPUs analyse compiled programs alone, so it is that of the machine's CPU, which JAX_PLATFORMS can leave out.
    """
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return 0.0
    fields: dict[str, Any] = {
        name: False for name in ("scan", "remat") if hasattr(model, name)
    }  # a loop's body would count once
    model = model.clone(**fields)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    with jax.default_device(cpu):
        analysis = jax.jit(model.apply).lower(variables, images).cost_analysis()
    assert analysis is not None  # a CPU has one
    return float(analysis["flops"])
