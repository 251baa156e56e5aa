"""Ours, as the commands run it: memory kept on CPUs, large pages in training; programs are compiled anew."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from benchmarks import input_pipeline, loop_overhead
from benchmarks.peers import timing
from configs import mixer_b16, mnist
from vit_jax_mixer import models, startup
from vit_jax_mixer.config import Config
from vit_jax_mixer.predictions import predict
from vit_jax_mixer.predictors.images import Images
from vit_jax_mixer.run import parallel
from vit_jax_mixer.run.assemble import assemble
from vit_jax_mixer.trained import Trained

MODEL = "Mixer-S/16"


def forward(settings: dict[str, Any]) -> timing.Measured:
    """The model alone, 224 pixels and 1,000 classes."""
    model = models.create(MODEL, num_classes=1000)
    images = jax.random.normal(jax.random.key(0), (settings["batch"], 224, 224, 3))
    variables = jax.jit(model.init)(jax.random.key(1), images)
    run = jax.jit(model.apply)
    return {"rate": timing.rate(lambda: run(variables, images).block_until_ready(), len(images), settings["seconds"])}


def train(settings: dict[str, Any]) -> timing.Measured:
    """The step of configs/mixer_b16.py on one batch of bytes: SGD with momentum in bfloat16, clipped gradients."""
    config = mixer_b16.get_config()
    config.model.name = MODEL
    config.batch_size = settings["batch"]
    config.data.source = "blank:1000,224x224x3"
    config.data.eval = ""
    config.data.train_ops = config.data.eval_ops = "decode(3)|value_range(-1, 1)"
    config.checkpoint.best = ""
    parts = assemble(Config.of(config))
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (settings["batch"], 224, 224, 3), np.uint8)
    label = rng.integers(0, 1000, settings["batch"], np.int32)
    state, batch = parts.fresh_state(), parts.devices.put_batch({"image": image, "label": label})
    begun = time.perf_counter()
    compiled = parts.devices.lower(parts.train_step, state, batch).compile(parallel.COMPILER_OPTIONS)
    seconds = time.perf_counter() - begun

    def step() -> None:
        nonlocal state
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)

    rate = timing.rate(step, settings["batch"], settings["seconds"])
    return {"rate": rate, "compile": seconds, "memory": timing.peak_mib()}


def loop(settings: dict[str, Any]) -> timing.Measured:
    """The second half of a run of configs/mnist.py, with its shifts."""
    config = mnist.get_config()
    config.data.source = "blank:10,28x28x1"
    config.steps, config.log_every = 2 * settings["steps"], settings["steps"]
    config.eval_every = config.checkpoint.every = config.steps
    return {"rate": loop_overhead.train_loop(config)}


def pipeline(settings: dict[str, Any]) -> timing.Measured:
    """`decode_crop` and a flip, by threads."""
    batches = input_pipeline.ours(input_pipeline.QUICK, workers=0)(Path(settings["photos"]))
    return {"rate": timing.rate_of(batches, settings["seconds"])}


def inference(settings: dict[str, Any]) -> timing.Measured:
    """`predict` on files, from the second batch on."""
    ops = "decode(3)|resize_small(256)|center_crop(224)|value_range(-1, 1)"
    about = Images({"name": MODEL, "num_classes": 1000}, (224, 224, 3), ops, (), "")
    module = about.create("")
    params = jax.jit(module.init)(jax.random.key(0), np.zeros((1, 224, 224, 3), np.float32))["params"]
    size = settings["inference_batch"]

    def batches() -> Iterator[int]:
        source = about.open([settings["photos"]])
        answers = predict(Trained(about, module, params), source, top=5, batch_size=size, on_bad=print)
        for number, _ in enumerate(answers, 1):
            if number % size == 0:
                yield size

    return {"rate": timing.after_the_first(batches())}


if __name__ == "__main__":
    if sys.argv[1] in ("train", "loop"):
        startup.ask_for_large_pages()
    startup.keep_memory()
    flags.FLAGS.mark_as_parsed()
    jax.config.update("jax_enable_compilation_cache", False)
    rows = {"forward": forward, "train": train, "loop": loop, "pipeline": pipeline, "inference": inference}
    timing.main(rows, {"JAX": jax.__version__, "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}"})
