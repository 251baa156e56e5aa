"""Where the time of an input pipeline goes: each stage alone, then the loader as training uses it."""

import itertools
import time
from collections.abc import Iterator
from contextlib import closing

import numpy as np

from vit_jax_mixer.data import images
from vit_jax_mixer.data.describe import sample
from vit_jax_mixer.data.pipeline import Dataset, Loader, field, placed
from vit_jax_mixer.data.sources import Source
from vit_jax_mixer.data.stacking import stack
from vit_jax_mixer.errors import UserError


def stages(source: Source, spec: str, ops: images.Ops, batch_size: int, count: int) -> dict[str, float]:
    """Return the mean seconds for each image of reading, of each host operation and of stacking a batch.

    In one thread, over a sample of at most ``count`` examples.
    """
    seconds = dict.fromkeys(["read", *(part.strip() for part in spec.split("|")[: len(ops.host)]), "stack"], 0.0)
    names = list(seconds)
    rng, done = np.random.default_rng(0), []
    for index in sample(source, count):
        try:
            begun = time.perf_counter()
            image = field(source.examples[int(index)], "image")
            for name, op in zip(names, [*ops.host, None], strict=False):
                now = time.perf_counter()
                seconds[name] += now - begun
                begun = now
                if op is not None:
                    image = op(image, rng)
        except UserError as error:
            raise placed(error, source, int(index)) from error
        done.append({"image": image})
    begun = time.perf_counter()
    for start in range(0, len(done), batch_size):
        stack(done[start : start + batch_size])
    seconds["stack"] = time.perf_counter() - begun
    return {name: total / len(done) for name, total in seconds.items()}


def report(source: Source, spec: str, ops: images.Ops, loader: Loader, batch_size: int, count: int) -> Iterator[str]:
    """Yield the lines of the profile."""
    stages(source, spec, ops, batch_size, min(count, 20))  # so that no stage pays for what happens once
    times = stages(source, spec, ops, batch_size, count)
    total = sum(times.values())
    width = max(map(len, times))
    yield f"{'stage':{width}}  µs/image  share"
    for name, seconds in times.items():
        yield f"{name:{width}}  {seconds * 1e6:8,.0f}  {seconds / total:5.0%}"
    most = max(times, key=lambda name: times[name])
    yield f"{'one thread':{width}}  {total * 1e6:8,.0f}  that is {1 / total:,.0f} images/s; most goes to {most}"

    dataset = Dataset(source, lambda example, rng: {"image": ops(example["image"], rng)})
    workers, threads = loader.crew()
    begun = time.perf_counter()
    with closing(loader.train_batches(dataset, seed=0, batch_size=batch_size, start=0)) as batches:
        batch = next(batches)
        first = time.perf_counter() - begun
        # Past what was made ahead while the first was waited for.
        for _ in itertools.islice(batches, (threads + loader.prefetch + 4) * max(workers, 1)):
            pass
        begun, steps = time.perf_counter(), 0
        while time.perf_counter() - begun < 3:
            next(batches)
            steps += 1
        rate = steps * batch_size / (time.perf_counter() - begun)
    yield f"loader: {workers} worker process(es), {threads} thread(s) each, batches of {batch_size}"
    yield f"  {rate:,.0f} images/s, {rate * total:.1f} times one thread; the first batch after {first:.2f} s"
    image = batch["image"]
    ratio = 4 * image.size / image.nbytes
    yield f"  {image.nbytes / 2**20:,.2f} MiB of {image.dtype} to the devices a step, 1/{ratio:.0f} of float32"
