"""Exports: they run elsewhere, give what the model gives, and appear complete or not at all."""

import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest

from tests.helpers import DATA, assert_close, assert_one_sentence, assert_same, command
from vit_jax_mixer import models, predictors, pretrained
from vit_jax_mixer.checkpoints import checksums
from vit_jax_mixer.errors import UserError, printable
from vit_jax_mixer.export import files, onnx_graph
from vit_jax_mixer.export.writing import export
from vit_jax_mixer.models import resmlp
from vit_jax_mixer.pretrained import formats
from vit_jax_mixer.trained import open_model

FAMILIES = {
    "mixer": "mixer_tiny_params.npz",  # GELU by tanh
    "mixer of timm": "mixer_torch_tiny_timm.safetensors",  # exact GELU
    "resmlp": "resmlp_tiny_timm.safetensors",
    "gmlp": "gmlp_tiny_timm.safetensors",
}
STABLEHLO = {"model.stablehlo", "model.npz", "run_stablehlo.py"}
CARDS = {"model.json", "card.json", "MODEL_CARD.md"}


def random_images(trained, batch):
    return np.random.default_rng(batch).integers(0, 256, (batch, *trained.about.image_shape), np.uint8)


def outputs_of(trained, images):
    return jax.device_get(jax.jit(trained.outputs)(trained.params, images))


def run_onnx(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, {"images": images}), strict=True))


def image(*shape):
    return jax.ShapeDtypeStruct(shape, np.uint8)


def card_of(folder):
    return json.loads((folder / "card.json").read_text())


@pytest.fixture(scope="module")
def workdir(digits_run, tmp_path_factory):
    """A run that computes in bfloat16, one block after another."""
    workdir = tmp_path_factory.mktemp("runs") / "digits"
    shutil.copytree(digits_run, workdir)
    about = predictors.read(workdir)
    dataclasses.replace(about, model={**about.model, "dtype": "bfloat16", "scan": True, "remat": True}).write(workdir)
    return workdir


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "digits"
    export(str(workdir), folder)
    return folder


def test_a_run_is_exported_with_all_that_is_known_of_it(workdir, exported):
    assert {path.name for path in exported.iterdir()} == {*STABLEHLO, *CARDS, "model.onnx", "model.safetensors"}
    card = card_of(exported)
    assert card["evaluation"] == json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert card["evaluation"]["step"] == 60
    assert card["config"] == checksums.read_json(workdir / "config.json")
    assert card["input"] == {"name": "images", "dtype": "uint8", "shape": ["b", 8, 8, 1], "range": [0, 255]}
    assert card["outputs"]["logits"] == {"dtype": "float32", "shape": ["b", 10]}
    assert card["versions"]["jax"] == jax.__version__
    assert [step["by"] for step in card["preprocessing"]][-1] == "the model"
    for name, file in card["files"].items():
        content = (exported / name).read_bytes()
        assert file == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    session = onnxruntime.InferenceSession(exported / "model.onnx", providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == list("0123456789")
    assert (
        json.loads(metadata["model.json"])["eval_ops"] == json.loads((exported / "model.json").read_text())["eval_ops"]
    )
    text = (exported / "MODEL_CARD.md").read_text()
    for part in (
        f"{card['evaluation']['test/accuracy']:.4g}, after 60 steps",
        "10, named in `model.json`",
        "trained on",
    ):
        assert part in text


def test_an_export_opens_as_the_same_model_in_float32(workdir, exported, tmp_path):
    run, found = open_model(str(workdir)), open_model(str(exported))
    assert run.about.model["dtype"] == "bfloat16"
    assert {name: found.about.model[name] for name in ("dtype", "scan", "remat")} == {
        "dtype": "float32",
        "scan": False,
        "remat": False,
    }
    assert_same(found.params, run.params)
    assert found.about.class_names == run.about.class_names
    export(str(exported), tmp_path / "again", formats=["stablehlo"])
    assert {path.name for path in (tmp_path / "again").iterdir()} == {*STABLEHLO, *CARDS}
    assert card_of(tmp_path / "again")["evaluation"] == card_of(exported)["evaluation"]
    assert_same(open_model(str(tmp_path / "again")).params, run.params)


ALONE = """
import sys
from importlib.abc import MetaPathFinder

OURS = "vit_jax_mixer PIL absl cv2 etils flax grain ml_collections onnx optax orbax safetensors sklearn tensorstore"

class Blocked(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in OURS.split():
            raise ImportError(f"{name} is not to be used")

sys.meta_path.insert(0, Blocked())
folder, images, outputs = sys.argv[1:]
sys.path.insert(0, folder)
import numpy as np
import run_stablehlo

run_stablehlo.main([images, outputs])
run = run_stablehlo.load(folder)
for batch in (1, 7):
    rows = np.resize(np.load(images), (batch, 8, 8, 1))
    np.savez(f"{outputs}.{batch}.npz", **run(rows))
"""


def test_stablehlo_runs_with_what_the_card_says_alone(exported, tmp_path):
    trained = open_model(str(exported))
    images = random_images(trained, 3)
    np.save(tmp_path / "images.npy", images)
    line = [sys.executable, "-I", "-W", "error", "-c", ALONE, exported, tmp_path / "images.npy", tmp_path / "out.npz"]
    result = subprocess.run([str(part) for part in line], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert len(re.findall(r"^ *\d+\.\d\d %  \d$", result.stdout, re.M)) == 3
    for batch, name in ((3, "out.npz"), (1, "out.npz.1.npz"), (7, "out.npz.7.npz")):
        with np.load(tmp_path / name) as found:
            assert_close(dict(found), outputs_of(trained, np.resize(images, (batch, 8, 8, 1))), 1e-6)


@pytest.fixture(scope="module")
def mnist_mixer(tmp_path_factory):
    model = models.create("MnistMixer", 10)
    like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))["params"]
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("mnist") / "mnist.safetensors"
    draw = lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32)
    formats.write(path, {name: draw(x) for name, x in pretrained.flatten(like).items()})
    return path


