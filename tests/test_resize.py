import json
import math
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits, mixer_b16
from tests.helpers import assert_close, assert_same, command
from vit_jax_mixer import models, pretrained, tasks
from vit_jax_mixer.config import Config
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.pretrained.resize import differ_in_size, known_size, resize
from vit_jax_mixer.train import train_and_evaluate

PATCH = (2, 3)
SIZES = dict(num_blocks=2, patch_size=PATCH, hidden_dim=8)
FAMILIES = {
    "MlpMixer": dict(SIZES, tokens_mlp_dim=5, channels_mlp_dim=12),
    "ResMlp": dict(SIZES, layerscale_init=0.5),
    "GMlp": SIZES,
}


def create(family, size, *, seed=None, **fields):
    """Return a headless model and its parameters: random ones that are not zero, or shapes alone."""
    model = models.create(family, 0, **{**FAMILIES.get(family, {}), **fields})
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *size, 3)))["params"]
    if seed is None:
        return model, shapes
    rng = np.random.default_rng(seed)
    return model, jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32), shapes)


def apply(model, params, images):
    return jax.jit(model.apply)({"params": params}, images)


def pixels(size, count=2, seed=1):
    return np.random.default_rng(seed).normal(size=(count, *size, 3)).astype(np.float32)


def linear(x, shape):
    return np.asarray(jax.image.resize(x, shape, "linear", precision=jax.lax.Precision.HIGHEST))


# --- block_diagonal ---


@pytest.mark.parametrize(
    ("family", "times"),
    [*((family, (2, 2)) for family in FAMILIES), ("MlpMixer", (1, 3)), ("ResMlp", (2, 1)), ("GMlp", (3, 2))],
)
def test_enlarged_by_blocks_the_features_are_the_mean_over_the_parts(family, times):
    height, width = 4, 9
    size = (height * times[0], width * times[1])
    small, loaded = create(family, (height, width), seed=0)
    wider = {"tokens_mlp_dim": 5 * math.prod(times)} if family == "MlpMixer" else {}
    large, like = create(family, size, **wider)
    params = resize(loaded, like, "block_diagonal", size=size, source_size=(height, width), where="w.npz")
    params = pretrained.fill(like, params, new=(), where="w.npz")

    images = pixels(size)
    corners = [(i * height, j * width) for i in range(times[0]) for j in range(times[1])]
    parts = np.concatenate([images[:, i : i + height, j : j + width] for i, j in corners])
    expected = apply(small, loaded, parts).reshape(len(corners), len(images), -1).mean(0)
    assert_close(apply(large, params, images), expected)


def test_the_hidden_width_that_must_be_set_is_named():
    _, loaded = create("MlpMixer", (4, 6), seed=0)
    _, like = create("MlpMixer", (8, 12))
    with pytest.raises(UserError, match=r"w\.npz another hidden width .* set config\.model\.tokens_mlp_dim=20\.$"):
        resize(loaded, like, "block_diagonal", size=(8, 12), where="w.npz")


# --- interpolate ---


def mix(family, params, x):
    """Apply the token mixing of block 0 to [N, C]."""
    block = params[{"MlpMixer": "MixerBlock_0", "ResMlp": "ResMlpBlock_0", "GMlp": "GMlpBlock_0"}[family]]
    dense = lambda layer, x: layer["kernel"].T @ x + layer["bias"][:, None]
    if family == "MlpMixer":
        hidden = dense(block["token_mixing"]["Dense_0"], x)
        return dense(block["token_mixing"]["Dense_1"], np.asarray(jax.nn.gelu(hidden)))
    return dense((block if family == "ResMlp" else block["spatial_gating"])["token_mixing"], x)


def interpolated(family, old, new):
    """Return parameters for grids of tokens, before and after."""
    size, source = ((PATCH[0] * h, PATCH[1] * w) for h, w in (new, old))
    _, loaded = create(family, source, seed=0)
    model, like = create(family, size)
    params = resize(loaded, like, "interpolate", size=size, source_size=source, where="w.npz")
    return model, loaded, pretrained.fill(like, params, new=(), where="w.npz")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("old", "new"), [((4, 4), (6, 6)), ((6, 4), (3, 3)), ((2, 5), (3, 4))])
