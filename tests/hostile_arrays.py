"""Files of arrays, and archives, that want harm; `hostile` has the pickles."""

import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np

from tests import torch_bytes as t

SIX = {"0": np.arange(6, dtype=np.float32).tobytes()}
GOOD = {"stem.proj.bias": t.tensor()}


def npys() -> dict[str, tuple[bytes, str]]:
    """Return members of an .npz file, each with what must be said of it."""

    def npy(header: str, data: bytes = bytes(24), version: int = 1) -> bytes:
        text = header.encode("latin1") + b"\n"
        size = struct.pack("<H" if version == 1 else "<I", len(text))
        return b"\x93NUMPY" + bytes([version, 0]) + size + text + data

    def of(descr: str, shape: str = "(2, 3)", fortran: str = "False") -> str:
        return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}}}"

    def saved(array: np.ndarray) -> bytes:
        file = io.BytesIO()
        np.save(file, array, allow_pickle=True)
        return file.getvalue()

    claims, header = "claims the shape", "has no header of an array"
    return {
        "huge_shape": (npy(of("'<f4'", "(1000000, 1000000, 1000000)")), claims),
        "overflowing": (npy(of("'<f4'", f"({1 << 62}, 4, 4)")), claims),
        "digits_shape": (npy(of("'<f4'", "(" + "9" * 5000 + ",)")), header),
        "long_shape": (npy(of("'<f4'", "(" + "9" * 4000 + ",)")), claims),
        "negative_shape": (npy(of("'<f4'", "(-2, -3)")), claims),
        "short_data": (npy(of("'<f4'"), bytes(20)), claims),
        "long_data": (npy(of("'<f4'"), bytes(28)), claims),
        "no_shape": (npy(of("'<f4'", "None")), header),
        "many_axes": (npy(of("'<f4'", str((1,) * 40))), claims),
        "true_shape": (npy(of("'<f4'", "(True, 6)")), claims),
        "huge_empty": (npy(of("'<f4'", f"({1 << 80}, 0)"), b""), claims),
        "pairs": (saved(np.zeros(3, [("a", "i1"), ("b", "i1")])), "type of records, not float"),
        "version_3": (npy(of("'<f4'"), version=3), header),
        "long_header": (npy(of("'<f4'") + " " * 20_000), header),
        "code": (npy("__import__('os').system('true')"), header),
        "deep": (npy("(" * 9000), header),
        "no_magic": (b"PK\3\4" + bytes(100), header),
        "objects": (saved(np.array([{}], dtype=object)), "type object, not float"),
        "texts": (saved(np.array(["a"])), "type <U1, not float"),
        "complex": (saved(np.zeros(3, np.complex64)), "type complex64, not float"),
        "bools": (saved(np.zeros(3, bool)), "type bool, not float"),
        "integers": (saved(np.zeros(3, np.int32)), "type int32, not float"),
        "long_floats": (saved(np.zeros(3, np.longdouble)), "not float"),
        "records": (saved(np.zeros(3, [("a", "f4")])), "type of records, not float"),
        "nan": (saved(np.float32([1, np.nan])), "holds NaN or infinity (1 of 2 values)"),
        "infinity": (saved(np.float16([-np.inf, np.inf])), "holds NaN or infinity (2 of 2 values)"),
        "nan_bfloat16": (saved(np.array([1, np.nan], ml_dtypes.bfloat16).view("V2")), "holds NaN or infinity"),
    }


def safetensors() -> dict[str, tuple[bytes, str]]:
    """Return .safetensors files, each with what must be said of it."""

    def file(header: str | dict, data: bytes = bytes(24)) -> bytes:
        text = (header if isinstance(header, str) else json.dumps(header)).encode()
        return struct.pack("<Q", len(text)) + text + data

    def entry(dtype: str = "F32", shape: tuple = (2, 3), offsets: tuple = (0, 24)) -> dict:
        return {"dtype": dtype, "shape": shape, "data_offsets": offsets}

    bad, promise = "is not a .safetensors file", "promises a header of"
    one = json.dumps(entry())
    nan = np.float32([1, 2, 3, 4, 5, np.nan]).tobytes()
    return {
        "long_header": (struct.pack("<Q", 1 << 62) + b"{}", promise),
        "just_too_long": (struct.pack("<Q", 3) + b"{}", promise),
        "short": (b"abc", promise),
        "no_json": (file("}{"), bad),
        "no_text": (struct.pack("<Q", 2) + b"\xff\xfe", bad),
        "deep": (file("[" * 200_000), bad),
        "list": (file("[]"), bad),
        "overlap": (file({"a": entry(), "b": entry()}), bad),
        "hole": (file({"a": entry(shape=(2,), offsets=(16, 24))}), bad),
        "outside": (file({"a": entry(offsets=(0, 1 << 40), shape=(1 << 38,))}), bad),
        "huge": (file({"a": entry(shape=(1 << 40, 1 << 40))}), bad),
        "giant_empty": (file({"a": entry(shape=(1 << 62, 0), offsets=(0, 0))}, b""), "claims the shape"),
        "bits_64": (file({"a": entry(shape=(1 << 64, 0), offsets=(0, 0))}, b""), bad),
        "negative": (file({"a": entry(shape=(-2, -3))}), bad),
        "backwards": (file({"a": entry(offsets=(24, 0))}), bad),
        "type": (file({"a": entry("F33")}), bad),
        "integers": (file({"a": entry("I32")}), "type I32, not float"),
        "float8": (file({"a": entry("F8_E4M3", shape=(24,))}), "not float"),
        "twice": (file(f'{{"a": {one}, "a": {one}}}'), "a name is given twice"),
        "path": (file({"../a": entry()}), "a path out of its folder"),
        "control": (file({"a\x1b[2J": entry()}), "cannot be printed"),
        "nothing": (file({}, b""), "holds no parameters"),
        "more_data": (file({"a": entry()}, bytes(28)), bad),
        "nan": (file({"a": entry()}, nan), "holds NaN or infinity (1 of 6 values)"),
    }


