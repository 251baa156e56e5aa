"""The original's model and update, from a clone of google-research/vision_transformer, in this environment's JAX.

Its train.py imports TensorFlow and what else its loop needs; of that file only `make_update_fn` is run, as it
stands, and of utils.py `accumulate_gradient`. Its model wants einops.
"""

import ast
import importlib
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flax
import flax.jax_utils
import jax
import jax.numpy as jnp
import optax

from benchmarks.peers import timing


def model(clone: str) -> Any:
    """Return the Mixer-S/16 of the clone."""
    sys.path.insert(0, os.path.join(clone, "vit_jax"))
    models_mixer = importlib.import_module("models_mixer")
    sizes = dict(num_blocks=8, hidden_dim=512, tokens_mlp_dim=256, channels_mlp_dim=2048)
    return models_mixer.MlpMixer(patches=SimpleNamespace(size=(16, 16)), num_classes=1000, **sizes)


def function(clone: str, file: str, name: str, **known: Any) -> Any:
    """Return a function of one of the clone's files without running the rest of it."""
    path = Path(clone) / "vit_jax" / file
    (found,) = (n for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef) and n.name == name)
    names = {"jax": jax, "jnp": jnp, "optax": optax, **known}
    exec(compile(ast.Module([found], []), str(path), "exec"), names)
    return names[name]


def forward(settings: dict[str, Any]) -> timing.Measured:
    """The model alone."""
    mixer = model(settings["original"])
    images = jax.random.normal(jax.random.key(0), (settings["batch"], 224, 224, 3))
    variables = jax.jit(lambda key: mixer.init(key, images, train=False))(jax.random.key(1))
    run = jax.jit(lambda variables, images: mixer.apply(variables, images, train=False))
    return {"rate": timing.rate(lambda: run(variables, images).block_until_ready(), len(images), settings["seconds"])}


def train(settings: dict[str, Any]) -> timing.Measured:
    """Its update by `pmap` on one batch of float32."""
    if not hasattr(jax, "tree_map"):
        jax.tree_map = jax.tree.map  # pyright: ignore[reportAttributeAccessIssue]  # its name when that was written
    clone, size = settings["original"], settings["batch"]
    mixer = model(clone)
    utils = SimpleNamespace(accumulate_gradient=function(clone, "utils.py", "accumulate_gradient"))
    sgd = optax.sgd(optax.cosine_decay_schedule(0.03, 10_000), momentum=0.9, accumulator_dtype="bfloat16")
    tx = optax.chain(optax.clip_by_global_norm(1.0), sgd)
    update = function(clone, "train.py", "make_update_fn", utils=utils)(apply_fn=mixer.apply, accum_steps=1, tx=tx)
    images = jax.random.normal(jax.random.key(0), (size, 224, 224, 3))
    labels = jax.nn.one_hot(jax.random.randint(jax.random.key(1), (size,), 0, 1000), 1000)
    params = jax.jit(lambda key: mixer.init(key, images, train=False))(jax.random.key(2))["params"]
    state = flax.jax_utils.replicate((params, tx.init(params)))
    key = flax.jax_utils.replicate(jax.random.PRNGKey(0))
    batch = {"image": images[None], "label": labels[None]}
    begun = time.perf_counter()
    compiled = update.lower(*state, batch, key).compile()
    seconds = time.perf_counter() - begun

    def step() -> None:
        nonlocal state, key
        *state, loss, key = compiled(*state, batch, key)
        jax.block_until_ready(loss)

    rate = timing.rate(step, size, settings["seconds"])
    return {"rate": rate, "compile": seconds, "memory": timing.peak_mib()}


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)
    timing.main({"forward": forward, "train": train}, {"JAX": jax.__version__})
