"""Images per second from JPEG files to training batches of 224 x 224, beside tf.data and bare decoding.

python -m benchmarks.input_pipeline DIR [--make=2000] [--rounds=3] [--seconds=6] [--only=NAME,...]

DIR holds CLASS/x.jpg. With --make, that many photographs of 500 x 375 pixels are written there
first, cut from the two that scikit-learn ships. The contestants run in turn, each in a process of
its own; the figures are medians of the rounds. On a machine that others use too, the CPU time of an
image says more than the rate. `pip install -e '.[benchmarks]'` brings TensorFlow, without which its
lines are left out.

The lines named 'packed' read the same photographs from DIR_packed, which `data --pack` makes first, with shorter sides
of 256 pixels; tf.data reads the same JPEGs from a TFRecord file there.
"""

import importlib.util
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image, ImageEnhance

from benchmarks.peers.tf_data import BATCH, SIZE, packed_of, tf_data
from vit_jax_mixer import cli
from vit_jax_mixer.data import images
from vit_jax_mixer.data.images.decoding import to_array
from vit_jax_mixer.data.packing import Settings, pack
from vit_jax_mixer.data.pipeline import Dataset, Loader, Share
from vit_jax_mixer.data.sources import open_source
from vit_jax_mixer.data.workers import cores
from vit_jax_mixer.errors import UserError

_FLAGS = flags.FlagValues()
_MAKE = flags.DEFINE_integer("make", 0, "Photographs to write to DIR first.", lower_bound=0, flag_values=_FLAGS)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Times that each contestant runs.", lower_bound=1, flag_values=_FLAGS)
_SECONDS = flags.DEFINE_float("seconds", 6, "Time of each.", lower_bound=0.1, flag_values=_FLAGS)
_ONLY = flags.DEFINE_list("only", [], "Contestants; all if not given.", flag_values=_FLAGS)
_CHILD = flags.DEFINE_bool("child", False, "Run the one contestant here, and print its rate alone.", flag_values=_FLAGS)


def main(argv: list[str]) -> None:
    """Measure and print the table."""
    if len(argv) != 2:
        raise UserError("name one folder, as in `python -m benchmarks.input_pipeline /tmp/photos --make=2000`.")
    folder = Path(argv[1])
    if _MAKE.value:
        make_photographs(folder, _MAKE.value)
    known = [n for n in CONTESTANTS if not n.startswith("tf.data") or importlib.util.find_spec("tensorflow")]
    names = _ONLY.value or known
    for name in names:
        if name not in known:
            raise UserError(f"--only: {name!r} is not there; there are {', '.join(known)}.")
    if _CHILD.value:
        print(json.dumps(measure(CONTESTANTS[names[0]](folder), _SECONDS.value)))
        return
    if any("packed" in name for name in names):
        for line in pack(Settings(f"folder:{folder}", ("all",), 256, 90, skip_bad=False), packed_of(folder)):
            print(line, flush=True)
    found: dict[str, list[list[float]]] = {name: [] for name in names}
    for _ in range(_ROUNDS.value):
        for name in names:
            found[name].append(in_a_child(folder, name))
    table(found)


def table(found: dict[str, list[list[float]]]) -> None:
    """Print the medians, and their ratios to tf.data and to decoding on all cores."""
    medians = {name: np.median(np.array(rounds), 0) for name, rounds in found.items()}
    rival = medians.get("tf.data", np.full(2, np.nan))
    limit = medians.get("decode in one thread", np.full(2, np.nan))[0] * cores()
    print(
        f"{'':<22}{'images/s':>9}{'of tf.data':>12}{'of decode x ' + str(cores()):>14}{'CPU µs/image':>14}   all rounds"
    )
    for name, (rate, cpu) in medians.items():
        rounds = ", ".join(f"{rate:,.0f}" for rate, _ in found[name])
        print(f"{name:<22}{rate:>9,.0f}{rate / rival[0]:>12.2f}{rate / limit:>14.2f}{cpu * 1e6:>14,.0f}   {rounds}")


