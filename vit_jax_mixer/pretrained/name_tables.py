"""The names of published parameters: for each way to write them a table, read in both directions.

A *convention* is a way in which files name the parameters of a family. Its table has a row for
each kind of parameter: their name, our name, and the change of layout between the two. ``{i}``
stands for the number of a block. Whatever no row names is refused.

Families other than the Mixer have no published JAX names; `resmlp` and `gmlp` are our own, as
`.npz` files written here hold them.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Layout:
    """A change of layout and its inverse; neither copies.

    Attributes:
        read: from their array to ours.
        write: from ours to theirs; None if it is not known.
        rank: axes of their array; None if any number will do.
    """

    read: Callable[[np.ndarray], np.ndarray]
    write: Callable[[np.ndarray], np.ndarray] | None
    rank: int | None = None


SAME = Layout(lambda x: x, lambda x: x)
DENSE = Layout(lambda x: x.T, lambda x: x.T, rank=2)  # (out, in) <-> (in, out)
CONV = Layout(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1), rank=4)  # OIHW <-> HWIO
ROW = Layout(lambda x: x.squeeze((0, 1)), lambda x: x[None, None], rank=3)  # (1, 1, C) <-> (C,)
SQUEEZED = Layout(np.squeeze, None)  # with axes of length 1 in places that are not known


@dataclasses.dataclass(frozen=True)
class Row:
    """A kind of parameter: their name, our name, the layout. ``{i}`` is a number, ``{n}`` one that is dropped."""

    theirs: str
    ours: str
    layout: Layout = SAME

    @functools.cached_property
    def their_pattern(self) -> re.Pattern[str]:
        return _pattern(self.theirs)

    @functools.cached_property
    def our_pattern(self) -> re.Pattern[str]:
        return _pattern(self.ours)


@dataclasses.dataclass(frozen=True)
class Convention:
    """The names of one kind of file.

    Attributes:
        family: 'mixer', 'mnist_mixer', 'resmlp', 'resmlp_folded' or 'gmlp'.
        rows: the table; the first row that fits a name counts.
    """

    family: str
    rows: tuple[Row, ...]

    @property
    def native(self) -> bool:
        """Whether their names are ours."""
        return all(row.theirs == row.ours and row.layout is SAME for row in self.rows)

    @property
    def writable(self) -> bool:
        return all(row.layout.write for row in self.rows)

    def read(self, name: str) -> tuple[str, Row] | None:
        """Return our name of their ``name`` and its row, or None."""
        for row in self.rows:
            if match := row.their_pattern.fullmatch(name):
                return row.ours.format(**match.groupdict()), row
        return None

    def write(self, name: str) -> tuple[str, Row] | None:
        """Return their name of our ``name`` and its row, or None."""
        for row in self.rows:
            if match := row.our_pattern.fullmatch(name):
                return row.theirs.format(**match.groupdict()), row
        return None


def _pattern(template: str) -> re.Pattern[str]:
    """Compile a name with ``{i}`` for a number without leading zeros: names round-trip exactly."""
    return re.compile(re.sub(r"\\{(\w)\\}", r"(?P<\1>0|[1-9][0-9]*)", re.escape(template)))


def _rows(theirs: str, ours: str, kinds: Mapping[str, str], layout: Layout = SAME) -> tuple[Row, ...]:
    """Return a row for each kind of parameter of a layer; ``kinds`` maps theirs to ours."""
    return tuple(Row(theirs + their, f"{ours}/{our}", layout) for their, our in kinds.items())


def _layer(theirs: str, ours: str, kernel: Layout = DENSE) -> tuple[Row, ...]:
    """Return the rows of a PyTorch layer."""
    return Row(f"{theirs}.weight", f"{ours}/kernel", kernel), Row(f"{theirs}.bias", f"{ours}/bias")


def _norm(theirs: str, ours: str) -> tuple[Row, ...]:
    """Return the rows of a PyTorch LayerNorm."""
    return _rows(theirs, ours, {".weight": "scale", ".bias": "bias"})


def _affine(theirs: str, ours: str, layout: Layout) -> tuple[Row, ...]:
    """Return the rows of a ResMLP's Aff."""
    return _rows(theirs, ours, {".alpha": "scale", ".beta": "bias"}, layout)


def _native(table: Iterable[Row]) -> tuple[Row, ...]:
    """Return the rows of our own names."""
    return tuple(Row(row.ours, row.ours) for row in table)


