"""The files of a run's metrics, on disks that are full for a while, and after kills and power cuts."""

import csv
import io
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import tracemalloc
import types

import jax.numpy as jnp
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from vit_jax_mixer import plugins
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.run.more_writers import BY_NAME
from vit_jax_mixer.run.reports import Reports
from vit_jax_mixer.run.tensorboard import TensorBoard, _checksum
from vit_jax_mixer.run.writers import Log, open_writers


def events(workdir):
    """Return what the event files hold, with the checksums that TensorBoard checks."""
    found = []
    for path in sorted(workdir.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            content = data[12 : 12 + length]
            assert data[8:12] == _checksum(data[:8])
            assert data[12 + length : 16 + length] == _checksum(content)
            found.append(Event.FromString(content))
            data = data[16 + length :]
    return found


def scalars(workdir):
    return [(e.step, {v.tag: v.simple_value for v in e.summary.value}) for e in events(workdir) if e.summary.value]


class Both:
    """metrics.jsonl and TensorBoard's file."""

    def __init__(self, workdir, start, say=print):
        self.log = Log(workdir, start, say)
        self._both = (self.log, TensorBoard(workdir, start, say=say))

    def write(self, step, numbers):
        for one in self._both:
            one.write(step, numbers)

    def close(self):
        for one in self._both:
            one.close()


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_checksums_are_those_of_tfrecords():
    # The check value of CRC-32C for "123456789" is 0xE3069283 (RFC 3720); masked as TFRecord's format says.
    crc = 0xE3069283
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32
    assert _checksum(b"123456789") == struct.pack("<I", masked)


def test_both_files_hold_all_numbers(tmp_path):
    log = Both(tmp_path, 0)
    log.write(1, {"train/loss": 2.0, "train/accuracy": 0.5})
    log.write(2, {"test/loss": 1.5})
    log.close()
    assert lines(tmp_path) == [
        {"step": 1, "train/loss": 2.0, "train/accuracy": 0.5},
        {"step": 2, "test/loss": 1.5},
    ]
    assert scalars(tmp_path) == [(1, {"train/loss": 2.0, "train/accuracy": 0.5}), (2, {"test/loss": 1.5})]


def test_what_a_full_disk_did_not_take_is_written_later(tmp_path):
    said = []
    log = Both(tmp_path, 0, said.append)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        log.write(1, {"a": 1.0})
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # in the midst of a line, and of a record
        for step in range(2, 40):
            log.write(step, {"a": float(step)})
        assert len(lines_that_are_whole(tmp_path)) < 39
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    log.write(40, {"a": 40.0})
    log.close()
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 41))
    assert scalars(tmp_path) == [(step, {"a": float(step)}) for step in range(1, 41)]
    assert len(said) == 2  # once for each file
    assert "metrics.jsonl (File too large); its lines wait until there is room" in said[1] + said[0]


def test_what_was_never_written_is_told(tmp_path):
    said = []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        log = Log(tmp_path, 0, said.append)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        log.write(1, {"a": 1.0})
        log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert any("metrics.jsonl lacks its last lines" in line for line in said)


def lines_that_are_whole(workdir):
    return (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)[:-1]


def test_a_resume_takes_back_what_came_after_its_checkpoint_and_leaves_out_what_is_damaged(tmp_path):
    whole = ['{"step": 1, "a": 1.0}', '{"step": 2, "a": 2.0}']
    (tmp_path / "metrics.jsonl").write_text("\n".join([whole[0], "\0\0\0", "[2]", whole[1], '{"step": 3}', '{"ste']))
    log = Both(tmp_path, 2)
    assert log.log.has_evaluation(2)
    log.write(3, {"a": 3.0})
    log.close()
    assert lines(tmp_path) == [{"step": 1, "a": 1.0}, {"step": 2, "a": 2.0}, {"step": 3, "a": 3.0}]
    assert [e.step for e in events(tmp_path) if e.session_log.status] == [3]  # TensorBoard forgets from there on


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"metrics\.jsonl is a folder, not a regular file"):
        Log(tmp_path, 0)


def test_a_pipe_in_its_place_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match=r"metrics\.jsonl is a pipe, not a regular file"):
        Log(tmp_path, 0)


def test_tensorboard_has_pictures_texts_and_histograms_where_they_are_asked_for(tmp_path):
    reports = Reports(tmp_path, 0, 4, 1, 8, writers="jsonl|tensorboard(histograms=True)")
    reports.pictures(2, {"blue": Image.new("RGB", (3, 2), "blue"), "told": "one\n  two <b>"})
    params = {"Dense_0": {"kernel": jnp.array([[1.0, 2.0], [2.0, 5.0]])}}
    reports.parameters(2, lambda: types.SimpleNamespace(params=params))
    reports.close()
    picture, text, histogram = (e.summary.value[0] for e in events(tmp_path) if e.summary.value)
    assert (picture.tag, picture.image.width, picture.image.height) == ("blue", 3, 2)
    assert Image.open(io.BytesIO(picture.image.encoded_image_string)).getpixel((0, 0)) == (0, 0, 255)
    assert text.tensor.string_val == [b"    one\n      two <b>"]
    assert text.metadata.plugin_data.plugin_name == "text"
    assert histogram.tag == "parameters/Dense_0/kernel"
    assert (histogram.histo.num, histogram.histo.sum, histogram.histo.min, histogram.histo.max) == (4, 10, 1, 5)
    assert sum(histogram.histo.bucket) == 4
    assert (tmp_path / "pictures/told_2.txt").read_text() == "one\n  two <b>"
    assert (tmp_path / "pictures/blue_2.png").exists()
    plain = Reports(tmp_path, 0, 4, 1, 8, writers="tensorboard")
    plain.parameters(2, lambda: pytest.fail("nobody wants them"))
    plain.close()