@pytest.mark.parametrize("family", [*FAMILIES, "MnistMixer"])
def test_onnx_gives_what_the_model_gives(family, mnist_mixer, tmp_path):
    source = DATA / FAMILIES[family] if family in FAMILIES else mnist_mixer
    trained = open_model(str(source))
    export(str(source), tmp_path / "out", formats=["onnx"])
    model = onnx.load(tmp_path / "out/model.onnx")
    assert [opset.version for opset in model.opset_import] == [18]
    assert {"stem/kernel"} <= {tensor.name for tensor in model.graph.initializer}
    images = random_images(trained, 5)
    expected = outputs_of(trained, images)
    assert expected["logits"].shape == (5, trained.about.model["num_classes"])
    assert_close(run_onnx(tmp_path / "out/model.onnx", images), expected)
    assert_close(run_onnx(tmp_path / "out/model.onnx", images[:1]), {name: x[:1] for name, x in expected.items()})
    with pytest.raises(UserError, match="holds no weights that can be read; export again, with --format=safetensors"):
        open_model(str(tmp_path / "out"))


def test_large_weights_stand_beside_the_onnx_model(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ONE_FILE", 1000)
    source = str(DATA / FAMILIES["resmlp"])
    export(source, tmp_path / "out", formats=["onnx"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*CARDS, "model.onnx", "model.onnx.data"}
    trained = open_model(source)
    images = random_images(trained, 2)
    assert_close(run_onnx(tmp_path / "out/model.onnx", images), outputs_of(trained, images))


def test_other_functions_become_onnx_too(tmp_path):
    def function(weights, images):
        x = images.astype(jnp.float32) / 255
        convolved = jax.lax.conv_general_dilated(
            jnp.transpose(x, (0, 3, 1, 2)), weights["kernel"], (2, 1), ((1, 2), (0, 1)), rhs_dilation=(1, 2),
            feature_group_count=2, dimension_numbers=("NCHW", "HWIO", "NHWC"),
        )  # fmt: skip
        scores = jnp.einsum("bhwc,bhvc->bhwv", x, x)
        # A value that does not depend on the batch, spread along an axis of the image.
        table = jnp.matmul(jnp.broadcast_to(weights["row"][:, None], (6, 5)), scores)
        return {
            "c": jax.checkpoint(jax.nn.gelu)(convolved),
            "a": jax.nn.softmax(table),
            "b": jax.jit(jax.nn.silu)(x.mean((1, 2))),
            "d": nn.max_pool(x, (3, 2), (1, 2), "SAME"),
        }

    rng = np.random.default_rng(0)
    weights = {
        name: rng.normal(size=shape).astype(np.float32) for name, shape in (("kernel", (3, 2, 1, 4)), ("row", 6))
    }
    path = tmp_path / "model.onnx"
    onnx.save_model(onnx_graph.convert(function, weights, "images", image(4, 5, 2)), path)
    onnx.checker.check_model(str(path), full_check=True)
    images = rng.integers(0, 256, (3, 4, 5, 2), np.uint8)
    assert_close(run_onnx(path, images), jax.device_get(function(weights, images)))


@pytest.mark.parametrize("mode", ["fill", "clip"])
def test_what_models_of_rows_compute_becomes_onnx_too(tmp_path, mode):
    def function(weights, images):  # u8[b, 4], a number and categories
        x = images.astype(jnp.float32) / 50 - 1
        embedded = jnp.take(weights["table"], images[:, 1:].astype(jnp.int32), axis=0, mode=mode)  # f32[b, 3, 5]
        first = jnp.broadcast_to(weights["table"][:1][None], (images.shape[0], 1, 5))
        tokens = jnp.concatenate([first, embedded], 1)[:, ::2]
        return {
            "a": jnp.where(x > 0, x, jnp.expm1(x)) + jax.nn.softplus(x) * (x != 1),
            "b": x[:, 0],
            "c": jnp.nan_to_num(tokens, nan=7.0),
            "d": jnp.clip(jnp.sin(x), -0.5, 0.5)[:, jnp.array([2, -1])].min(-1),
            "e": jnp.pad(jnp.floor(x), ((0, 0), (1, 2)), constant_values=3.0),
            "f": jnp.ones((images.shape[0], 2)),
        }

    rng = np.random.default_rng(0)
    weights = {"table": rng.normal(size=(60, 5)).astype(np.float32)}
    path = tmp_path / "model.onnx"
    onnx.save_model(onnx_graph.convert(function, weights, "images", image(4)), path)
    onnx.checker.check_model(str(path), full_check=True)
    images = rng.integers(0, 100, (7, 4), np.uint8)  # some beyond the table
    assert_close(run_onnx(path, images), jax.device_get(function(weights, images)))


def test_what_onnx_cannot_say_is_said():
    with pytest.raises(UserError, match="the model computes 'sort', which is not written as ONNX here"):
        onnx_graph.convert(lambda weights, images: {"x": jnp.sort(images, 1)}, {}, "images", image(4, 4, 1))
    loop = lambda weights, images: {"x": jax.lax.fori_loop(0, 3, lambda i, x: x + x, images)}
    with pytest.raises(UserError, match="the model computes 'scan'"):  # whose body would fit, once
        onnx_graph.convert(loop, {}, "images", image(4, 4, 1))
    pooled = lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 1, 2), (1, 1, 1, 1), "VALID")
    over_channels = lambda weights, images: {"x": pooled(images.astype(jnp.float32))}
    with pytest.raises(UserError, match="a maximum over channels or examples"):
        onnx_graph.convert(over_channels, {}, "images", image(4, 4, 3))
    for x, said in (
        (lambda images: jnp.ones((2 * images.shape[0], 4)), r"makes a value of shape \(2\*b, 4\)"),
        (lambda images: images[1:], "takes a part of a batch"),
        (lambda images: images[:, jnp.array([0, 1]), jnp.array([0, 1])], "along several axes at once"),
        (lambda images: jax.lax.pad(images, jnp.uint8(0), [(0, 0, 0), (0, 0, 1), (0, 0, 0), (0, 0, 0)]), "between"),
        (lambda images: jax.lax.select_n(images % 2, images, images), "'rem', which is not written"),
    ):
        with pytest.raises(UserError, match=said):
            onnx_graph.convert(lambda weights, images, x=x: {"x": x(images)}, {}, "images", image(4, 4, 1))


