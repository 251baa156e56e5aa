"""Models on the Hugging Face hub, read and written by its own library, from a server on this machine."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests import hub_server
from vit_jax_mixer import pretrained
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.export import __main__ as export_command
from vit_jax_mixer.pretrained import hub as reading
from vit_jax_mixer.pretrained import registry
from vit_jax_mixer.trained import open_model

constants = pytest.importorskip("huggingface_hub.constants")


DATA = Path(__file__).parent / "data"
TINY = (DATA / "mixer_torch_tiny_timm.safetensors").read_bytes()
REFERENCE = np.load(DATA / "mixer_torch_tiny_reference.npz")
NAMES = tuple(f"kind {i}" for i in range(REFERENCE["logits"].shape[-1]))
CONFIG = {
    "architecture": "mixer_tiny",
    "num_classes": len(NAMES),
    "label_names": list(NAMES),
    "pretrained_cfg": {
        "input_size": [3, 32, 32],
        "interpolation": "bilinear",
        "crop_pct": 0.9,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "license": "apache-2.0",
    },
}


def timm(**changes) -> dict[str, bytes]:
    """A repository as timm's are."""
    about = {**CONFIG["pretrained_cfg"], **changes}
    config = {**CONFIG, "pretrained_cfg": {name: value for name, value in about.items() if value is not None}}
    return {"config.json": json.dumps(config).encode(), "model.safetensors": TINY, "hubconf.py": b"raise SystemExit"}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with hub_server.serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def test_a_repository_of_timm_is_a_model_with_its_evaluation_and_classes(hub):
    hub.repositories["someone/tiny"] = timm()
    trained = open_model("hf:someone/tiny")
    assert trained.about.class_names == NAMES
    assert trained.about.licence == "apache-2.0"
    ops = "decode(3)|resize_small(35, 'bilinear')|center_crop(32)|normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))"
    assert trained.about.eval_ops == ops
    logits = trained.module.apply(
        {"params": trained.params}, REFERENCE["images_nchw"].transpose(0, 2, 3, 1), train=False
    )
    np.testing.assert_allclose(logits, REFERENCE["logits"], atol=1e-5)
    assert not any("hubconf" in line for line in hub.asked), "code is not even fetched"
    fetched = len([line for line in hub.asked if line.startswith("GET") and "resolve" in line])
    assert pretrained.load("hf:someone/tiny")
    assert len([line for line in hub.asked if line.startswith("GET") and "resolve" in line]) == fetched, "it is kept"


def test_a_revision_a_private_repository_and_what_is_kept(hub, monkeypatch):
    hub.repositories |= {"a/open": {}, "a/open@v1": timm(), "me/own": {}, "me/own@v1": timm()}
    assert pretrained.load("hf:a/open@v1")
    with pytest.raises(UserError, match="no such revision"):
        pretrained.load("hf:a/open@v2")
    hub.private.add("me/own")
    with pytest.raises(UserError, match="private; mend the name, or run `hf auth login`"):
        reading.fetch("hf:me/own@v1")
    monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
    assert reading.fetch("hf:me/own@v1").is_file()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert reading.fetch("hf:me/own@v1").is_file(), "what is in the cache needs no network"
    with pytest.raises(UserError, match="cannot be reached"):
        reading.fetch("hf:me/other")


@pytest.mark.parametrize(
    ("reference", "files", "sentence"),
    [
        ("hf:tiny", {}, "write hf:OWNER/NAME"),
        ("hf:a/b/c", {}, "write hf:OWNER/NAME"),
        ("hf:some..one/tiny", {}, "no name of a repository"),
        ("hf:no/such", {}, "there is no hf:no/such"),
        ("hf:a/empty", {"README.md": b"# empty"}, "none of model.safetensors"),
        ("hf:a/mean", timm(mean=None), "does not say how its weights are evaluated"),
        ("hf:a/wide", timm(input_size=[3, 32, 64]), "does not say how its weights are evaluated"),
        ("hf:a/large", timm(input_size=[3, 64, 64]), "tells of 64x64 pixels"),
        ("hf:a/method", timm(interpolation="random"), "neither bicubic nor bilinear"),
        ("hf:a/json", {**timm(), "config.json": b"{"}, "is damaged"),
        ("hf:a/weights", {**timm(), "model.safetensors": b"no"}, "model.safetensors"),
    ],
)
def test_what_is_wrong_is_one_sentence(hub, reference, files, sentence):
    if files:
        hub.repositories[reference.removeprefix("hf:")] = files
    with pytest.raises(UserError, match=sentence) as caught:
        open_model(reference)
    assert len(str(caught.value).splitlines()) == 1


def test_a_gated_repository_says_so(hub):
    hub.repositories["a/gated"] = timm()
    hub.gated.add("a/gated")
    with pytest.raises(UserError, match="is gated: ask for access"):
        reading.fetch("hf:a/gated")


def test_published_weights_have_a_second_address(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VIT_JAX_MIXER_CACHE", str(tmp_path / "cache"))
    entry = registry.find("Mixer-B/16:imagenet1k")
    gone = registry.dataclasses.replace(entry, url=f"{hub.url}/gone.npz", size=None, md5=None, sha256=None)
    with pytest.raises(UserError, match=r"gone\.npz"):
        gone.fetch()
    hub.repositories[entry.copy.removeprefix("hf:")] = timm()
    assert gone.fetch().name == "model.safetensors"
    assert f"its copy {entry.copy} is taken" in capsys.readouterr().err


def test_an_export_goes_to_the_hub_and_comes_back(hub, digits_run, tmp_path, monkeypatch, capsys):
    flags = export_command._FLAGS  # as a command line would set them
    flags.mark_as_parsed()
    for name, value in {
        "model": str(digits_run),
        "format": ["safetensors"],
        "push": "me/digits",
        "private": True,
    }.items():
        monkeypatch.setattr(flags, name, value)
    with pytest.raises(UserError, match="needs a token"):
        export_command.main(["export", str(tmp_path / "out")])
    monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
    export_command.main(["export", str(tmp_path / "out")])
    assert "use it as --model=hf:me/digits" in capsys.readouterr().out
    assert "me/digits" in hub.private
    sent = hub.repositories["me/digits"]
    assert {"card.json", "model.json", "model.safetensors", "README.md"} <= set(sent)
    front, _, text = sent["README.md"].decode().removeprefix("---\n").partition("---\n")
    assert "library_name: vit_jax_mixer" in front
    assert "pipeline_tag: image-classification" in front
    assert "- mlp-mixer" in front
    assert text.strip() == (tmp_path / "out/MODEL_CARD.md").read_text().strip()
    back, plain = open_model("hf:me/digits"), open_model(str(digits_run))
    assert back.about.class_names == plain.about.class_names
    np.testing.assert_array_equal(back.params["head"]["kernel"], plain.params["head"]["kernel"])


@pytest.mark.parametrize("repo", ["digits", "a/b/c", "me/..", ""])
def test_a_bad_name_is_told_before_the_export(repo):
    from vit_jax_mixer.export import push

    with pytest.raises(UserError, match="write USER/NAME"):
        push.check(repo)
