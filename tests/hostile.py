"""Files of weights that want harm, and a process that tries to load them: `python -m tests.hostile FOLDER`.

It prints, for each file, what loading it raised and the growth of the process's peak memory in bytes.
"""

import json
import resource
import struct
import sys
import zipfile
from pathlib import Path

from tests import torch_bytes as t
from tests.hostile_arrays import GOOD, SIX, archives, npys, others, safetensors


def programs(canary: Path) -> dict[str, tuple[bytes, str]]:
    """Return pickles that would run a command, each with what must be said of it."""
    argument = t.text(f"touch {canary}")
    system = t.name("os", "system") + t.group(argument) + b"R"
    asked = "'os.system', which is no tensor"
    stack = t.text("posix") + t.text("system") + b"\x93"
    popen = t.name("subprocess", "Popen")
    getattr_ = t.name("builtins", "getattr")
    beside = {"args": t.name("argparse", "Namespace") + b")\x81" + t.mapping({"lr": system}, b"}") + b"b"}
    return {
        "global": (system, asked),
        "stack_global": (stack + t.group(argument) + b"R", "'posix.system'"),
        "inst": (b"(" + argument + b"ios\nsystem\n", asked),
        "obj": (b"(" + t.name("os", "system") + argument + b"o", asked),
        "newobj": (popen + t.group(argument) + b"\x81", "'subprocess.Popen'"),
        "newobj_ex": (popen + t.group(argument) + t.mapping({"shell": b"\x88"}, b"}") + b"\x92", "'subprocess.Popen'"),
        "keywords": (
            t.name("torch", "Size") + b")" + t.mapping({"a": b"\x88"}, b"}") + b"\x92",
            "an object with keywords",
        ),
        "setstate": (t.DICT + t.mapping({"__setstate__": t.name("os", "system")}, b"}") + b"b", asked),
        "attributes": (t.DICT + t.mapping({"__class__": t.text("x")}, b"}") + b"b", "sets the state of a dict"),
        "build_tensor": (t.tensor() + t.mapping({"x": b"\x88"}, b"}") + b"b", "sets the state of a Tensor"),
        "build_name": (t.name("torch", "Size") + b"}b", "sets the state of a StandIn"),
        "ext1": (b"\x82\x01)R", "the step EXT1"),
        "ext2": (b"\x83\x01\x00)R", "the step EXT2"),
        "ext4": (b"\x84\x01\x00\x00\x00)R", "the step EXT4"),
        "getattr": (getattr_ + t.group(t.name("torch", "Size"), t.text("__subclasses__")) + b"R", "'builtins.getattr'"),
        "dotted": (t.text("collections") + t.text("OrderedDict.fromkeys") + b"\x93", "'collections.OrderedDict.from"),
        "computed": (t.number(3) + t.text("system") + b"\x93", "computes the name"),
        "eval": (t.name("builtins", "eval") + t.group(argument) + b"R", "'builtins.eval'"),
        "old_eval": (t.name("__builtin__", "eval") + t.group(argument) + b"R", "'__builtin__.eval'"),
        "torch_load": (t.name("torch", "load") + t.group(argument) + b"R", "'torch.load'"),
        "tensor_of": (t.name("torch.storage", "_load_from_bytes") + t.group(argument) + b"R", "_load_from_bytes'"),
        "text_called": (t.text("os.system") + t.group(argument) + b"R", "calls a str"),
        "dict_called": (t.DICT + t.group(argument) + b"R", "calls a dict"),
        "beside": (t.mapping({"model": t.mapping(GOOD), **beside}), asked),
        "dropped": (system + b"0" + t.mapping(GOOD), asked),
        "storage_type": (
            t.tensor(of=t.group(t.text("storage"), system, t.text("0"), t.text("cpu"), t.number(6)) + b"Q"),
            asked,
        ),
        "storage_text": (t.tensor(of=t.text("storage") + b"Q"), "no storage"),
        "persistent_text": (b"Pos.system\n", "the step PERSID"),
        "parameter": (t.name("torch._utils", "_rebuild_parameter") + t.group(system, t.FALSE, t.DICT) + b"R", asked),
        "whole_module": (t.name("resmlp_models", "resmlp_models") + b")\x81", "'resmlp_models.resmlp_models'"),
        "buffers": (b"\x97", "the step NEXT_BUFFER"),
    }


