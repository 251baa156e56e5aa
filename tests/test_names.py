import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file

from tests.helpers import DATA, assert_close, assert_same, nested
from vit_jax_mixer import models, pretrained
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models.gmlp import GMlp
from vit_jax_mixer.models.mixer import MlpMixer
from vit_jax_mixer.models.mnist_mixer import MnistMixer
from vit_jax_mixer.models.resmlp import ResMlp
from vit_jax_mixer.pretrained import name_tables, names, torch_file

MIXERS = json.loads((DATA / "mixer_param_shapes.json").read_text())
RESMLPS = json.loads((DATA / "resmlp_state_dict_shapes.json").read_text())
RESMLP_NAMES = {
    "resmlp_12": "ResMLP-S12",
    "resmlp_24": "ResMLP-S24",
    "resmlp_36": "ResMLP-S36",
    "resmlpB_24": "ResMLP-B24",
}
SIZES = dict(num_classes=7, num_blocks=2, patch_size=8, hidden_dim=24)
# File, its convention, the model, the file of expected values.
PAIRS = {
    "mixer": ("mixer_tiny_params.npz", MlpMixer(**SIZES, tokens_mlp_dim=10, channels_mlp_dim=36), "mixer_tiny"),
    "timm_mixer": (
        "mixer_torch_tiny_timm.safetensors",
        MlpMixer(**SIZES, tokens_mlp_dim=12, channels_mlp_dim=96),
        "mixer_torch_tiny",
    ),
    "timm_resmlp": ("resmlp_tiny_timm.safetensors", ResMlp(**SIZES, layerscale_init=0.1), "resmlp_tiny"),
    "official_resmlp": ("resmlp_tiny.pth", ResMlp(**SIZES, layerscale_init=0.1), "resmlp_tiny"),
    "timm_gmlp": ("gmlp_tiny_timm.safetensors", GMlp(**SIZES), "gmlp_tiny"),
}


def read(convention):
    path = DATA / PAIRS[convention][0]
    if path.suffix == ".npz":
        return dict(np.load(path))
    return torch_file.read(path) if path.suffix == ".pth" else load_file(path)


