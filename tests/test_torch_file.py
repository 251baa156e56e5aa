"""Good ``.pth`` files; the hostile ones are in `test_formats`."""

import ml_dtypes
import numpy as np
import pytest

from tests import torch_bytes as t
from tests.helpers import DATA
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.pretrained import torch_file

SIX = np.arange(6, dtype=np.float32)
STORAGES = {"0": SIX.tobytes()}


def both(tmp_path, body, storages=STORAGES, **kwargs):
    """Return what is read of both layouts, which is the same."""
    path = tmp_path / "a.pth"
    new = torch_file.read(t.archive(path, body, storages))
    old = torch_file.read(t.stream(path, body, storages, **kwargs))
    assert list(new) == list(old)
    for name, value in new.items():
        assert value.dtype == old[name].dtype
        np.testing.assert_array_equal(value, old[name])
    return new


@pytest.mark.parametrize("layout", ["zip", "stream"])
def test_pytorchs_own_files_are_read(layout):
    found = torch_file.read(DATA / f"torch_{layout}.pth")
    types = {"h": np.float16, "i": ml_dtypes.bfloat16, "k": np.float64}
    with np.load(DATA / "torch_expected.npz") as expected:
        assert list(found) == expected.files
        for name, value in found.items():
            assert value.dtype == types.get(name, np.float32)
            assert value.shape == expected[name].shape
            np.testing.assert_array_equal(value.astype(np.float64), expected[name])


def test_strides_offsets_and_shared_storages_are_honoured(tmp_path):
    tensors = {
        "whole": t.tensor(),
        "transposed": t.tensor((3, 2), (1, 3)),
        "every_second": t.tensor((3,), (2,), offset=1),
        "repeated": t.tensor((2, 3), (0, 1), offset=3),
        "scalar": t.tensor((), (), offset=4),
        "none": t.tensor((0, 3), (3, 1)),
    }
    found = both(tmp_path, t.mapping(tensors))
    np.testing.assert_array_equal(found["whole"], SIX.reshape(2, 3))
    np.testing.assert_array_equal(found["transposed"], SIX.reshape(2, 3).T)
    np.testing.assert_array_equal(found["every_second"], SIX[1::2])
    np.testing.assert_array_equal(found["repeated"], [SIX[3:], SIX[3:]])
    assert found["scalar"] == 4
    assert found["scalar"].shape == ()
    assert found["none"].shape == (0, 3)


def test_parts_of_storages_are_read_from_old_streams(tmp_path):
    part = t.storage(view=t.group(t.text("p"), t.number(2), t.number(3)))
    path = t.stream(tmp_path / "a.pth", t.mapping({"a": t.tensor((2,), (1,), offset=1, of=part)}), STORAGES)
    np.testing.assert_array_equal(torch_file.read(path)["a"], SIX[3:5])
    for start, count in ((4, 3), (-1, 2)):
        part = t.storage(view=t.group(t.text("p"), t.number(start), t.number(count)))
        path = t.stream(tmp_path / "a.pth", t.mapping({"a": t.tensor((2,), (1,), of=part)}), STORAGES)
        with pytest.raises(UserError, match=r"longer than it is|a part of a storage"):
            torch_file.read(path)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_the_other_byte_order_is_turned(tmp_path, dtype):
    values = np.arange(1, 4).astype(dtype)
    swapped = values.view(f"u{values.itemsize}").byteswap().tobytes()
    kind = "FloatStorage" if dtype == np.float32 else "BFloat16Storage"
    body = t.mapping({"a": t.tensor((3,), (1,), count=3, kind=kind)})
    found = torch_file.read(t.archive(tmp_path / "a.pth", body, {"0": swapped}, byteorder=b"big"))
    np.testing.assert_array_equal(found["a"], values)
    system = t.mapping({"little_endian": t.FALSE}, b"}")
    with pytest.raises(UserError, match="big-endian"):
        torch_file.read(t.stream(tmp_path / "b.pth", body, {"0": swapped}, system=system))


@pytest.mark.parametrize("key", ["model", "state_dict", "teacher", "student"])
def test_wrappers_and_prefixes_are_taken_off(tmp_path, key):
    beside = {"epoch": t.number(3), "optimizer": t.mapping({"state": t.tensor(key="0")})}
    body = t.mapping({key: t.mapping({"module.backbone.a": t.tensor(), "module.head.b": t.tensor()}), **beside})
    assert list(both(tmp_path, body)) == ["a"]
    nested = t.mapping({"model": t.mapping({"state_dict": t.mapping({"module.a": t.tensor()})}), **beside})
    assert list(both(tmp_path, nested)) == ["a"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            t.mapping({"teacher": t.mapping({}), "student": t.mapping({}), "epoch": t.number(1)}),
            r"several models, 'teacher' and 'student' \(its keys: 'teacher', 'student', 'epoch'\)",
        ),
        (t.mapping({"weights": t.mapping({"a": t.tensor()})}), r"no parameters \(its keys: 'weights'\)"),
        (t.mapping({}), r"no parameters \(its keys: none\)"),
        (t.tensor(), "no parameters;"),
        (t.mapping({"a": t.tensor(), "b": t.number(2)}), "b is no tensor"),
        (t.mapping({"module.a": t.tensor(), "b": t.tensor()}), "some names begin with 'module.' and others, as b,"),
        (t.mapping({"backbone.a": t.tensor(), "b": t.tensor()}), "some names begin with 'backbone.'"),
        (t.mapping({"../a": t.tensor()}), "a path out of its folder"),
    ],
)
def test_what_is_ambiguous_or_no_state_dict_is_said(tmp_path, body, message):
    with pytest.raises(UserError, match=message):
        both(tmp_path, body)


def test_python_2_wrote_ordered_dicts_as_pairs(tmp_path):
    pair = b"](" + t.text("a") + t.tensor() + b"e"
    body = t.name("collections", "OrderedDict") + b"(](" + pair + b"etR"
    np.testing.assert_array_equal(both(tmp_path, body)["a"], SIX.reshape(2, 3))


def test_only_what_belongs_to_the_model_is_read(tmp_path):
    state = t.mapping({"exp_avg": t.tensor((3,), (1,), key="1", count=3, kind="LongStorage")})
    body = t.mapping({"model": t.mapping({"a": t.tensor()}), "optimizer": state})
    path = t.archive(tmp_path / "a.pth", body, STORAGES)  # the optimizer's storage is absent
    assert list(torch_file.read(path)) == ["a"]
