"""Reading and writing every format, and everything that must not be read."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress

import ml_dtypes
import numpy as np
import pytest

from tests import hostile
from tests import torch_bytes as t
from tests.helpers import DATA, ROOT, environment
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.pretrained import formats, torch_file

TYPES = {"single": np.float32, "half": np.float16, "double": np.float64, "brain": ml_dtypes.bfloat16}
FLAT = {
    **{f"a/{name}": np.arange(-3, 3).reshape(2, 3).astype(dtype) for name, dtype in TYPES.items()},
    "a/transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "a/strided": np.arange(12, dtype=np.float32)[::2],
    "scalar": np.array(2.5, np.float32),
    "none": np.zeros((0, 3), np.float32),
    "zeros": np.full(3, -0.0, np.float32),
}


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert found[name].shape == value.shape, name
        assert found[name].tobytes() == value.tobytes(), name


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors", "folder"])
def test_what_is_written_is_read_to_the_bit(tmp_path, name):
    flat = {key: value for key, value in FLAT.items() if name != "folder" or value.size}  # Orbax refuses empty ones
    formats.write(tmp_path / "new" / name, flat)
    same(formats.read(tmp_path / "new" / name), flat)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]


def test_npz_files_of_all_makes_are_read(tmp_path):
    arrays = {
        "big": np.arange(6, dtype=">f4").reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays, zeros=np.zeros(1_000_000, np.float32))
        found = formats.read(tmp_path / "a.npz")
        assert found["big"].dtype == np.float32
        np.testing.assert_array_equal(found["big"], arrays["big"])
        np.testing.assert_array_equal(found["fortran"], arrays["fortran"])
        assert not found["zeros"].any()


def test_overflow_of_the_finite_check_is_no_fault(tmp_path):
    flat = {"a": np.full(4, 3e38, np.float32), "b": np.full(4, 6e4, np.float16), "c": np.full(4, -1e308)}
    formats.write(tmp_path / "a.npz", flat)
    same(formats.read(tmp_path / "a.npz"), flat)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Return what a process of its own said of each hostile file, and what it must say."""
    folder = tmp_path_factory.mktemp("hostile")
    expected = hostile.write_all(folder)
    (folder / "expected.json").write_text(json.dumps(expected))
    line = [sys.executable, "-m", "tests.hostile", folder]
    result = subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True)
    return folder, json.loads(result.stdout), expected


def test_every_hostile_file_is_refused_in_one_sentence(loaded):
    folder, results, expected = loaded
    assert len(results) > 200
    for name, (message, _) in results.items():
        assert message.startswith("refused: "), f"{name}: {message}"
        assert f"{folder}/{name}" in message
        assert any(part in message for part in expected[name].split("|")), f"{expected[name]!r} not in {message}"
        assert "\n" not in message
        assert len(message) < 500 + 2 * len(str(folder))


def test_hostile_files_run_nothing_and_take_no_memory(loaded):
    folder, results, _ = loaded
    assert not (folder / "canary").exists()
    assert max(growth for _, growth in results.values()) < 150e6


SMALL = {"stem/kernel": np.ones((2, 3), np.float32), "stem/bias": np.ones(3, np.float16)}
BODY = t.mapping({"stem": t.tensor(), "bias": t.tensor((2,), (1,), key="1", count=2)})
NUMBERS = {"0": np.arange(6, dtype=np.float32).tobytes(), "1": np.arange(2, dtype=np.float32).tobytes()}
MAKERS = {
    "a.npz": lambda path: formats.write(path, SMALL),
    "a.safetensors": lambda path: formats.write(path, SMALL),
    "zip.pth": lambda path: t.archive(path, BODY, NUMBERS),
    "stream.pth": lambda path: t.stream(path, BODY, NUMBERS),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_file_cut_anywhere_is_refused(tmp_path, name):
    path = tmp_path / name
    MAKERS[name](path)
    whole = path.read_bytes()
    formats.read(path)
    for end in range(0, len(whole), 3):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match=name):
            formats.read(path)


@pytest.mark.parametrize("name", MAKERS)
def test_a_wrong_byte_anywhere_is_read_or_refused(tmp_path, name):
    path = tmp_path / name
    MAKERS[name](path)
    whole = path.read_bytes()
    errors = []
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ (0xFF if i % 2 else 0x01)]) + whole[i + 1 :])
        try:
            formats.read(path)
        except UserError as error:
            errors.append(str(error))
    assert len(errors) > len(whole) / 4
    assert all(name in error for error in errors)