def test_interpolated_mixing_is_that_of_the_old_grid_between_two_resizes(family, old, new):
    _, loaded, params = interpolated(family, old, new)
    x = np.random.default_rng(2).normal(size=(*new, 7)).astype(np.float32)
    mixed = mix(family, loaded, linear(x, (*old, 7)).reshape(-1, 7)).reshape(*old, 7)
    assert_close(mix(family, params, x.reshape(-1, 7)), linear(mixed, (*new, 7)).reshape(-1, 7), 1e-5)


@pytest.mark.parametrize(("old", "new"), [((4, 4), (6, 6)), ((6, 4), (3, 3)), ((2, 5), (3, 4))])
def test_tokens_that_are_all_alike_reach_the_hidden_layer_as_before(old, new):
    _, loaded, params = interpolated("MlpMixer", old, new)
    before, after = (tree["MixerBlock_0"]["token_mixing"]["Dense_0"] for tree in (loaded, params))
    assert_close(after["kernel"].sum(0), before["kernel"].sum(0), 1e-6)
    assert_same(after["bias"], before["bias"])


@pytest.mark.parametrize("family", ["MlpMixer", "ResMlp"])
def test_a_constant_image_keeps_its_features_at_twice_the_size(family):
    # Each place has its own value behind the first mixing, and later resizes blur those: but not if weights are smooth.
    _, _, smooth = interpolated(family, (2, 2), (8, 8))
    model, like = create(family, (32, 48))
    large = resize(smooth, like, "interpolate", size=(32, 48), where="w.npz")
    constant = lambda *size: np.broadcast_to(np.float32([0.3, -0.2, 0.8]), (1, *size, 3))
    before = apply(model, smooth, constant(16, 24))
    assert_close(apply(model, large, constant(32, 48)), before, 0.005)


# --- patch ---


@pytest.mark.parametrize("new", [(4, 6), (5, 4), (3, 3)])
def test_enlarged_patches_give_the_same_tokens(new):
    _, loaded = create("ResMlp", (4, 6), seed=0)
    size = (2 * new[0], 2 * new[1])
    _, like = create("ResMlp", size, patch_size=new)
    params = resize(loaded, like, "patch", size=size, where="w.npz")
    old_kernel, kernel = loaded["stem"]["kernel"], params["stem"]["kernel"]
    x = np.random.default_rng(3).normal(size=(*PATCH, 3)).astype(np.float32)
    product = lambda x, kernel: np.einsum("hwc,hwck->k", x, kernel)
    assert_close(product(linear(x, (*new, 3)), kernel), product(x, old_kernel), 1e-4)
    for name in ("ResMlpBlock_0", "ResMlpBlock_1", "pre_head_affine"):
        assert_same(params[name], loaded[name])


def test_a_shrunk_patch_embedding_is_the_pseudo_inverse_of_the_paper():
    old, new = (6, 4), (3, 2)
    _, loaded = create("ResMlp", (6, 4), seed=0, patch_size=old)
    _, like = create("ResMlp", new, patch_size=new)
    found = resize(loaded, like, "patch", size=new, where="w.npz")["stem"]["kernel"]
    basis = np.eye(24, dtype=np.float32).reshape(24, *old)
    matrix = linear(basis, (24, *new)).reshape(24, -1).T  # B: from a patch to the smaller one
    expected = np.linalg.pinv(matrix.T) @ loaded["stem"]["kernel"].reshape(24, -1)
    assert_close(found, expected.reshape(found.shape))


# --- Both, none, and what cannot be ---


def test_image_and_patch_size_may_change_together():
    _, loaded = create("GMlp", (8, 12), seed=0)
    _, like = create("GMlp", (30, 24), patch_size=(6, 4))
    params = resize(loaded, like, "patch|interpolate", size=(30, 24), where="w.npz")
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, like)
    assert_same(params, resize(loaded, like, "interpolate|patch", size=(30, 24), where="w.npz"))
    # With as many patches as before, patch alone will do.
    _, like = create("GMlp", (16, 12), patch_size=(4, 3))
    params = resize(loaded, like, "patch", size=(16, 12), where="w.npz")
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, like)