def test_the_code_of_the_card_runs(exported, tmp_path, monkeypatch):
    trained = open_model(str(exported))
    images = random_images(trained, 2)
    expected = outputs_of(trained, images)
    text = (exported / "MODEL_CARD.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) == 3
    monkeypatch.setattr(sys, "path", [*sys.path])
    for block in blocks:
        names = {"FOLDER": str(exported), "PATHS": [], "images": images}
        if "PATHS" in block:  # whose operations decode files
            import cv2

            photo = tmp_path / "digit.png"
            cv2.imwrite(str(photo), images[0])
            names["PATHS"] = [photo, photo]
        exec(block, names)
        found = jax.device_get(names["outputs"])
        if "PATHS" in block:
            assert_close(found["logits"][0], expected["logits"][0])
        else:
            assert_close(found, expected)


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folded") / "out"
    export(str(DATA / FAMILIES["resmlp"]), folder, fold=True)
    return folder


def test_a_folded_resmlp_gives_the_same_and_computes_less(folded, tmp_path):
    source = str(DATA / FAMILIES["resmlp"])
    whole, found = open_model(source), open_model(str(folded))
    assert found.about.model["folded"] is True
    assert set(found.params["ResMlpBlock_0"]) == {"token_mixing", "token_scale", "token_bias", "Dense_0", "Dense_1"}
    images = random_images(whole, 4)
    expected = outputs_of(whole, images)
    assert_close(outputs_of(found, images), expected)
    assert_close(run_onnx(folded / "model.onnx", images), expected)
    export(source, tmp_path / "whole", formats=["onnx"])
    nodes = [len(onnx.load(path / "model.onnx").graph.node) for path in (folded, tmp_path / "whole")]
    assert nodes[0] <= nodes[1] - 5 * 2  # in each of the two blocks
    flops = [jax.jit(model.outputs).lower(model.params, images).cost_analysis()["flops"] for model in (found, whole)]
    assert flops[0] < flops[1]


def test_folding_keeps_the_tokens_after_each_block():
    params = pretrained.load(DATA / FAMILIES["resmlp"])
    fields = dict(num_classes=0, num_blocks=2, patch_size=8, hidden_dim=24, layerscale_init=0.1)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    del params["head"]
    tokens = [
        resmlp.ResMlp(**fields, folded=is_folded).apply({"params": tree}, images, mutable=["intermediates"])[1]
        for is_folded, tree in ((False, params), (True, resmlp.fold(params)))
    ]
    assert_close(tokens[1], tokens[0])
    with pytest.raises(UserError, match=r"a folded ResMLP is for inference; leave out config\.model\.folded"):
        resmlp.ResMlp(**fields, folded=True).init(jax.random.key(0), images, train=True)


def test_folded_weights_are_known_without_their_folder(folded, tmp_path):
    alone = open_model(str(folded / "model.safetensors"))
    assert alone.about.model["folded"] is True
    assert_same(alone.params, open_model(str(folded)).params)


def test_only_a_resmlp_is_folded_and_only_once(folded, tmp_path):
    with pytest.raises(UserError, match="is no ResMLP, and --fold merges what only a ResMLP has; leave it out"):
        export(str(DATA / FAMILIES["gmlp"]), tmp_path / "out", fold=True)
    with pytest.raises(UserError, match="is folded already; leave out --fold"):
        export(str(folded), tmp_path / "out", fold=True)
    assert not list(tmp_path.iterdir())


def test_an_export_replaces_nothing_but_an_export(tmp_path):
    source, target = str(DATA / FAMILIES["resmlp"]), tmp_path / "out"
    target.mkdir()
    (target / "thesis.tex").write_text("years of work")
    for force in (False, True):
        with pytest.raises(UserError, match="exists and is no export; name another folder"):
            export(source, target, formats=["safetensors"], force=force)
    assert (target / "thesis.tex").exists()
    target = tmp_path / "new/out"
    export(source, target, formats=["safetensors"])
    assert pretrained.read(target / "model.safetensors").convention == "timm_resmlp"
    with pytest.raises(UserError, match="exists; pass --force to replace it"):
        export(source, target, formats=["safetensors"])
    export(str(DATA / FAMILIES["gmlp"]), target, formats=["safetensors"], force=True)
    assert pretrained.read(target / "model.safetensors").convention == "timm_gmlp"
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_a_failed_export_leaves_what_was_there(tmp_path, monkeypatch):
    source, target = str(DATA / FAMILIES["resmlp"]), tmp_path / "out"
    export(source, target, formats=["safetensors"])
    before = (target / "card.json").read_bytes()
    monkeypatch.setattr(files, "TOLERANCE", -1)
    with pytest.raises(UserError, match=r"model\.stablehlo differs from the model by 0\.0e\+00 of the largest output"):
        export(source, target, force=True)
    assert (target / "card.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(UserError, match=r"cannot write .*card\.json/out \(Not a directory\); choose another place"):
        export(source, target / "card.json/out", formats=["safetensors"])


def test_what_others_wrote_reaches_the_card_as_words(workdir, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(workdir, run)
    evil = "<script>x</script>\n# Title\n[click](javascript:x) | `cell` *bold* \x1b[2J\u202e caf\udce9"
    dataclasses.replace(predictors.read(run), source=evil, licence=evil).write(run)
    config = checksums.read_json(run / "config.json")
    checksums.write_json(run / "config.json", {**config, "init_from": f"{evil}\n```\n<b>"})
    export(str(run), tmp_path / "out", formats=["safetensors"])
    card = card_of(tmp_path / "out")
    assert card["source"] == card["licence"] == evil == open_model(str(tmp_path / "out")).about.source  # for programs
    text = (tmp_path / "out/MODEL_CARD.md").read_text(encoding="utf-8")
    assert printable(text, keep="\n") == text
    before, _, config = text.partition("## Config of the training")
    assert "<" not in before
    assert r"&lt;script&gt;x&lt;/script&gt;\\x0a# Title\\x0a\[click\](javascript:x) \| \`cell\` \*bold\*" in before
    assert config.count("\n```") == 2  # the code begins and ends


def test_a_damaged_record_of_the_run_is_said(workdir, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(workdir, run)
    whole = (run / "config.json").read_text()
    for text in ("{", whole.replace("sklearn", "sklearm")):
        (run / "config.json").write_text(text)
        with pytest.raises(UserError, match=r"config\.json is damaged"):
            export(str(run), tmp_path / "out", formats=["safetensors"])
        assert not (tmp_path / "out").exists()


def test_a_program_for_other_hardware_is_written_and_not_run(tmp_path):
    lines = export(str(DATA / FAMILIES["resmlp"]), tmp_path / "out", formats=["stablehlo"], platforms=["tpu"])
    assert "largest difference" not in lines[0]
    assert card_of(tmp_path / "out")["formats"]["stablehlo"]["difference"] is None
    assert "For tpu." in (tmp_path / "out/MODEL_CARD.md").read_text()


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"formats": ["onx"]}, r"--format: 'onx' is not known; did you mean 'onnx'"),
        ({"formats": []}, "--format is empty; name some of stablehlo, onnx, safetensors"),
        ({"platforms": ["cpu", "gpu"]}, "--platforms: 'gpu' is not known"),
    ],
)
def test_a_wrong_choice_is_said(tmp_path, choice, message):
    with pytest.raises(UserError, match=message):
        export(str(DATA / FAMILIES["resmlp"]), tmp_path / "out", **choice)
    assert not list(tmp_path.iterdir())


def test_onnx_says_which_package_it_lacks(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    source = str(DATA / FAMILIES["resmlp"])
    with pytest.raises(UserError, match=r"ONNX needs the package onnxruntime; .* pip install onnx onnxruntime"):
        export(source, tmp_path / "out", formats=["stablehlo", "onnx"])
    assert not list(tmp_path.iterdir())
    lines = export(source, tmp_path / "out")  # all that can be written
    assert "onnx is left out: ONNX needs the package onnxruntime" in lines[-1]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*STABLEHLO, *CARDS, "model.safetensors"}


def test_the_command(tmp_path):
    source, target = DATA / FAMILIES["resmlp"], tmp_path / "out"
    result = command("export", f"--model={source}", target, "--format=stablehlo,safetensors", "--fold")
    assert result.returncode == 0, result.stderr
    assert not result.stderr
    assert re.match(
        r".*model\.stablehlo: stablehlo, [\d,]+ bytes, largest difference from the model \S+\n", result.stdout
    )
    assert_one_sentence(command("export", f"--model={source}"), "name one folder to write")