def test_a_target_is_replaced_only_when_told(tmp_path):
    for name in ("a.npz", "folder"):
        path = tmp_path / name
        formats.write(path, SMALL)
        with pytest.raises(UserError, match=f"{name} exists; pass --force"):
            formats.write(path, {})
        same(formats.read(path), SMALL)
        new = {"x": np.zeros(2, np.float32)}
        formats.write(path, new, force=True)
        same(formats.read(path), new)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").touch()
    with pytest.raises(UserError, match="something else"):
        formats.write(tmp_path / "mine", SMALL, force=True)
    (tmp_path / "b.npz").mkdir()
    with pytest.raises(UserError, match="something else"):
        formats.write(tmp_path / "b.npz", SMALL, force=True)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    formats.write(tmp_path / "a.npz", SMALL)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(UserError, match=r"cannot write .*a\.npz \(No space left"):
        formats.write(tmp_path / "a.npz", SMALL, force=True)
    monkeypatch.undo()
    same(formats.read(tmp_path / "a.npz"), SMALL)
    assert os.listdir(tmp_path) == ["a.npz"]
    for name in ("x.pth", "x.onnx"):
        with pytest.raises(UserError, match="safetensors"):
            formats.write(tmp_path / name, SMALL)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        formats.write(tmp_path / "file/a.npz", SMALL)


def test_a_damaged_folder_is_refused(tmp_path):
    formats.write(tmp_path / "a", SMALL)
    for name in ("_METADATA", "manifest.ocdbt"):
        copy = shutil.copytree(tmp_path / "a", tmp_path / name.strip("_"))
        (copy / name).write_bytes(b"{")
        with pytest.raises(UserError, match="is not a checkpoint that can be read"):
            formats.read(copy)


def test_a_folder_of_zeros_takes_no_memory(tmp_path):
    formats.write(tmp_path / "a", {"kernel": np.zeros((3000, 3000), np.float32)})
    with pytest.raises(UserError, match="promises 36,000,000, which weights cannot do"):
        formats.read(tmp_path / "a")


def test_a_pipe_in_a_folder_is_not_waited_for(tmp_path):
    formats.write(tmp_path / "a", SMALL)
    os.mkfifo(tmp_path / "a/d/pipe")
    with pytest.raises(UserError, match="pipe is no regular file"):
        formats.read(tmp_path / "a")


def test_what_orbaxs_descriptions_name_is_not_imported(tmp_path, monkeypatch):
    formats.write(tmp_path / "a", SMALL)
    (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("_METADATA", "_CHECKPOINT_METADATA"):
        text = json.loads((tmp_path / "a" / name).read_text())
        text |= {
            "item_handlers": "trap.Handler",
            "module": "trap",
            "clsname": "Trap",
            "custom_metadata": {"trap": "trap"},
        }
        text |= {"value_metadata_tree": {"category": "namedtuple", "module": "trap", "clsname": "Trap", "entries": []}}
        (tmp_path / "a" / name).write_text(json.dumps(text).replace('"np.ndarray"', '"trap.Trap"'))
    with suppress(UserError):
        formats.read(tmp_path / "a")
    assert "trap" not in sys.modules
    assert not (tmp_path / "sprung").exists()


MEMORY = """
import resource, sys, numpy as np
from vit_jax_mixer import pretrained
from vit_jax_mixer.pretrained import formats
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
for name in sys.argv[1:]:
    formats.read(f"{name}-small/" if name.endswith("folder") else name.replace("big", "small"))
start = peak()
for name in sys.argv[1:]:
    formats.read(name)
    print((peak() - start) / 1e6)
"""


def test_memory_is_lean(tmp_path):
    small = {"stem/kernel": np.zeros((2, 3), np.float32)}
    values = np.random.default_rng(0).standard_normal((16, 1 << 20), dtype=np.float32)  # 67 MB
    big = {f"{i}/kernel": value for i, value in enumerate(values)}
    names = ["big.npz", "big.pth", "big-old.pth", "big.safetensors", "folder"]
    body = t.mapping({name: t.tensor((1 << 20,), (1,), key=name[:-7], count=1 << 20) for name in big})
    storages = {name[:-7]: value.tobytes() for name, value in big.items()}
    for name in ("big.npz", "big.safetensors", "folder"):
        formats.write(tmp_path / name, big)
        formats.write(tmp_path / (f"{name}-small" if name == "folder" else name.replace("big", "small")), small)
    t.archive(tmp_path / "big.pth", body, storages)
    t.stream(tmp_path / "big-old.pth", body, storages)
    shutil.copy(DATA / "torch_zip.pth", tmp_path / "small.pth")
    shutil.copy(DATA / "torch_stream.pth", tmp_path / "small-old.pth")
    assert list(torch_file.read(tmp_path / "big.pth")) == list(big)
    line = [sys.executable, "-c", MEMORY, *(str(tmp_path / name) for name in names)]
    result = subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True)
    growths = dict(zip(names, map(float, result.stdout.split()), strict=True))
    assert max(growths.values()) < 2.5 * values.nbytes / 1e6, growths
