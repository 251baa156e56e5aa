"""A bit that a disk flips in any file of a workdir is noticed by whoever reads that, or changes no result."""

import dataclasses
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.test_train import saved_part, small
from vit_jax_mixer import pretrained
from vit_jax_mixer.checkpoints import best, checksums
from vit_jax_mixer.convert import convert
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.export.writing import export
from vit_jax_mixer.train import train_and_evaluate
from vit_jax_mixer.trained import open_model

CONFIG = small(steps=4, eval_every=2, checkpoint__every=1, log_every=1, ema_decay=0.9)
RECORDS = ("config.json", "data.json", "saved.json", "model.json", "metrics.jsonl")
Found = tuple[Any, str]  # what a reader makes of a workdir, and what it tells of it


def resume(run: Path, out: Path) -> Found:
    """Go on with a copy of the run."""
    workdir = shutil.copytree(run, out / "run")
    state = train_and_evaluate(CONFIG, workdir)
    scores = {step: best.read(workdir / f"checkpoints/{step}") for step in best.steps(workdir / "checkpoints")}
    return (saved_part(state), jax.device_get(state.ema), scores), ""


def predict(run: Path, out: Path) -> Found:
    """Open the model, as predicting and evaluating do; the rest of them reads no file of the run."""
    del out
    trained = open_model(str(run))
    return (dataclasses.astuple(trained.about), trained.params), trained.origin


def export_it(run: Path, out: Path) -> Found:
    """Export the weights."""
    lines = export(str(run), out / "export", formats=["safetensors"])
    card = checksums.read_json(out / "export/card.json", may_lack_it=True)
    return (card, (out / "export/model.safetensors").read_bytes()), "\n".join(lines)


def convert_it(run: Path, out: Path) -> Found:
    """Convert the weights."""
    line = convert(run, out / "weights.npz")
    return dict(np.load(out / "weights.npz")), line


def init_from(run: Path, out: Path) -> Found:
    """Read the weights as another run begins with them."""
    del out
    weights = pretrained.read(run)
    return weights.tree, weights.origin


READERS: list[Callable[[Path, Path], Found]] = [resume, predict, export_it, convert_it, init_from]


def flips(run: Path, count: int) -> Iterator[str]:
    """Flip one bit after another, each for one turn; yield where it is."""
    draws = random.Random(0)
    files = sorted(path for path in run.rglob("*") if path.is_file() and path.stat().st_size)
    draws.shuffle(files)
    files.sort(key=lambda path: path.name not in RECORDS)
    for number in range(count):
        path = files[number % len(files)]
        whole = path.read_bytes()
        place, bit = draws.randrange(len(whole)), draws.randrange(8)
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        yield f"{path.relative_to(run)}, bit {bit} of byte {place}"
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("count", "readers"),
    [(8, READERS[1:2]), pytest.param(int(os.environ.get("FLIPS", "500")), READERS, marks=pytest.mark.slow)],
    ids=["few", "many"],
)
def test_a_flipped_bit_in_any_file_of_a_workdir_is_noticed_or_changes_nothing(tmp_path, capsys, count, readers):
    run, out = tmp_path / "run", tmp_path / "out"
    train_and_evaluate(CONFIG, run)

    def found(reader: Callable[[Path, Path], Found]) -> Found:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        capsys.readouterr()
        result, said = reader(run, out)
        return result, said + capsys.readouterr().out

    expected = {reader: found(reader)[0] for reader in readers}
    ends, silent = Counter(), []
    for where in flips(run, count):
        for reader in readers:
            try:
                result, said = found(reader)
            except UserError:
                end = "refused"
            else:
                end = "no effect" if same(result, expected[reader]) else "told" if "damaged" in said else "silent"
            ends[end, reader.__name__] += 1
            if end == "silent":
                silent.append(f"{reader.__name__}: {where}")
    print(f"{count} flips: {dict(sorted(ends.items()))}")
    assert not silent, "\n".join(silent)
    assert ends["refused", "predict"] > 0


def same(one: Any, other: Any) -> bool:
    leaves, structure = jax.tree.flatten(one)
    others, another = jax.tree.flatten(other)
    return structure == another and all(np.array_equal(a, b) for a, b in zip(leaves, others, strict=True))
