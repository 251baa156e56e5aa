"""What `open_model` finds out about weights, and what models answer."""

import dataclasses
import json
import re
import shutil
from contextlib import suppress

import jax
import numpy as np
import pytest

from tests.helpers import DATA, assert_close
from vit_jax_mixer import models, predictors, pretrained
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.predictors.images import Images
from vit_jax_mixer.pretrained import class_names, formats, shapes
from vit_jax_mixer.trained import FILE, open_model

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)


def answers(trained, images=IMAGES):
    return jax.device_get(jax.jit(trained.outputs)(trained.params, images))


def logits(trained, images):
    return jax.jit(lambda params, images: trained.module.apply({"params": params}, images))(trained.params, images)


def flat_params(workdir):
    return pretrained.flatten(pretrained.load(workdir))


def changed(workdir, folder, **fields):
    """Return a copy of a workdir with other fields in its ``model.json``; None takes a field away."""
    shutil.copytree(workdir, folder)
    about = {**json.loads((workdir / FILE).read_text()), "crc32": None, **fields}  # by hand
    (folder / FILE).write_text(json.dumps({name: value for name, value in about.items() if value is not None}))
    return str(folder)


def test_a_workdir_says_what_it_is(digits_run):
    about = open_model(str(digits_run)).about
    assert about.model["name"] == "MlpMixer"
    assert about.model["num_blocks"] == 2
    assert about.image_shape == (8, 8, 1)
    assert about.class_names == tuple("0123456789")
    assert about.probabilities == "softmax"
    assert about.source == "trained on tfds:sklearn_digits train"
    assert not about.licence


def with_parameters(workdir, folder, changed):
    """Return a copy of a workdir with one checkpoint, 1, of other parameters and no checksums."""
    folder.mkdir()
    shutil.copy(workdir / FILE, folder)
    state = {"step": np.ones(1, np.float32), **{f"params/{name}": value for name, value in changed.items()}}
    formats.write(folder / "checkpoints/1/default", state)
    return folder


def test_names_in_a_workdir_are_not_guessed(digits_run, tmp_path):
    flat = flat_params(digits_run)
    gate = {**flat, "MixerBlock_0/gate": np.ones(64, np.float32), "projection/kernel": np.ones((64, 8), np.float32)}
    workdir = with_parameters(digits_run, tmp_path / "a", gate)
    for path in (workdir, workdir / "checkpoints", workdir / "checkpoints/1", workdir / "checkpoints/1/default"):
        assert flat_params(path).keys() == gate.keys()
    formats.write(tmp_path / "gate.npz", gate)
    assert flat_params(tmp_path / "gate.npz").keys() == gate.keys()
    # Another model's, with names that a published table has for others.
    named = dict.fromkeys(("embedding/kernel", "embedding/bias", "encoder/head/kernel"), flat["stem/kernel"])
    assert flat_params(with_parameters(digits_run, tmp_path / "b", named)).keys() == named.keys()
    with pytest.raises(UserError, match=r"(?s)does not fit.*MixerBlock_0/gate +\(64,\) +absent"):
        open_model(str(workdir))


def test_a_mnist_mixer_from_before_its_blocks_had_a_name_of_their_own_is_read(digits_run, tmp_path):
    module = models.create("MnistMixer", num_classes=10)
    like = pretrained.flatten(jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 28, 28, 1)))["params"])
    flat = {name.replace("MnistMixer", "Mixer"): np.ones(leaf.shape, np.float32) for name, leaf in like.items()}
    workdir = with_parameters(digits_run, tmp_path / "a", flat)
    assert flat_params(workdir).keys() == like.keys()


def test_what_is_opened_says_which_checkpoint_it_is(digits_run):
    for path in (digits_run, digits_run / "checkpoints", digits_run / "checkpoints/60"):
        trained = open_model(str(path))
        assert trained.about.class_names == tuple("0123456789")
        assert trained.step == 60
        assert trained.origin.startswith("step 60")
    assert "the best by test/accuracy" in open_model(str(digits_run)).origin


def test_features_logits_and_probabilities_belong_together(digits_run):
    trained = open_model(str(digits_run))
    found = answers(trained)
    assert {name: value.dtype for name, value in found.items()} == dict.fromkeys(found, np.float32)
    assert found["features"].shape == (3, 64)
    head = jax.device_get(trained.params["head"])
    np.testing.assert_allclose(found["features"] @ head["kernel"] + head["bias"], found["logits"], atol=1e-5)
    exponentials = np.exp(found["logits"])
    np.testing.assert_allclose(found["probabilities"], exponentials / exponentials.sum(1, keepdims=True), rtol=1e-5)


def test_sigmoid_models_have_a_probability_for_each_class(digits_run, tmp_path):
    trained = open_model(changed(digits_run, tmp_path / "a", probabilities="sigmoid"))
    found = answers(trained)
    np.testing.assert_allclose(found["probabilities"], 1 / (1 + np.exp(-found["logits"])), rtol=1e-5)


