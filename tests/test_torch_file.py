"""Good ``.pth`` files; the hostile ones are in `test_formats`."""

import zipfile

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
        found = {name.removeprefix("model/"): value for name, value in found.items()}
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


def test_tensors_in_dicts_have_their_keys_before(tmp_path):
    inner = t.mapping({"a.b": t.tensor(), "epoch": t.number(2)})
    body = t.mapping({"model": t.mapping({"inner": inner}), "c": t.tensor((2,), (1,)), "args": t.number(1)})
    assert list(both(tmp_path, body)) == ["model/inner/a.b", "c"]


@pytest.mark.parametrize("body", [t.mapping({}), t.tensor(), t.mapping({"a": t.number(2)})])
def test_files_without_tensors_hold_none(tmp_path, body):
    assert torch_file.read(t.archive(tmp_path / "a.pth", body, STORAGES)) == {}


def test_a_name_that_leads_out_is_refused(tmp_path):
    with pytest.raises(UserError, match="a path out of its folder"):
        both(tmp_path, t.mapping({"../a": t.tensor()}))


def test_python_2_wrote_ordered_dicts_as_pairs(tmp_path):
    pair = b"](" + t.text("a") + t.tensor() + b"e"
    body = t.name("collections", "OrderedDict") + b"(](" + pair + b"etR"
    np.testing.assert_array_equal(both(tmp_path, body)["a"], SIX.reshape(2, 3))


def test_only_what_belongs_to_the_model_is_read(tmp_path):
    state = t.mapping({"exp_avg": t.tensor((3,), (1,), key="1", count=3, kind="LongStorage")})
    body = t.mapping({"model": t.mapping({"a": t.tensor()}), "optimizer": state})
    path = t.archive(tmp_path / "a.pth", body, STORAGES)  # the optimizer's storage is absent
    assert list(torch_file.read(path, lambda shapes: {"b": "model/a"})) == ["b"]


def many(count):
    """Return a pickle that gives one tensor so many names, each in three bytes or so but for its letters."""
    names = b"".join(t.text(f"{i:x}") + b"h\x00" for i in range(count))
    return t.tensor() + b"q\x000" + t.DICT + b"(" + names + b"u"


def repeated(step):
    """Return a pickle of a long list, given to a call again and again."""
    pair = t.text("a") + b"N\x86q\x010"
    return pair + b"](" + b"h\x01" * 200_000 + b"e" + b"q\x000" + step * 20_000 + t.mapping({})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (many(60_000), "names 50,001 arrays, more than the 50,000"),
        (repeated(t.name("collections", "OrderedDict") + b"h\x00\x85R0"), "calls are given more than"),
        (repeated(t.name("torch", "Size") + b"h\x00\x85R0"), "calls are given more than"),
        (t.text("x" * 4_000_000) + b"q\x000" + (b"h\x00h\x00\x93" * 50), "asks for 'xxx"),
        (
            # Each dict holds the one before twice.
            t.DICT + b"q\x000" + (t.mapping({"a": b"h\x00", "b": b"h\x00"}) + b"q\x000") * 60 + b"h\x00",
            "",
        ),
    ],
)  # fmt: skip
def test_few_bytes_take_little_time(tmp_path, body, message):
    path = t.archive(tmp_path / "a.pth", body, STORAGES)
    if not message:
        assert torch_file.read(path) == {}
        return
    with pytest.raises(UserError, match=message):
        torch_file.read(path)


def test_a_compressed_pickle_has_no_more_steps_than_its_file_allows(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x/data.pkl", t.pickled(b"N0" * 200_000 + t.mapping({})))
    with pytest.raises(UserError, match=r"a pickle of more than 2\d,\d{3} steps"):
        torch_file.read(tmp_path / "a.pth")
