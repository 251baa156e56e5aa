"""What one GPU or TPU does with this code, in at most ten minutes: `python -m benchmarks.accelerator [--minutes=10]`.

Four tables, and all of it as JSON (--json=FILE): the bare training step of the Mixers by size, type, way of running
and of storing blocks, with the share of the chip's bfloat16 peak (MFU) and the memory of the compiled program; that
memory beside what `python -m vit_jax_mixer.plan` foretells from this machine's CPU; the train loop with images that
are made at once and with JPEGs, and its wait for data; and whether two runs of one config end with the same bits.
Rows come in the order of their use to a reader, and those for which no time is left are named, not guessed.
"""

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from PIL import Image

from benchmarks.parts import memory
from configs import digits, mixer_imagenet
from vit_jax_mixer import cli
from vit_jax_mixer.config import Config
from vit_jax_mixer.data import packing
from vit_jax_mixer.run import hardware, parallel
from vit_jax_mixer.run.assemble import assemble
from vit_jax_mixer.train import train_and_evaluate

_MINUTES = flags.DEFINE_float("minutes", 10, "No measurement begins after them.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Images of a step; L/16 has a quarter.")
_STEPS = flags.DEFINE_integer("steps", 20, "Steps that are timed, three times, after two that are not.")
_SIDE = flags.DEFINE_integer("side", 224, "Of the images; smaller to try the script.")
_JSON = flags.DEFINE_string("json", "", "File for all figures.")

B16 = dict(name="Mixer-B/16", dtype="bfloat16")
STEPS: tuple[dict[str, Any], ...] = (
    dict(name="Mixer-S/16", dtype="bfloat16"),
    B16,
    dict(name="Mixer-S/16", dtype="float32"),
    dict(name="Mixer-B/16", dtype="float32"),
    B16 | dict(scan=True),
    B16 | dict(scan=True, remat=True),
    B16 | dict(parallel="pmap"),
    dict(name="Mixer-L/16", dtype="bfloat16", scan=True, remat=True),
    dict(name="Mixer-L/16", dtype="bfloat16"),
    dict(name="Mixer-L/16", dtype="float32", scan=True, remat=True),
    dict(name="ResMLP-S24", dtype="bfloat16"),
    dict(name="gMLP-S16", dtype="bfloat16"),
)


def main(argv: list[str]) -> None:
    """Measure in turn and print as it goes."""
    del argv
    ends = time.monotonic() + 60 * _MINUTES.value
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}, JAX {jax.__version__}"
    found: dict[str, Any] = {"device": device, "side": _SIDE.value}
    print(device, flush=True)
    jax.config.update("jax_enable_compilation_cache", False)
    parts = {"determinism": determinism, "loop": loops, "plan": plans, "step": steps}
    for name, rows in parts.items():
        found[name] = []
        left: list[str] = []
        for row in rows(ends, left):
            found[name].append(row)
            print(f"{name}: " + ", ".join(f"{key} {_shown(value)}" for key, value in row.items()), flush=True)
        if left:
            found[name].append({"no time was left for": left})
            print(f"{name}: no time was left for {'; '.join(left)}", flush=True)
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(found, indent=1))


def _shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def _config(model: dict[str, Any], source: str, train_ops: str) -> Any:
    config = mixer_imagenet.get_config()
    model = dict(model)
    config.parallel = model.pop("parallel", "jit")
    config.model.update(dict(scan=False, remat=False) | model)
    config.batch_size = _BATCH_SIZE.value // (4 if "L/16" in model["name"] else 1)
    evaluated = f"decode(3)|resize({_SIDE.value})|value_range(-1, 1)"
    config.data.update(source=source, train_ops=train_ops, eval="", eval_ops=evaluated)
    config.checkpoint.best = ""
    return config


def _blank(model: dict[str, Any]) -> Any:
    side = _SIDE.value
    return _config(model, f"blank:1000,{side}x{side}x3", f"decode(3)|resize({side})|value_range(-1, 1)")


def steps(ends: float, left: list[str]) -> Iterator[dict[str, Any]]:
    """Time the bare step of each model, on one batch that stays on the devices."""
    for model in STEPS:
        name = ", ".join(str(value) if key != "scan" and key != "remat" else key for key, value in model.items())
        if time.monotonic() > ends - 20:
            left.append(name)
            continue
        run = Config.of(_blank(model))
        parts = assemble(run)
        devices = parts.devices
        rng = np.random.default_rng(0)
        image = rng.integers(0, 256, (run.batch_size, _SIDE.value, _SIDE.value, 3), np.uint8)
        batch = devices.put_batch({"image": image, "label": rng.integers(0, 1000, run.batch_size, np.int32)})
        state = devices.make(lambda parts=parts: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), parts.shapes()))
        begun = time.perf_counter()
        compiled = devices.lower(parts.train_step, state, batch).compile(parallel.COMPILER_OPTIONS)
        seconds = time.perf_counter() - begun
        state, metrics = compiled(state, batch)
        state, metrics = compiled(state, batch)
        times = []
        for _ in range(3):
            jax.block_until_ready(metrics)
            begun = time.perf_counter()
            for _ in range(_STEPS.value):
                state, metrics = compiled(state, batch)
            jax.block_until_ready(metrics)
            times.append((time.perf_counter() - begun) / _STEPS.value)
        step = statistics.median(times)
        temporaries, arguments, reused = memory(compiled)
        flop = 3 * run.batch_size * parts.task.forward_flop()
        yield {
            "model": name,
            "batch": run.batch_size,
            "compile s": seconds,
            "step ms": 1000 * step,
            "spread": max(times) / min(times),
            "images/s": run.batch_size / step,
            "MFU": flop / step / hardware.peak_flop() if hardware.peak_flop() else 0.0,
            "temporaries MiB": temporaries,
            "state and batch MiB": arguments,
            "reused MiB": reused,
        }
        del state, batch, metrics, compiled