def floods() -> dict[str, tuple[bytes, str]]:
    """Return pickles that would take memory or time, each with what must be said of it."""
    doubled = b")" + b"".join(b"q%c0h%ch%c\x86" % (i, i, i) for i in range(200))
    return {
        "memo": (b"Nr\xff\xff\xff\xff0" + t.mapping({}), "holds no parameters"),
        "colliding": (b"Np%d\n" % ((1 << 61) - 1), "the step PUT"),
        "long_text": (b"\x8d" + struct.pack("<Q", 1 << 40), "a text in it of 1,099,511,627,776"),
        "long_bytes": (b"\x8e" + struct.pack("<Q", (1 << 63) - 1) + b"x", "a text in it of 9,223,372"),
        "long_array": (b"\x96" + struct.pack("<Q", 1 << 62), "a text in it of"),
        "long_number": (b"\x8b" + struct.pack("<i", (1 << 31) - 1), "a text in it of 2,147,483,647"),
        "negative": (b"\x8b" + struct.pack("<i", -5), "a broken pickle"),
        "digits": (b"I" + b"9" * 1_000_000 + b"\n", "a broken pickle"),
        "marks": (b"(" * 1_100_000, "more than 1,000,000 steps"),
        "dicts": (b"}" * 1_100_000, "more than 1,000,000 steps"),
        "nested": (b")" + b"\x85" * 500_000, "holds no parameters"),
        "doubled_key": (b"}" + doubled + b"Ns", "holds no parameters"),
        "doubled": (
            t.mapping({"stem.proj.bias": t.tensor(), "x": doubled}),
            "too few parameters|a storage that it does not hold",
        ),
        "endless": (b"N", "holds no parameters"),
        "underflow": (b"R", "a broken pickle"),
        "no_memo": (b"h\x05", "a broken pickle"),
        "cut": (b"X\xff\xff\x00\x00abc", "a broken pickle"),
    }


def impossible() -> dict[str, tuple[bytes, str]]:
    """Return tensors that do not lie in their storage of six numbers, each with what must be said."""
    beyond, shape = "reaches beyond its storage", "an impossible shape"
    return {
        "huge": (t.tensor((1 << 40, 1 << 40), (1, 1)), beyond),
        "huge_sides": (t.tensor((1 << 60,), (1,)), shape),
        "one_more": (t.tensor((7,), (1,)), beyond),
        "strided_out": (t.tensor((2, 3), (4, 1)), beyond),
        "offset_out": (t.tensor(offset=1), beyond),
        "offset_empty": (t.tensor((0,), (1,), offset=7), beyond),
        "offset_negative": (t.tensor((1,), (1,), offset=-1), shape),
        "stride_negative": (t.tensor((2,), (-1,), offset=5), shape),
        "repeated": (t.tensor((100_000, 100_000), (0, 0)), beyond),
        "axes": (t.tensor((2, 3), (1,)), shape),
        "many_axes": (t.tensor((1,) * 40, (1,) * 40), shape),
        "count_lies": (t.tensor((7,), (1,), count=7), "longer than it is"),
        "count_negative": (t.tensor(count=-6), "in a way that PyTorch does not"),
        "absent": (t.tensor(key="1"), "a storage that it does not hold"),
        "outside": (t.tensor(key="../../data.pkl"), "a storage that it does not hold"),
        "two_types": (t.group(t.tensor(), t.tensor(kind="HalfStorage")), "gives one storage two types"),
        "part_out": (t.tensor(of=t.storage(view=t.group(t.text("p"), t.number(3), t.number(6)))), "longer than it is"),
        "kind": (t.tensor(kind="Size"), "in a way that PyTorch does not"),
        "integers": (t.tensor(kind="IntStorage"), "type int32, not float"),
        "bools": (t.tensor((6,), (1,), kind="BoolStorage"), "type bool, not float"),
        "complex": (t.tensor((3,), (1,), kind="ComplexFloatStorage", count=3), "type complex64, not float"),
    }


def write_all(folder: Path) -> dict[str, str]:
    """Write every hostile file, and return by its name what loading it must say."""
    expected = {**archives(folder), **others(folder)}
    for kind, made in {"program": programs(folder / "canary"), "flood": floods()}.items():
        for name, (body, message) in made.items():
            expected[t.archive(folder / f"{kind}-{name}.pth", body, SIX).name] = message
            if len(body) < 100_000:  # those are slow, and read in the same way
                expected[t.stream(folder / f"{kind}-{name}-old.pth", body, {}).name] = message
    for name, (body, message) in impossible().items():
        body = t.mapping({"stem.proj.bias": body})
        expected[t.archive(folder / f"tensor-{name}.pth", body, SIX).name] = message
        storages = {} if name in ("absent", "outside") else SIX
        if name not in ("bools", "complex"):  # of another size than the stream's storage
            expected[t.stream(folder / f"tensor-{name}-old.pth", body, storages).name] = message
    for place in ("system", "keys"):
        path = folder / f"{place}-old.pth"
        t.stream(path, t.mapping(GOOD), SIX, **{place: programs(folder / "canary")["global"][0]})
        expected[path.name] = "is not a .pth file" if place == "system" else "'os.system'"
    for name, (data, message) in npys().items():
        with zipfile.ZipFile(folder / f"npy-{name}.npz", "w") as file:
            file.writestr("stem.npy", data)
        expected[f"npy-{name}.npz"] = message
    for name, (data, message) in safetensors().items():
        (folder / f"{name}.safetensors").write_bytes(data)
        expected[f"{name}.safetensors"] = message
    return expected


def main(folder: Path) -> None:
    from vit_jax_mixer import pretrained
    from vit_jax_mixer.errors import UserError

    results = {}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in json.loads((folder / "expected.json").read_text()):
        try:
            pretrained.load(folder / name)
            message = "loaded"
        except UserError as error:
            message = f"refused: {error}"
        except Exception as error:  # the parent wants to see what should have been a UserError
            message = f"{type(error).__name__}: {error}"
        results[name] = message, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