def archives(folder: Path) -> dict[str, str]:
    """Write zip archives that lie, and return what must be said of each."""
    array = io.BytesIO()
    np.save(array, np.zeros((2, 3), np.float32))
    npy = array.getvalue()

    def write(name: str, members: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> Path:
        with zipfile.ZipFile(folder / name, "w", method) as file:
            for member, data in members:
                file.writestr(zipfile.ZipInfo(member), data, compress_type=method)
        return folder / name

    def patched(name: str, change: Callable[[bytearray, int], None]) -> None:
        path = write(name, [("a.npy", npy)])
        data = bytearray(path.read_bytes())
        change(data, data.rindex(b"PK\1\2"))  # the member's entry in the archive's directory
        path.write_bytes(data)

    def put(at: int, form: str, *values: int) -> Callable[[bytearray, int], None]:
        return lambda data, entry: struct.pack_into(form, data, entry + at, *values)

    header = b"\x93NUMPY\1\0\x76\0" + f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({1 << 26},)}}".encode()
    bomb = header.ljust(127) + b"\n" + bytes(1 << 28)
    write("bomb.npz", [("a.npy", bomb)], zipfile.ZIP_DEFLATED)
    write("bomb.pth", [("x/data.pkl", b"N" * (1 << 27))], zipfile.ZIP_DEFLATED)
    write("up.npz", [("../../a.npy", npy)])
    write("root.npz", [("/etc/a.npy", npy)])
    write("text.npz", [("readme.txt", b"hello")])
    write("bzip2.npz", [("a.npy", npy)], zipfile.ZIP_BZIP2)
    write("none.npz", [])
    write("none.pth", [("x/readme", b"hello")])
    write("two.pth", [("x/data.pkl", b"N."), ("y/data.pkl", b"N.")])
    write("script.pth", [("x/data.pkl", b"N."), ("x/code/__torch__.py", b"")])
    both = write("twice.npz", [("a.npy", npy), ("b.npy", npy)])
    both.write_bytes(both.read_bytes().replace(b"b.npy", b"a.npy"))
    write("crc.npz", [("a.npy", npy)])
    (folder / "crc.npz").write_bytes((folder / "crc.npz").read_bytes().replace(bytes(24), bytes(23) + b"\1"))
    patched("encrypted.npz", put(8, "<H", 1))
    patched("sizes.npz", put(20, "<II", 0xFFFFFF00, 0xFFFFFF00))
    patched("size.npz", put(24, "<I", 0xFFFFFF00))
    patched("offset.npz", put(42, "<I", 0x7FFFFFFF))
    t.archive(folder / "order.pth", t.mapping(GOOD), SIX, byteorder=b"middle")
    shared = {f"blocks.{i}.ls1": t.tensor((10_000,), (1,), count=10_000) for i in range(20)}
    t.archive(folder / "shared.pth", t.mapping(shared), {"0": bytes(40_000)})
    t.stream(folder / "shared-old.pth", t.mapping(shared), {"0": bytes(40_000)})
    trap, damaged = "is damaged or a trap", "is not an .npz file"
    return {
        "bomb.npz": trap,
        "bomb.pth": trap,
        "up.npz": "a path out of its folder",
        "root.npz": "a path out of its folder",
        "text.npz": "readme.txt, which is no array",
        "bzip2.npz": "method 12",
        "none.npz": "holds no parameters",
        "none.pth": "without PyTorch's data.pkl",
        "two.pth": "without PyTorch's data.pkl",
        "script.pth": "a TorchScript program",
        "twice.npz": "holds a.npy twice",
        "crc.npz": damaged,
        "encrypted.npz": "a.npy is encrypted",
        "sizes.npz": trap,
        "size.npz": trap,
        "offset.npz": damaged,
        "order.pth": "the byte order 'middle'",
        "shared.pth": trap,
        "shared-old.pth": trap,
    }


def others(folder: Path) -> dict[str, str]:
    """Write files that are something else, and return what must be said of each."""
    page = b"\n<!DOCTYPE html><html>404</html>"
    for name, data in {
        "empty.npz": b"",
        "empty.safetensors": b"",
        "empty.pth": b"",
        "page.pth": page,
        "page.npz": page,
        "page.safetensors": page,
        "noise.pth": bytes(range(256)) * 4,
        "number.pth": t.pickled(t.number(7)) * 3,
        "x.tar": page,
        "x.onnx": bytes(10),
        "no_suffix": b"abc",
    }.items():
        (folder / name).write_bytes(data)
    with tarfile.open(folder / "tar.pth", "w") as file:
        file.add(folder / "x.tar", "storages")
    (folder / "folder.npz").mkdir()
    (folder / "folder").mkdir()
    return {
        **{f"empty.{suffix}": "is empty" for suffix in ("npz", "safetensors", "pth")},
        **{f"page.{suffix}": "is a web page" for suffix in ("npz", "safetensors", "pth")},
        "noise.pth": "is not a .pth file",
        "number.pth": "is not a .pth file",
        "x.onnx": "by its suffix",
        "no_suffix": "by its suffix",
        "tar.pth": "PyTorch's first format",
        "folder.npz": "there is no checkpoint",
        "folder": "there is no checkpoint",
        "absent.npz": "there is no file",
    }