def test_a_model_of_bfloat16_answers_in_float32(digits_run, tmp_path):
    exact = open_model(str(digits_run))
    model = {**exact.about.model, "dtype": "bfloat16"}
    trained = open_model(changed(digits_run, tmp_path / "a", model=model))
    found = answers(trained)
    assert {value.dtype for value in found.values()} == {np.dtype(np.float32)}
    expected = answers(exact)
    np.testing.assert_allclose(found["features"], expected["features"], atol=0.1)
    assert not np.array_equal(found["features"], expected["features"])


def test_a_file_without_a_head_has_features_alone(digits_run, tmp_path):
    flat = flat_params(digits_run)
    formats.write(tmp_path / "a.npz", {name: value for name, value in flat.items() if not name.startswith("head/")})
    trained = open_model(str(tmp_path / "a.npz"), eval_ops="decode(1)|value_range(-1, 1)")
    assert trained.about.model["num_classes"] == 0
    assert not trained.about.class_names
    expected = answers(open_model(str(digits_run)))["features"]
    found = answers(trained)
    assert set(found) == {"features"}
    np.testing.assert_array_equal(found["features"], expected)


@pytest.mark.parametrize(
    ("weights", "reference", "name", "scale"),
    [
        ("mixer_tiny_params.npz", "mixer_tiny", "MlpMixer", "value_range(-1, 1)"),
        ("mixer_torch_tiny_timm.safetensors", "mixer_torch_tiny", "MlpMixer", "value_range(-1, 1)"),
        ("resmlp_tiny.pth", "resmlp_tiny", "ResMlp", "normalize()"),
        ("resmlp_tiny_timm.safetensors", "resmlp_tiny", "ResMlp", "normalize()"),
        ("gmlp_tiny_timm.safetensors", "gmlp_tiny", "GMlp", "value_range(-1, 1)"),
    ],
)
def test_the_shapes_of_a_bare_file_tell_the_model(weights, reference, name, scale):
    trained = open_model(str(DATA / weights))
    assert trained.about.model["name"] == name
    assert trained.about.model["num_classes"] == 7
    assert trained.about.image_shape == (32, 32, 3)
    assert trained.about.eval_ops == f"decode(3)|resize(32)|{scale}"
    with np.load(DATA / f"{reference}_reference.npz") as known:
        images = known["images"] if "images" in known else known["images_nchw"].transpose(0, 2, 3, 1)
        assert_close(logits(trained, images), known["logits"])


def test_the_shapes_of_a_mnist_mixer_tell_it(tmp_path):
    sizes = dict(num_blocks=1, patch_size=7, hidden_dim=12, mlp_dim=9, head_dim=14)
    module = models.create("MnistMixer", num_classes=10, **sizes)
    like = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 28, 28, 1)))["params"]
    flat = pretrained.flatten(like)
    formats.write(tmp_path / "a.npz", {name: np.ones(leaf.shape, leaf.dtype) for name, leaf in flat.items()})
    trained = open_model(str(tmp_path / "a.npz"))
    assert trained.about.model == {"name": "MnistMixer", "num_classes": 10, **sizes}
    assert trained.about.image_shape == (28, 28, 1)


@pytest.mark.parametrize("missing", ["stem", "MixerBlock_0", "MixerBlock_0/token_mixing"])
def test_a_part_of_a_model_is_none(missing):
    tree = pretrained.load(DATA / "mixer_tiny_params.npz")
    *folders, last = missing.split("/")
    inner = tree
    for folder in folders:
        inner = inner[folder]
    del inner[last]
    with pytest.raises(UserError, match=r"^x\.npz holds no whole model"):
        shapes.infer(tree, "mixer", "x.npz")


def test_images_that_are_not_square_are_not_guessed():
    tree = pretrained.load(DATA / "mixer_tiny_params.npz")
    tree["MixerBlock_0"]["token_mixing"]["Dense_0"]["kernel"] = np.zeros((15, 10))
    with pytest.raises(UserError, match=r"15 tokens, no square number.*give the workdir"):
        shapes.infer(tree, "mixer", "x.npz")