@pytest.mark.parametrize("size", [0, 10**9, 2**40])
def test_a_file_that_is_all_zeros_takes_no_memory(tmp_path, size):
    (tmp_path / "metrics.jsonl").touch()
    os.truncate(tmp_path / "metrics.jsonl", size)
    tracemalloc.start()
    try:
        if size > 2**32:
            with pytest.raises(UserError, match=r"metrics\.jsonl has 1,099,511,627,776 bytes"):
                Log(tmp_path, 0)
        else:
            Log(tmp_path, 0).close()
            assert lines(tmp_path) == []
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "damage", ["[" * 100_000, '{"step": ' + "9" * 5000 + "}", '{"step": true}', '{"step": "1"}', "\xff"]
)
def test_a_line_that_is_none_is_left_out(tmp_path, damage):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "a": 1.0}}\n{damage}\n{{"step": 2, "a": 2.0}}\n', "latin-1")
    Log(tmp_path, 2).close()
    assert lines(tmp_path) == [{"step": 1, "a": 1.0}, {"step": 2, "a": 2.0}]


OWN = """
class Told:
    def __init__(self, workdir, start, at=-1):
        self.file, self.at = (workdir / "told").open("a"), at

    def write(self, step, scalars):
        if step == self.at:
            raise RuntimeError("no connection")
        print(step, *scalars, file=self.file)

    def close(self):
        self.file.close()

class Deaf:
    def __init__(self, workdir, start):
        pass
"""


def test_a_writer_of_a_users_own_is_told_all_and_its_failure_keeps_nothing_from_being_saved(write_modules, tmp_path):
    write_modules(own_writer=OWN)
    plugins.allow("own_writer")
    reports = Reports(tmp_path, 0, 9, 1, 8, writers="own_writer:Told|own_writer:Told(at=2)")
    reports.evaluation(1, {"a": 1.0, "b": 2.0})
    with pytest.raises(RuntimeError, match="no connection"):
        reports.evaluation(2, {"a": 1.0, "b": 2.0})
    reports.evaluation(3, {"a": 1.0, "b": 2.0})  # as what is reported before the save
    reports.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    told = (tmp_path / "told").read_text().splitlines()
    assert sorted(told) == [f"{step} a b" for step in (1, 1, 2, 3)]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("wnb", r"^config.writers: 'wnb' is not known; name one of yours, as my_module:Name\.$"),
        (
            "own_writer:Deaf",
            r"^config.writers: 'own_writer:Deaf' makes no writer; give it the methods write and close\.$",
        ),
        ("own_writer:Told(to=3)", r"^config.writers: own_writer:Told has no field 'to'.*Known: at\.$"),
        ("|own_writer:Told", r"is not of the form name or name\(1, key=2\)"),
    ],
)
def test_what_is_no_writer_is_told(write_modules, tmp_path, name, sentence):
    write_modules(own_writer=OWN)
    plugins.allow("own_writer")
    with pytest.raises(UserError, match=sentence):
        open_writers(name, tmp_path, 0)


def test_a_table_of_metrics_goes_on_where_the_run_does(tmp_path):
    def run(start, steps):
        reports = Reports(tmp_path, start, 9, 1, 8, writers="csv")
        for step in steps:
            reports.evaluation(step, {"test/a": step / 10, 'odd,"name': 1.0})
        reports.close()

    run(0, [1, 2, 3])
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("4,test/a,0.")  # as a kill leaves it
    run(2, [3])
    run(3, [])
    rows = list(csv.reader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert rows[0] == ["step", "name", "value"]
    assert rows[1:] == [
        row for step in (1, 2, 3) for row in ([f"{step}", "test/a", f"{step / 10}"], [f"{step}", 'odd,"name', "1.0"])
    ]


def test_wandb_that_is_not_installed_or_has_no_project_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[wandb\]'"):
        open_writers("wandb(project='mixers')", tmp_path, 0, BY_NAME)
    with pytest.raises(UserError, match=r"config\.writers: wandb .*project"):
        open_writers("wandb", tmp_path, 0, BY_NAME)


def test_wandb_has_one_run_over_a_resume(tmp_path):
    pytest.importorskip("wandb")
    program = """
import sys
from pathlib import Path
from vit_jax_mixer.run.more_writers import BY_NAME
from vit_jax_mixer.run.reports import Reports
workdir, start, stop = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
reports = Reports(workdir, start, 4, 1, 8, writers="wandb(project='mixers')")
for step in range(start + 1, stop + 1):
    reports.evaluation(step, {"test/a": step / 10})
reports.close()
"""
    (tmp_path / "config.json").write_text('{"steps": 4}')
    for start, stop in ((0, 2), (2, 4)):
        told = subprocess.run(
            [sys.executable, "-c", program, tmp_path, f"{start}", f"{stop}"],
            env=os.environ | {"WANDB_MODE": "offline"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert told.returncode == 0, told.stderr
    name = (tmp_path / "wandb_run_id").read_text().strip()
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert [file.name for file in files] == [f"run-{name}.wandb"] * 2
    assert b"test/a" in files[0].read_bytes()
    assert b"0.4" in files[1].read_bytes()