def plans(ends: float, left: list[str]) -> Iterator[dict[str, Any]]:
    """Ask the plan for the memory of two steps; it compiles on this machine's CPU."""
    chip = next((name for name, chip in hardware.CHIPS.items() if _is(chip)), "")
    for name in ("Mixer-S/16", "Mixer-B/16"):
        if not chip or time.monotonic() > ends - 60:
            left.append(name)
            continue
        side = _SIDE.value
        command = [sys.executable, "-m", "vit_jax_mixer.plan", f"--config={mixer_imagenet.__file__}", "--json"]
        command += [f"--target={chip}:1", "--nosearch", "--config.parallel=jit", f"--config.model.name={name}"]
        command += [f"--config.batch_size={_BATCH_SIZE.value}", "--config.model.scan=False"]
        command += ["--config.model.remat=False", f"--config.data.source=blank:1000,{side}x{side}x3"]
        command += [f"--config.data.train_ops=decode(3)|resize({side})|value_range(-1, 1)", "--config.data.eval="]
        command += [f"--config.data.eval_ops=decode(3)|resize({side})|value_range(-1, 1)", "--config.checkpoint.best="]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        if told.returncode:
            yield {"model": name, "error": told.stderr.strip().splitlines()[-1]}
        else:
            plan = json.loads(told.stdout)
            yield {"model": name, **{f"{key} MiB": value / 2**20 for key, value in plan["memory"].items()}}


def _is(chip: hardware.Chip) -> bool:
    return bool(re.match(chip.name, jax.devices()[0].device_kind)) if chip.kind != "cpu" else False


def loops(ends: float, left: list[str]) -> Iterator[dict[str, Any]]:
    """Run the train loop of Mixer-S/16 in bfloat16: images on the device, in memory, of packed JPEGs and of files."""
    with tempfile.TemporaryDirectory() as folder:
        photos, packed = Path(folder) / "photos", Path(folder) / "packed"
        ways = {}
        for name, cache in (("on the device", "device"), ("in memory", "host"), ("made at once", "none")):
            ways[name] = _blank(STEPS[0])
            ways[name].data.cache = cache
        jpegs(photos, 512)
        for _ in packing.pack(packing.Settings(f"folder:{photos}", ("train",), 256, 90, False), packed):
            pass
        ops = f"decode_crop({_SIDE.value})|flip_lr|value_range(-1, 1)"
        for name, source in (("JPEGs of 500 x 375, packed", f"tfds:{packed}"), ("in files", f"folder:{photos}")):
            ways[name] = _config(STEPS[0], source, ops)
        for number, (name, config) in enumerate(ways.items()):
            if time.monotonic() > ends - 30:
                left.append(name)
                continue
            config.steps, config.log_every = 60, 20
            config.data.train = "train"
            config.eval_every = config.checkpoint.every = 1000
            config.optim.warmup_steps = 10
            workdir = Path(folder) / str(number)
            train_and_evaluate(config, workdir)
            logged = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
            last = [line for line in logged if "perf/images_per_second" in line][-1]
            yield {"source": name, "workers": str(assemble(Config.of(config)).loader.crew())} | {
                key: value for key, value in last.items() if key.startswith("perf/")
            }


def jpegs(folder: Path, count: int) -> None:
    """Write smooth pictures with some noise, which compress as photos do."""
    rng = np.random.default_rng(0)
    for i in range(count):
        part = folder / "train" / str(i % 8)
        part.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        noisy = np.asarray(coarse, np.int16) + rng.integers(-12, 13, (375, 500, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(part / f"{i}.jpg", quality=90)


def determinism(ends: float, left: list[str]) -> Iterator[dict[str, Any]]:
    """Train on the digits twice, and compare the logged values and the parameters of the last checkpoint."""
    del ends, left
    logs, seconds = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        for i in range(2):
            config = digits.get_config()
            config.steps = config.eval_every = config.checkpoint.every = 200
            workdir = Path(folder) / str(i)
            begun = time.perf_counter()
            train_and_evaluate(config, workdir)
            seconds = time.perf_counter() - begun
            logged = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
            logs.append([{k: v for k, v in line.items() if not k.startswith("perf/")} for line in logged])
    yield {"config": "digits, 200 steps", "logged values equal to the bit": logs[0] == logs[1], "second run s": seconds}


if __name__ == "__main__":
    cli.run(main)