def test_a_description_comes_back_as_it_was_written(tmp_path):
    model = {"name": "MlpMixer", "num_classes": 2, "patch_size": 4}
    about = Images(model, (8, 16, 3), "decode(3)", ("Kätzchen", "犬"), "here", "MIT", "sigmoid")
    about.write(tmp_path)
    assert predictors.read(tmp_path) == about
    about = dataclasses.replace(about, class_names=())
    about.write(tmp_path)
    assert predictors.read(tmp_path) == about
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(image_shape=[8, 8]), "image_shape is not three sizes"),
        (dict(image_shape=None), "image_shape is not three sizes"),
        (dict(image_shape=[0, 8, 1]), "image_shape is not three sizes"),
        (dict(image_shape=[10**9, 8, 1]), "image_shape is not three sizes"),
        (dict(image_shape=[True, 8, 1]), "image_shape is not three sizes"),
        (dict(image_shape=["8", 8, 1]), "image_shape is not three sizes"),
        (dict(class_names={"a": 1}), "no list of names"),
        (dict(class_names=[1, 2]), "no list of names"),
        (dict(model=[]), "model no object"),
        (dict(model={"name": "MlpMixer", "num_classes": "10"}), "no num_classes"),
        (dict(probabilities=[1]), "none of softmax, sigmoid"),
        (dict(eval_ops=7), "eval_ops is 7; it must be of type str"),
        (dict(class_names=["a", "b"]), "2 class_names are not one for each class"),
        (dict(probabilities="argmax"), "none of softmax, sigmoid"),
        (dict(source=3), "source is 3; it must be of type str"),
        (dict(colour="red"), "no field 'colour'"),
        (dict(eval_ops="decode(1)|valuerange(-1, 1)"), "did you mean 'value_range'"),
        (dict(eval_ops="decode(1)"), "end them with value_range"),
        (dict(model={"name": "MlpMixr", "num_classes": 10}), "did you mean 'MlpMixer'"),
        (dict(image_shape=[9, 9, 1]), "9x9 pixels cannot be cut into patches of 2x2"),
        (dict(image_shape=[16, 16, 1]), "does not fit"),
    ],
)
def test_a_wrong_description_is_told_in_a_sentence(digits_run, tmp_path, fields, message):
    with pytest.raises(UserError, match=re.escape(message)):
        open_model(changed(digits_run, tmp_path / "a", **fields))


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "\xff", "[" * 100_000, "{}"])
def test_a_description_that_is_none_is_told(tmp_path, text):
    (tmp_path / FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"model\.json (is damaged|is not text|cannot be read)"):
        predictors.read(tmp_path)
    with pytest.raises(UserError, match=r"there is no .*model\.json"):
        predictors.read(tmp_path / "elsewhere")


def test_a_damaged_file_of_an_export_is_noticed(digits_run, tmp_path):
    from vit_jax_mixer.export.writing import export

    export(str(digits_run), tmp_path / "out", formats=["safetensors"])
    path = tmp_path / "out/model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"model\.safetensors is not what was exported"):
        open_model(str(tmp_path / "out"))


def test_a_flipped_bit_in_a_description_is_noticed(digits_run, tmp_path):
    whole, rng = (digits_run / FILE).read_bytes(), np.random.default_rng(0)
    expected = predictors.read(digits_run)
    for bit in rng.choice(8 * len(whole), 200, replace=False):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / FILE).write_bytes(damaged)
        with suppress(UserError):
            assert predictors.read(tmp_path) == expected


def test_more_blocks_than_there_are_arrays_are_not_made(digits_run, tmp_path):
    model = {**predictors.read(digits_run).model, "num_blocks": 10**9}
    with pytest.raises(UserError, match="num_blocks is 1000000000: they do not fit"):
        open_model(changed(digits_run, tmp_path / "a", model=model))


def test_operations_may_be_replaced_and_are_checked(digits_run):
    assert open_model(str(digits_run), eval_ops="decode(1)|value_range(0, 1)").about.eval_ops.endswith("(0, 1)")
    with pytest.raises(UserError, match="--ops: 'resizes' is not known"):
        open_model(str(digits_run), eval_ops="decode(1)|resizes(8)|value_range(0, 1)")
    with pytest.raises(UserError, match="end them with value_range"):
        open_model(str(digits_run), eval_ops="decode(1)|resize(8)")


@pytest.mark.parametrize(("class_set", "count"), [("imagenet1k", 1000), ("imagenet21k", 21843)])
def test_each_class_of_a_published_head_has_a_name_and_a_number_of_its_own(class_set, count):
    names = class_names.of(class_set)
    numbers = class_names.wordnet_numbers(names)
    assert len(set(names)) == len(names) == len(set(numbers)) == len(numbers) == count
    assert all(re.fullmatch(r"n\d{8}", number) for number in numbers)
    assert all(names)


def test_classes_of_imagenet_are_where_they_are_known_to_be():
    names, numbers = class_names.of("imagenet1k"), class_names.wordnet_numbers(class_names.of("imagenet1k"))
    assert (names[0], numbers[0]) == ("tench, Tinca tinca", "n01440764")
    assert (names[999].split(",")[0], numbers[999]) == ("toilet tissue", "n15075141")
    assert {name: i for i, name in enumerate(names) if name.startswith("crane ")} == {
        "crane (n02012849)": 134,
        "crane (n03126707)": 517,
    }
    assert class_names.of("") == ()
    assert class_names.wordnet_numbers(("cat", "dog")) == ()


def test_class_names_of_any_bytes_are_kept(tmp_path):
    names = ("café", "caf\udce9", "a\x1b", '"\\')
    about = Images({"num_classes": 4, "name": "MlpMixer"}, (8, 8, 3), "decode(3)", names, "x")
    about.write(tmp_path)
    assert predictors.read(tmp_path).class_names == names