def hollow(shapes):
    """Return arrays of those shapes that take no memory."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def shapes_of(tree):
    return {name: tuple(value.shape) for name, value in traverse_util.flatten_dict(tree, sep="/").items()}


def assert_full_size(name, tree):
    model = models.create(name, num_classes=1000)
    expected = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))["params"]
    assert shapes_of(tree) == shapes_of(expected)


@pytest.mark.parametrize("convention", PAIRS)
def test_a_reference_file_gives_its_logits_and_round_trips_to_the_bit(convention):
    _, model, expected = PAIRS[convention]
    flat, reference = read(convention), np.load(DATA / f"{expected}_reference.npz")
    assert names.detect(flat, "file") == convention
    params = names.to_ours(flat, convention, "file")
    assert convention in names.conventions_of(params)
    if convention == "timm_mixer":  # timm computes the exact GELU where the original has its tanh form
        model = model.clone(exact_gelu=True)
    images = reference["images"] if "images" in reference else reference["images_nchw"].transpose(0, 2, 3, 1)
    assert_close(model.apply({"params": params}, images), reference["logits"])
    assert_same(names.from_ours(params, convention), flat)


@pytest.mark.parametrize("convention", PAIRS)
def test_every_other_naming_of_a_model_round_trips_to_the_bit(convention):
    params = names.to_ours(read(convention), convention, "file")
    others = names.conventions_of(params)
    assert {name_tables.FAMILY[other] for other in others} == {name_tables.FAMILY[convention]}
    for other in others:
        flat = names.from_ours(params, other)
        assert names.detect(flat, "file") == other
        assert_same(names.to_ours(flat, other, "file"), params)


def test_timm_and_official_files_of_one_resmlp_are_the_same_parameters():
    official, timm = read("official_resmlp"), read("timm_resmlp")
    assert_same(names.from_ours(names.to_ours(official, "official_resmlp", "a"), "timm_resmlp"), timm)
    assert_same(names.from_ours(names.to_ours(timm, "timm_resmlp", "a"), "official_resmlp"), official)


def test_nothing_is_copied():
    flat = read("timm_resmlp")
    params = names.to_ours(flat, "timm_resmlp", "file")
    assert np.shares_memory(params["stem"]["kernel"], flat["stem.proj.weight"])
    assert np.shares_memory(
        names.from_ours(params, "official_resmlp")["blocks.0.attn.weight"], flat["blocks.0.linear_tokens.weight"]
    )


@pytest.mark.parametrize("name", RESMLPS)
def test_published_resmlps_fit_their_models(name):
    flat = hollow(RESMLPS[name])
    assert names.detect(flat, name) == "official_resmlp"
    params = names.to_ours(flat, "official_resmlp", name)
    assert_full_size(RESMLP_NAMES[name], params)
    assert shapes_of(names.from_ours(params, "official_resmlp")) == shapes_of(flat)


@pytest.mark.parametrize("name", MIXERS)
def test_published_mixers_fit_their_models_in_both_namings(name):
    flat = hollow(MIXERS[name]["shapes"])
    assert names.detect(flat, name) == "mixer"
    params = names.to_ours(flat, "mixer", name)
    assert_full_size(name.replace("_", "/"), params)
    timm = names.from_ours(params, "timm_mixer")
    assert names.detect(timm, name) == "timm_mixer"
    assert shapes_of(names.to_ours(timm, "timm_mixer", name)) == shapes_of(params)


def old(name):
    """Return a name of ours as it was before Linen, with the numbers that a shared counter gives."""
    for new, before in [
        ("pre_head_layer_norm", "Mixer/encoder_norm"),
        ("stem", "embedding"),
        ("MixerBlock_", "Mixer/encoderblock_"),
        ("LayerNorm_1", "LayerNorm_2"),
        ("token_mixing", "token_mixing_phase_1"),
        ("channel_mixing", "channel_mixing_phase_3"),
    ]:
        name = name.replace(new, before)
    for j, kind in [(0, "kernel"), (0, "bias"), (1, "kernel"), (1, "bias")]:
        name = name.replace(f"Dense_{j}/{kind}", f"{kind}{j + 1}")
    return name


def test_names_from_before_linen_are_read():
    flat = read("mixer")
    before = {old(name): value[None] if "phase" in old(name) else value for name, value in flat.items()}
    assert names.detect(before, "file") == "mixer_old"
    params = names.to_ours(before, "mixer_old", "file")
    assert_same(params, nested(np.load(DATA / "mixer_tiny_params.npz")))
    with pytest.raises(UserError, match="can be read in the names of mixer_old, not written; write mixer"):
        names.from_ours(params, "mixer_old")


@pytest.mark.parametrize("convention", PAIRS)
def test_a_file_without_a_head_is_fine(convention):
    flat = {name: value for name, value in read(convention).items() if not name.startswith("head")}
    assert names.detect(flat, "file") == convention
    params = names.to_ours(flat, convention, "file")
    assert "head" not in params
    assert convention in names.conventions_of(params)


def test_device_arrays_are_written_as_numpy():
    params = jax.tree.map(jnp.asarray, names.to_ours(read("timm_gmlp"), "timm_gmlp", "file"))
    flat = names.from_ours(params, "timm_gmlp")
    assert all(isinstance(value, np.ndarray) for value in flat.values())
    assert_same(flat, read("timm_gmlp"))


def vit(blocks=2):
    """Return some names of a vision transformer in PyTorch, which a ResMLP's resemble."""
    block = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
    layers = ["patch_embed.proj", "norm", "head", *(f"blocks.{i}.{layer}" for i in range(blocks) for layer in block)]
    return dict.fromkeys(["cls_token", "pos_embed", *(f"{n}.{k}" for n in layers for k in ("weight", "bias"))])


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        ({}, "file has parameters of no family known here .none at all."),
        (dict.fromkeys(["a", "b", "c", "d"]), r"\(a, b, c, \.\.\.\); the names that can be read are those of mixer, "),
        (vit(), "no family known here .cls_token, pos_embed"),
        (dict.fromkeys(["head.weight", "head.bias"]), "too few parameters .* to tell timm_mixer from official_resmlp"),
    ],
)
def test_files_of_other_models_are_not_detected(flat, message):
    with pytest.raises(UserError, match=message):
        names.detect(flat, "file")