@pytest.mark.parametrize("how", ["", "block_diagonal", "interpolate|patch"])
def test_weights_of_the_right_size_stay_to_the_bit(how):
    _, loaded = create("MlpMixer", (8, 12), seed=0)
    _, like = create("MlpMixer", (8, 12))
    assert_same(resize(loaded, like, how, size=(8, 12), where=""), loaded)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("block", r"config\.init_resize: 'block' is not known; did you mean 'block_diagonal'\? Known: .*interpolate"),
        ("patch|", r"config\.init_resize: '' is not of the form"),
        ("patch(3)", "'patch.3.' has too many arguments; patch takes none"),
        ("interpolate(source_size=12)", r"source_size is 12, not \(height, width\) in pixels"),
        ("interpolate|block_diagonal", "says twice what to do with the same weights"),
        ("block_diagonal", r"which those of 5x4 tokens are not for a checkpoint of 2x2; choose .* 'interpolate'"),
        ("interpolate(source_size=(4, 9))", "w.npz has 4 tokens of 2x3 pixels, which images of 4x9 pixels have not;"),
    ],
)
def test_what_cannot_be_is_one_sentence(how, sentence):
    _, loaded = create("ResMlp", (4, 6), seed=0)
    _, like = create("ResMlp", (10, 12))
    with pytest.raises(UserError, match=sentence) as error:
        resize(loaded, like, how, size=(10, 12), where="w.npz")
    assert "\n" not in str(error.value)


def test_a_grid_that_is_not_known_must_be_named():
    _, loaded = create("ResMlp", (4, 9), seed=0)
    _, like = create("ResMlp", (8, 9))
    with pytest.raises(UserError, match=r"w\.npz has 6 tokens of 2x3 pixels, which a square image cannot have; name"):
        resize(loaded, like, "interpolate", size=(8, 9), where="w.npz")
    named = resize(loaded, like, "interpolate(source_size=(4, 9))", size=(8, 9), where="w.npz")
    assert_same(named, resize(loaded, like, "interpolate", size=(8, 9), source_size=(4, 9), where="w.npz"))


def test_only_models_that_can_be_resized_are(tmp_path):
    mnist = models.create("MnistMixer", 10)
    shapes = jax.eval_shape(mnist.init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))["params"]
    loaded = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    with pytest.raises(UserError, match=r"is for a Mixer, ResMLP or gMLP, and w\.npz holds another model \(.*MnistM"):
        resize(loaded, shapes, "interpolate", size=(56, 56), where="w.npz")

    _, loaded = create("ResMlp", (4, 6), seed=0)
    _, like = create("ResMlp", (8, 12))
    for change, sentence in (
        ({"stem": {"kernel": np.ones(3, np.float32)}}, r"stem/kernel has shape \(3,\), which no model gives it"),
        ({"stem": {}}, "lacks its stem"),
        ({"ResMlpBlock_0": {"token_mixing": {"bias": np.ones(5, np.float32)}}}, "do not agree on the number of tokens"),
    ):
        with pytest.raises(UserError, match=sentence):
            resize({**loaded, **change}, like, "interpolate", size=(8, 12), where="w.npz")


@pytest.mark.parametrize(
    ("misfits", "expected"),
    [
        ([("MixerBlock_3/token_mixing/Dense_0/kernel", (16, 5), (64, 20))], True),
        ([("ResMlpBlock_10/token_mixing/bias", (16,), (64,)), ("stem/kernel", (2, 2, 3, 8), (4, 4, 3, 8))], True),
        ([("MixerBlock_3/token_mixing/Dense_0/kernel", (16, 5), (16, 20))], False),
        ([("stem/kernel", (2, 2, 3, 8), (4, 4, 3, 9))], False),
        ([("stem/kernel", (2, 2, 3, 8), None)], False),
        ([("stem/kernel", (2, 2, 3, 8), (4, 4, 3, 8)), ("stem/bias", (8,), (9,))], False),
    ],
)
def test_misfits_of_size_are_told_from_others(misfits, expected):
    assert differ_in_size(misfits) == expected


def test_a_workdir_tells_the_size_of_its_images(tmp_path):
    (tmp_path / "checkpoints/3").mkdir(parents=True)
    assert known_size(tmp_path) is None
    (tmp_path / "model.json").write_text(json.dumps({"image_shape": [8, 24, 3]}))
    assert known_size(tmp_path) == known_size(tmp_path / "checkpoints/3") == (8, 24)
    assert known_size(tmp_path / "model.json") is None
    assert known_size(tmp_path / "absent.npz") is None
    for damaged in ("[]", '{"image_shape": [8]}'):
        (tmp_path / "model.json").write_text(damaged)
        with pytest.raises(UserError, match=r"model\.json is damaged"):
            known_size(tmp_path)


# --- In a run ---


