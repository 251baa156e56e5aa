"""``.pth`` files written opcode by opcode, good ones and others; neither PyTorch nor `pickle` is needed."""

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

DICT = b"ccollections\nOrderedDict\n)R"
FALSE = b"\x89"


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    data = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def group(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def numbers(values: tuple[int, ...]) -> bytes:
    return group(*map(number, values))


def mapping(items: Mapping[str, bytes], start: bytes = DICT) -> bytes:
    return start + b"(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def storage(key: str = "0", count: int = 6, kind: str = "FloatStorage", *, view: bytes | None = None) -> bytes:
    parts = [text("storage"), name("torch", kind), text(key), text("cpu"), number(count)]
    return group(*parts, *([view] if view else [])) + b"Q"


def tensor(shape=(2, 3), strides=(3, 1), offset: int = 0, of: bytes | None = None, **kwargs) -> bytes:
    arguments = group(of or storage(**kwargs), number(offset), numbers(shape), numbers(strides), FALSE, DICT)
    return name("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def pickled(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def archive(path: Path, body: bytes, storages: Mapping[str, bytes], **others: bytes) -> Path:
    """Write the zip layout."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/data.pkl", pickled(body))
        for key, data in {**{f"data/{key}": data for key, data in storages.items()}, **others}.items():
            file.writestr(f"x/{key}", data)
    return path


MAGIC = pickled(b"\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little"))
SYSTEM = mapping({"protocol_version": number(1001), "little_endian": b"\x88"}, b"}")


def stream(
    path: Path,
    body: bytes,
    storages: Mapping[str, bytes],
    *,
    itemsize: int = 4,
    system: bytes = SYSTEM,
    keys: bytes | None = None,
) -> Path:
    """Write the layout from before the zip one."""
    keys = b"](" + b"".join(map(text, storages)) + b"e" if keys is None else keys
    data = b"".join(struct.pack("<q", len(data) // itemsize) + data for data in storages.values())
    path.write_bytes(MAGIC + pickled(number(1001)) + pickled(system) + pickled(body) + pickled(keys) + data)
    return path