@pytest.mark.parametrize(
    "name",
    [
        "blocks.0.mlp_tokens.fc3.weight",
        "blocks.00.norm1.weight",
        "blocks.-1.norm1.weight",
        "blocks.²1.norm1.weight",
        "blocks.٣.norm1.weight",
        "blocksX0.norm1.weight",
        "head.weight\n",
        "head.weight.ema",
        "pos_embed",
        "../head.weight",
        "",
    ],
)
def test_unknown_names_are_refused(name):
    flat = {**read("timm_mixer"), name: np.zeros(3, np.float32)}
    assert names.detect(flat, "file") == "timm_mixer"
    with pytest.raises(UserError, match="is no parameter in the names of timm_mixer") as caught:
        names.to_ours(flat, "timm_mixer", "file")
    assert f"file: {name} is" in str(caught.value)


@pytest.mark.parametrize(
    ("convention", "name", "shape"),
    [
        ("timm_mixer", "head.weight", (7,)),
        ("timm_mixer", "stem.proj.weight", (24, 192)),
        ("timm_resmlp", "norm.alpha", (24,)),
        ("timm_resmlp", "norm.alpha", (1, 2, 24)),
    ],
)
def test_arrays_that_cannot_be_laid_out_are_refused(convention, name, shape):
    flat = {**read(convention), name: np.zeros(shape, np.float32)}
    with pytest.raises(UserError, match=f"file: {name} has shape .* which {convention} does not give it"):
        names.to_ours(flat, convention, "file")


def test_two_names_of_one_parameter_are_refused():
    flat = {f"Mixer/encoderblock_0/LayerNorm_{n}/scale": np.zeros(3, np.float32) for n in (0, 1, 2)}
    with pytest.raises(UserError, match=r"file names one parameter twice: .*LayerNorm_2/scale"):
        names.to_ours(flat, "mixer_old", "file")


def test_trees_of_other_models_have_no_convention():
    tree = jax.eval_shape(MnistMixer(num_classes=10).init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))["params"]
    assert names.conventions_of(tree) == []
    assert names.conventions_of({}) == []
    with pytest.raises(
        UserError, match=r"timm_mixer has no name for the parameter .*; conventions for this model: none"
    ):
        names.from_ours(tree, "timm_mixer")
    with pytest.raises(UserError, match="'timm' is not known"):
        names.from_ours(tree, "timm")


def test_a_model_of_another_shape_with_some_of_the_names_keeps_its_own():
    layer = {"kernel": np.zeros((3, 4), np.float32), "bias": np.zeros(4, np.float32)}
    tree = {"stem": layer, "head": layer}  # in a Mixer the stem is a convolution
    assert "timm_mixer" not in names.conventions_of(tree)
    flat, _, convention = pretrained.rename(tree, ".safetensors")
    assert convention == "ours"
    assert flat.keys() == {"stem/kernel", "stem/bias", "head/kernel", "head/bias"}


def test_the_names_of_a_mnist_mixer_from_before_its_blocks_had_their_own_are_read():
    tree = jax.eval_shape(MnistMixer(num_classes=10).init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))["params"]
    shapes = shapes_of(tree)
    old = {name.replace("MnistMixerBlock", "MixerBlock"): shape for name, shape in shapes.items()}
    assert old.keys() != shapes.keys()
    assert names.detect(old, "file") == "mnist_mixer_old"
    assert shapes_of(names.to_ours(hollow(old), "mnist_mixer_old", "file")) == shapes