# timm/models/mlp_mixer.py: MlpMixer with its three kinds of block.
TIMM_MIXER = (
    *_layer("stem.proj", "stem", CONV),
    *_norm("blocks.{i}.norm1", "MixerBlock_{i}/LayerNorm_0"),
    *_layer("blocks.{i}.mlp_tokens.fc1", "MixerBlock_{i}/token_mixing/Dense_0"),
    *_layer("blocks.{i}.mlp_tokens.fc2", "MixerBlock_{i}/token_mixing/Dense_1"),
    *_norm("blocks.{i}.norm2", "MixerBlock_{i}/LayerNorm_1"),
    *_layer("blocks.{i}.mlp_channels.fc1", "MixerBlock_{i}/channel_mixing/Dense_0"),
    *_layer("blocks.{i}.mlp_channels.fc2", "MixerBlock_{i}/channel_mixing/Dense_1"),
    *_norm("norm", "pre_head_layer_norm"),
    *_layer("head", "head"),
)
TIMM_RESMLP = (
    *_layer("stem.proj", "stem", CONV),
    *_affine("blocks.{i}.norm1", "ResMlpBlock_{i}/Affine_0", ROW),
    *_layer("blocks.{i}.linear_tokens", "ResMlpBlock_{i}/token_mixing"),
    Row("blocks.{i}.ls1", "ResMlpBlock_{i}/LayerScale_0/scale"),
    *_affine("blocks.{i}.norm2", "ResMlpBlock_{i}/Affine_1", ROW),
    *_layer("blocks.{i}.mlp_channels.fc1", "ResMlpBlock_{i}/Dense_0"),
    *_layer("blocks.{i}.mlp_channels.fc2", "ResMlpBlock_{i}/Dense_1"),
    Row("blocks.{i}.ls2", "ResMlpBlock_{i}/LayerScale_1/scale"),
    *_affine("norm", "pre_head_affine", ROW),
    *_layer("head", "head"),
)
TIMM_GMLP = (
    *_layer("stem.proj", "stem", CONV),
    *_norm("blocks.{i}.norm", "GMlpBlock_{i}/LayerNorm_0"),
    *_layer("blocks.{i}.mlp_channels.fc1", "GMlpBlock_{i}/Dense_0"),
    *_norm("blocks.{i}.mlp_channels.gate.norm", "GMlpBlock_{i}/spatial_gating/LayerNorm_0"),
    *_layer("blocks.{i}.mlp_channels.gate.proj", "GMlpBlock_{i}/spatial_gating/token_mixing"),
    *_layer("blocks.{i}.mlp_channels.fc2", "GMlpBlock_{i}/Dense_1"),
    *_norm("norm", "pre_head_layer_norm"),
    *_layer("head", "head"),
)
# facebookresearch/deit, resmlp_models.py.
OFFICIAL_RESMLP = (
    *_layer("patch_embed.proj", "stem", CONV),
    *_affine("blocks.{i}.norm1", "ResMlpBlock_{i}/Affine_0", SAME),
    *_layer("blocks.{i}.attn", "ResMlpBlock_{i}/token_mixing"),
    Row("blocks.{i}.gamma_1", "ResMlpBlock_{i}/LayerScale_0/scale"),
    *_affine("blocks.{i}.norm2", "ResMlpBlock_{i}/Affine_1", SAME),
    *_layer("blocks.{i}.mlp.fc1", "ResMlpBlock_{i}/Dense_0"),
    *_layer("blocks.{i}.mlp.fc2", "ResMlpBlock_{i}/Dense_1"),
    Row("blocks.{i}.gamma_2", "ResMlpBlock_{i}/LayerScale_1/scale"),
    *_affine("norm", "pre_head_affine", SAME),
    *_layer("head", "head"),
)
# What `models.resmlp.fold` makes of it; our names, as there are no others.
FOLDED_RESMLP = (
    *(row for row in _native(TIMM_RESMLP) if not re.search("/Affine_|/LayerScale_|/token_mixing/bias", row.ours)),
    *_rows("ResMlpBlock_{i}", "ResMlpBlock_{i}", {"/token_scale": "token_scale", "/token_bias": "token_bias"}),
)

# Names before Linen, as google-research/big_vision (models/mlp_mixer.py, `load`) still reads them.
# All submodules of a module shared one counter then, hence the {n}. Which axes of length 1 the
# arrays of the mixing MLPs have is not written anywhere, so these files are read and not written.
KERNEL, NORM = {"/kernel": "kernel", "/bias": "bias"}, {"/scale": "scale", "/bias": "bias"}
OLD_MLP = {f"/{kind}{j + 1}": f"Dense_{j}/{kind}" for j in range(2) for kind in ("kernel", "bias")}
MIXER_OLD = (
    *_rows("embedding", "stem", KERNEL),
    *_rows("Mixer/encoderblock_{i}/LayerNorm_0", "MixerBlock_{i}/LayerNorm_0", NORM),
    *_rows("Mixer/encoderblock_{i}/LayerNorm_{n}", "MixerBlock_{i}/LayerNorm_1", NORM),
    *_rows("Mixer/encoderblock_{i}/token_mixing_phase_{n}", "MixerBlock_{i}/token_mixing", OLD_MLP, SQUEEZED),
    *_rows("Mixer/encoderblock_{i}/channel_mixing_phase_{n}", "MixerBlock_{i}/channel_mixing", OLD_MLP, SQUEEZED),
    *_rows("Mixer/encoder_norm", "pre_head_layer_norm", NORM),
    *_rows("head", "head", KERNEL),
)

# A MnistMixer as it was saved when its blocks had the name of a Mixer's.
READ_ALONE = Layout(lambda x: x, None)
MNIST_MIXER_OLD = tuple(
    Row(row.ours, row.ours.replace("MixerBlock", "MnistMixerBlock"), READ_ALONE)
    for row in (
        *(row for row in _native(TIMM_MIXER) if row.ours.startswith(("stem/", "MixerBlock_"))),
        *_native(_layer("", "head/Dense_{i}")),
    )
)

CONVENTIONS: Mapping[str, Convention] = {
    "mixer": Convention("mixer", _native(TIMM_MIXER)),
    "mixer_old": Convention("mixer", MIXER_OLD),
    "mnist_mixer_old": Convention("mnist_mixer", MNIST_MIXER_OLD),
    "timm_mixer": Convention("mixer", TIMM_MIXER),
    "official_resmlp": Convention("resmlp", OFFICIAL_RESMLP),
    "timm_resmlp": Convention("resmlp", TIMM_RESMLP),
    "timm_gmlp": Convention("gmlp", TIMM_GMLP),
    "resmlp": Convention("resmlp", _native(TIMM_RESMLP)),
    "resmlp_folded": Convention("resmlp_folded", FOLDED_RESMLP),
    "gmlp": Convention("gmlp", _native(TIMM_GMLP)),
}
FAMILY: Mapping[str, str] = {key: convention.family for key, convention in CONVENTIONS.items()}