def in_a_child(folder: Path, name: str) -> list[float]:
    """Return what `measure` gives for a contestant that has a process to itself."""
    line = [sys.executable, "-m", "benchmarks.input_pipeline", str(folder), f"--only={name}", "--child"]
    found = subprocess.run([*line, f"--seconds={_SECONDS.value}"], capture_output=True, text=True, check=False)
    if found.returncode:
        raise UserError(f"{name} failed: {found.stderr.strip().splitlines()[-1]}")
    return json.loads(found.stdout.splitlines()[-1])


def measure(batches: Iterator[int], seconds: float) -> list[float]:
    """Return images per second and CPU seconds an image of an iterator of batch sizes.

    After a warm-up of a third of the time. The CPU time is that of this process, so not of workers.
    """
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds / 3:
        next(batches)
    begun, used, count = time.perf_counter(), cpu_seconds(), 0
    while time.perf_counter() - begun < seconds:
        count += next(batches)
    return [count / (time.perf_counter() - begun), (cpu_seconds() - used) / count]


def cpu_seconds() -> float:
    """Return the CPU time of this process until now."""
    import resource  # which Windows has not

    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


# --- The contestants: each yields the sizes of its batches --------------------------------------------


def decode_only(folder: Path) -> Iterator[int]:
    """The limit: read and decode by libjpeg-turbo, in one thread."""
    source = open_source(f"folder:{folder}", "all")
    while True:
        for i in range(len(source.examples)):
            to_array(source.examples[i]["image"], 3)
            yield 1


def ours(ops: str, workers: int, threads: int = -1, packed: bool = False) -> Callable[[Path], Iterator[int]]:
    """Return the project's pipeline with these operations."""

    def contestant(folder: Path) -> Iterator[int]:
        name = f"tfds:{packed_of(folder).absolute()}" if packed else f"folder:{folder}"
        source, parsed = open_source(name, "train" if packed else "all"), images.parse(ops, "ops")
        transform = lambda example, rng: {"image": parsed(example["image"], rng), "label": np.int32(example["label"])}
        loader = Loader(workers, threads, prefetch=2, share=Share(0, 1))
        with closing(loader.train_batches(Dataset(source, transform), seed=0, batch_size=BATCH, start=0)) as batches:
            for batch in batches:
                yield len(batch["image"])

    return contestant


QUICK, EXACT = f"decode_crop({SIZE})|flip_lr", f"decode(3)|inception_crop({SIZE})|flip_lr"
CONTESTANTS: dict[str, Callable[[Path], Iterator[int]]] = {
    "tf.data": tf_data(fused=False),
    "tf.data fused crop": tf_data(fused=True),
    "decode in one thread": decode_only,
    "decode_crop threads": ours(QUICK, workers=0),
    "decode_crop 2 workers": ours(QUICK, workers=2, threads=2),
    "exact filter threads": ours(EXACT, workers=0),
    "packed threads": ours(QUICK, workers=0, packed=True),
    "packed 2 workers": ours(QUICK, workers=2, threads=2, packed=True),
    "tf.data packed": tf_data(fused=False, packed=True),
    "tf.data packed fused": tf_data(fused=True, packed=True),
}


def make_photographs(folder: Path, count: int) -> None:
    """Write photographs of 500 x 375 pixels, 70 KiB each: random parts of real ones, at random brightness."""
    from sklearn.datasets import load_sample_images

    photos = [Image.fromarray(image) for image in load_sample_images().images]
    rng = np.random.default_rng(0)
    for i in range(count):
        photo = photos[i % len(photos)]
        height = int(photo.height * rng.uniform(0.88, 1.0))
        width = height * 4 // 3
        left, top = int(rng.integers(photo.width - width + 1)), int(rng.integers(photo.height - height + 1))
        part = photo.resize((500, 375), Image.Resampling.BICUBIC, (left, top, left + width, top + height))
        data = io.BytesIO()
        ImageEnhance.Brightness(part).enhance(rng.uniform(0.7, 1.3)).save(data, "JPEG", quality=95)
        path = folder / f"class{i % len(photos)}" / f"{i:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.getvalue())


if __name__ == "__main__":
    cli.run(main, _FLAGS)