@pytest.mark.parametrize("pixels", [448, 384, 112])
def test_the_fine_tuning_config_fits_published_weights_to_its_size(pixels):
    config = mixer_b16.get_config(f"cifar10,{pixels}")
    with config.unlocked():
        config.model.num_blocks = 1
    _, like = create(config.model.name, (pixels, pixels), **{k: v for k, v in config.model.items() if k != "name"})
    _, shapes = create("Mixer-B/16", (224, 224), num_blocks=1)
    loaded = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    params = resize(loaded, like, config.init_resize, size=(pixels, pixels), where="w.npz")
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, like)
    assert config.data.eval_ops == f"decode(3)|resize({pixels})|value_range(-1, 1)"
    assert config.data.train_ops.startswith(f"decode_crop({pixels})|")


@pytest.mark.parametrize("size", ["100", "0", "big"])
def test_the_fine_tuning_config_refuses_sizes_without_whole_patches(size):
    with pytest.raises(ValueError, match=f"image size '{size}' is no multiple of the patch size, 16; choose another"):
        mixer_b16.get_config(f"cifar10,{size}")


def config_of(size=8, **fields):
    config = digits.get_config()
    config.steps, config.batch_size, config.eval_batch_size = 2, 16, 16
    config.optim.warmup_steps = 1
    config.model.num_blocks = 1
    config.data.train_ops = config.data.eval_ops = f"decode(1)|resize({size})|value_range(-1, 1)"
    config.data.eval, config.checkpoint.best = "test[:10]", ""
    config.update(fields)
    return config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("small")
    train_and_evaluate(config_of(), path)
    return path


def test_a_run_begins_with_the_enlarged_weights(workdir):
    config = config_of(16, init_from=str(workdir), init_resize="block_diagonal")
    config.model.tokens_mlp_dim = 128
    small, large = tasks.create(Config.of(config_of())), tasks.create(Config.of(config))
    fresh, extra = jax.jit(large.init)(jax.random.key(0))
    params, _ = large.load(fresh, extra)
    assert_same(params["head"], fresh["head"])

    batch = np.stack([large.train_data.get(i, np.random.default_rng(0))["image"] for i in range(5)])
    images, _ = large.data.eval_ops.on_device(jnp.asarray(batch))
    features = lambda task, params, images: jax.jit(partial(task.model.apply, mutable=["intermediates"]))(
        {"params": params}, images
    )[1]["intermediates"]["pre_logits"]
    parts = jnp.concatenate([images[:, i : i + 8, j : j + 8] for i in (0, 8) for j in (0, 8)])
    expected = features(small, pretrained.load(workdir), parts).reshape(4, 5, -1).mean(0)
    assert_close(features(large, params, images), expected)


@pytest.mark.slow
def test_the_command_line_fine_tunes_at_twice_the_size_and_goes_on_without_the_checkpoint(workdir, tmp_path):
    source = shutil.copytree(workdir, tmp_path / "small")
    config = config_of(16, init_from=str(source), init_resize="block_diagonal")
    config.model.tokens_mlp_dim = 128
    flags = [f"--config.data.{name}={config.data[name]}" for name in ("train_ops", "eval_ops", "eval")]
    flags += ["--config.batch_size=16", "--config.eval_batch_size=16", "--config.checkpoint.best="]
    flags += ["--config.steps=2", "--config.optim.warmup_steps=1", "--config.model.num_blocks=1"]
    flags += [f"--config.init_from={source}", "--config.init_resize=block_diagonal", f"--workdir={tmp_path}/large"]
    result = command("main", "--config=configs/digits.py", *flags, "--config.model.tokens_mlp_dim=128")
    assert result.returncode == 0, result.stderr
    shutil.rmtree(source)
    config.steps = 3
    assert int(train_and_evaluate(config, tmp_path / "large", change_config=True).step) == 3


def test_other_sizes_interpolate_or_say_how(workdir):
    load = lambda config: (task := tasks.create(Config.of(config))).load(*jax.jit(task.init)(jax.random.key(0)))[0]
    config = config_of(12, init_from=str(workdir))
    with pytest.raises(UserError, match=r"or bring it to yours by config\.init_resize: block_diagonal, interpolate,"):
        load(config)
    config.init_resize = "interpolat"
    with pytest.raises(UserError, match="did you mean 'interpolate'"):
        load(config)
    config.init_resize = "interpolate"
    kernel = lambda tree: tree["MixerBlock_0"]["token_mixing"]["Dense_0"]["kernel"]
    assert_close(kernel(load(config)).sum(0), kernel(pretrained.load(workdir)).sum(0))
