import itertools
import zipfile

import ml_dtypes
import numpy as np
import pytest

from tests.helpers import DATA, assert_one_sentence, assert_same, command
from vit_jax_mixer import pretrained
from vit_jax_mixer.convert import convert
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.pretrained import formats

SOURCES = {
    "mixer": ("mixer_tiny_params.npz", "mixer_torch_tiny_timm.safetensors"),
    "resmlp": ("resmlp_tiny.pth", "resmlp_tiny_timm.safetensors"),
    "gmlp": ("gmlp_tiny_timm.safetensors",),
}
ALL = [(family, name) for family, names in SOURCES.items() for name in names]


def same_files(found, expected):
    found, expected = formats.read(found), formats.read(expected)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        assert found[name].tobytes() == value.tobytes()


@pytest.mark.parametrize(("family", "name"), ALL)
def test_a_way_through_all_formats_ends_where_it_began(tmp_path, family, name):
    steps = [DATA / name, *(tmp_path / step for step in ("a.npz", "b", "c.safetensors", "d.npz", "e.safetensors", "f"))]
    for source, target in itertools.pairwise(steps):
        assert f"{family}, " in convert(source, target)
        assert_same(pretrained.load(target), pretrained.load(DATA / name))
    to = "official" if name.endswith(("npz", "pth")) else "timm"
    for target in (tmp_path / "z.npz", tmp_path / "z.safetensors"):
        convert(steps[-1], target, to)
        same_files(target, DATA / name)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_floats_stay_as_they_are(tmp_path, dtype):
    flat = {name: value.astype(dtype) for name, value in formats.read(DATA / "mixer_tiny_params.npz").items()}
    formats.write(tmp_path / "a.npz", flat)
    convert(tmp_path / "a.npz", tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b.npz")
    same_files(tmp_path / "b.npz", tmp_path / "a.npz")


def test_defaults_are_the_names_that_files_of_the_suffix_have(tmp_path):
    for family, name in ALL:
        convert(DATA / name, tmp_path / "a.npz", force=True)
        convert(DATA / name, tmp_path / "a.safetensors", force=True)
        assert pretrained.read(tmp_path / "a.npz").convention == family
        assert pretrained.read(tmp_path / "a.safetensors").convention == f"timm_{family}"


def test_the_official_npz_is_as_numpy_reads_it(tmp_path):
    convert(DATA / "mixer_torch_tiny_timm.safetensors", tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as found, np.load(DATA / "mixer_tiny_params.npz") as official:
        assert set(found.files) == set(official.files)
        assert found["stem/kernel"].shape == (8, 8, 3, 24)
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert {member.date_time[0] for member in archive.infolist()} == {1980}  # the same bytes on any day


def test_a_family_without_a_table_keeps_our_names(tmp_path):
    flat = {"embed/kernel": np.ones((2, 3), np.float32)}
    formats.write(tmp_path / "a", flat)
    for name in ("b.npz", "b.safetensors", "b"):
        assert "a model of ours, 6 parameters" in convert(tmp_path / "a", tmp_path / name)
        assert formats.read(tmp_path / name).keys() == flat.keys()


def test_an_activation_that_names_do_not_tell_is_said(tmp_path):
    formats.write(tmp_path / "run", formats.read(DATA / "mixer_tiny_params.npz"))
    (tmp_path / "run" / "model.json").write_text('{"model": {"name": "MlpMixer", "activation": "tanh"}}')
    assert "its activation, tanh, is not in" in convert(tmp_path / "run", tmp_path / "a.npz")
    assert "its activation" not in convert(tmp_path / "a.npz", tmp_path / "b.npz")


def test_the_command(tmp_path):
    target = tmp_path / "a.safetensors"
    result = command("convert", DATA / "resmlp_tiny.pth", target)
    assert result.returncode == 0, result.stderr
    assert f"-> {target}: resmlp, 15,143 parameters in 30 arrays, names official_resmlp -> timm_resmlp" in result.stdout
    assert not result.stderr
    assert_one_sentence(command("convert", DATA / "resmlp_tiny.pth", target), "exists; pass --force")
    assert_one_sentence(command("convert", target, "--to=tim"), "--to")
    assert_one_sentence(command("convert", target), "name two files")


@pytest.mark.parametrize(
    ("target", "to", "message"),
    [
        ("a.pth", None, r"a\.pth: \.pth files are read and not written.*write a\.safetensors"),
        ("a.onnx", None, "no suffix that can be written"),
        ("a", "timm", "leave out --to"),
        ("a.npz", "official", "gmlp has no official names"),
    ],
)
def test_what_cannot_be_written_is_said(tmp_path, target, to, message):
    with pytest.raises(UserError, match=message):
        convert(DATA / "gmlp_tiny_timm.safetensors", tmp_path / target, to)
    assert not list(tmp_path.iterdir())
