"""Files as they are found in the wild: each is read, or ends in one sentence that names it."""

import json
import os
import resource
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from tests import hostile_images
from tests.helpers import ROOT, assert_one_sentence, command, environment
from tests.hostile_images import encoded, header, photo, png
from vit_jax_mixer.data import images
from vit_jax_mixer.data.pipeline import Dataset
from vit_jax_mixer.data.sources import open_source
from vit_jax_mixer.errors import UserError


def half(data):
    return data[: len(data) // 2]


JPEG, PNG = encoded(photo(), "JPEG"), encoded(photo(), "PNG")
FRAMES = [photo().quantize(), photo().rotate(180).quantize()]
SOF = JPEG.index(b"\xff\xc0")
EXIF = b"\xff\xe1\x00\x10Exif\0\0II*\0\xff\xff\xff\x7f"

GOOD = {
    "plain.jpg": JPEG,
    "plain.png": PNG,
    "png_in.jpg": PNG,
    "jpeg_in.png": JPEG,
    "animated.gif": encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
    "animated.png": encoded(photo(), "PNG", save_all=True, append_images=[photo().rotate(180)]),
    "animated.webp": encoded(photo(), "WEBP", save_all=True, append_images=[photo().rotate(180)]),
    "plain.bmp": encoded(photo(), "BMP"),
    "cmyk.jpg": encoded(photo().convert("CMYK"), "JPEG"),
    "grey.jpg": encoded(photo().convert("L"), "JPEG"),
    "progressive.jpg": encoded(photo(), "JPEG", progressive=True),
    "deep.png": encoded(Image.fromarray(np.arange(3072, dtype=np.uint16).reshape(48, 64) * 21), "PNG"),
    "deep_colour.png": png(header(2, 2, 16), (b"IDAT", zlib.compress(2 * (b"\0" + bytes(range(12))))), (b"IEND", b"")),
    "one_bit.png": encoded(photo().convert("1"), "PNG"),
    "palette.png": encoded(FRAMES[0], "PNG", transparency=bytes(range(200))),
    "grey_alpha.png": encoded(photo().convert("LA"), "PNG"),
    "1x1.png": encoded(photo(1, 1), "PNG"),
    "1x30000.png": encoded(photo(1, 30_000), "PNG"),
    "30000x1.jpg": encoded(photo(30_000, 1), "JPEG"),
    "bad_exif.jpg": JPEG[:2] + EXIF + JPEG[2:],
    "junk_after_the_end.jpg": JPEG + b"junk" * 100,
    **{name: data for name, (data, _) in hostile_images.sound().items() if len(data) < 20_000},
}
BAD = {
    **{f"cut_at_{end}.jpg": JPEG[:end] for end in (1, 2, 20, SOF + 4, 500, len(JPEG) // 2, len(JPEG) - 100)},
    **{f"cut_at_{end}.png": PNG[:end] for end in (4, 20, 33, 60, len(PNG) // 2, len(PNG) - 40)},
    **{f"cut.{kind.lower()}": half(encoded(photo(), kind)) for kind in ("WEBP", "GIF", "BMP")},
    "empty.jpg": b"",
    "zeros.png": bytes(5000),
    "noise.jpg": np.random.default_rng(0).bytes(5000),
    "start_then_noise.jpg": JPEG[:4] + np.random.default_rng(0).bytes(5000),
    "page.jpg": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "note.png": b"This image was removed.\n",
    "tiff_in.jpg": encoded(photo(), "TIFF"),
    "postscript_in.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n",
    "svg_in.png": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "gzip_in.png": b"\x1f\x8b\x08\0" + bytes(30),
    "20000x20000.png": png(header(20_000, 20_000), (b"IDAT", zlib.compress(bytes(10**6))), (b"IEND", b"")),
    "20000x20000.jpg": JPEG[: SOF + 5] + struct.pack(">HH", 20_000, 20_000) + JPEG[SOF + 9 :],
    "65535x65535.gif": b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + bytes(60),
    "no_width.png": png(header(0, 9), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")),
    "no_height.jpg": JPEG[: SOF + 5] + struct.pack(">HH", 0, 64) + JPEG[SOF + 9 :],
    "huge.bmp": b"BM" + struct.pack("<IIIIiiHHIIiiII", 99, 0, 54, 40, 2**31 - 1, -(2**31) + 1, 1, 24, 0, 0, 0, 0, 0, 0),
    "wrong_sum.png": PNG[:40] + bytes([PNG[40] ^ 255]) + PNG[41:],
    "no_data.png": png(header(64, 48), (b"IEND", b"")),
    **hostile_images.bombs(),
}  # fmt: skip
LINKS = {"broken_link.jpg": "nowhere.jpg", "link_to_itself.png": "link_to_itself.png"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "all"
    folder.mkdir()
    for name, data in {**GOOD, **BAD}.items():
        (folder / name).write_bytes(data)
    for name, target in LINKS.items():
        (folder / name).symlink_to(target)
    (folder / "locked.jpg").write_bytes(JPEG)
    (folder / "locked.jpg").chmod(0)
    return folder.parent


def bad_names():
    # Nothing is locked for the superuser.
    return {*BAD, *LINKS, *({"locked.jpg"} if os.geteuid() else ())}


@pytest.mark.parametrize("spec", ["decode(3)", "decode(1)", "decode_crop(24)"])
def test_each_is_read_or_named(corpus, spec):
    source = open_source(f"folder:{corpus}", "all")
    ops = images.parse(spec, "here")
    dataset = Dataset(source, lambda example, rng: {"image": ops(example["image"], rng)})
    assert len(dataset) == len(GOOD) + len(BAD) + 3
    bad = set()
    for index in range(len(dataset)):
        path = source.where(index)
        sentence = ""
        try:
            image = dataset.get(index, np.random.default_rng(index))["image"]
        except UserError as error:
            sentence = str(error)
        if sentence:
            assert sentence.count(path) == 1
            assert "\n" not in sentence
            assert len(sentence) < len(path) + 150
            bad.add(os.path.basename(path))
        else:
            assert image.dtype == np.uint8
            assert image.shape[-1] == (1 if "1)" in spec else 3)
            assert image.shape[:2] == (24, 24) or "crop" not in spec
    assert bad == bad_names()


def test_decoding_bounds_its_memory(corpus):
    """In a process of its own, whose peak can be read."""
    script = f"""
import resource, numpy as np
from vit_jax_mixer.data import images
from vit_jax_mixer.data.sources import open_source
source = open_source("folder:{corpus}", "all")
op = images.parse("decode(3)", "here").host[0]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for i in range(len(source.examples)):
    try:
        op(source.examples[i]["image"], np.random.default_rng(0))
    except ValueError:
        pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    found = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert int(found.stdout) < 300 * 2**10  # KiB; the bombs promise 0.8 to 12 GiB


def test_no_damage_crashes_the_process():
    op = images.parse("decode(3)", "here").host[0]
    rng = np.random.default_rng(0)
    outcomes = {"read": 0, "refused": 0}
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    for data in GOOD.values():
        for _ in range(40):
            damaged = bytearray(data[:20_000])
            for place in rng.integers(len(damaged), size=rng.integers(1, 6)):
                damaged[place] = rng.integers(256)
            try:
                assert op(bytes(damaged), rng).shape[-1] == 3
                outcomes["read"] += 1
            except UserError:
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 50
    assert (soft, hard) == resource.getrlimit(resource.RLIMIT_AS)


def run(corpus, workdir, *flags):
    result = command(
        "main",
        "--config=configs/digits.py",
        f"--workdir={workdir}",
        f"--config.data.source=folder:{corpus}",
        "--config.data.train=all",
        "--config.data.eval=all[:50%]",
        "--config.data.train_ops=decode_crop(16)|flip_lr|value_range(-1, 1)",
        "--config.data.eval_ops=decode(3)|resize(16)|value_range(-1, 1)",
        "--config.checkpoint.best=",
        "--config.steps=6",
        "--config.log_every=1",
        "--config.batch_size=32",
        "--config.optim.warmup_steps=1",
        *flags,
        timeout=300,
    )
    return result


def test_a_run_skips_what_is_bad_and_lists_it(corpus, tmp_path):
    logs = []
    for name, flags in (("a", ["--config.loader.workers=0"]), ("b", ["--config.loader.workers=2"])):
        result = run(corpus, tmp_path / name, "--config.data.on_bad_example=skip", *flags)
        assert result.returncode == 0, result.stderr
        listed = (tmp_path / name / "skipped_examples.txt").read_text().splitlines()
        assert {os.path.basename(line.split(": ")[0]) for line in listed} >= bad_names() - LINKS.keys()
        assert len(listed) == len(bad_names())
        assert f"{len(listed)} bad examples were skipped; " in result.stdout
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        logs.append([{key: value for key, value in line.items() if not key.startswith("perf/")} for line in lines])
    assert logs[0] == logs[1]


def test_a_run_stops_at_what_is_bad(corpus, tmp_path):
    assert_one_sentence(run(corpus, tmp_path), str(corpus / "all"))


def test_the_data_command_names_what_is_bad(corpus):
    result = command("data", f"folder:{corpus}", "--split=all", "--sheet=", "--check", timeout=300)
    assert f"error: {len(bad_names())} of " in result.stderr
    for name in bad_names():
        assert name in result.stdout
