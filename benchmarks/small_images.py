"""What the benchmarks that learn share: three families of a size on images of 28 x 28 pixels, and their runs."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from configs import common, mae
from vit_jax_mixer import models
from vit_jax_mixer.train import train_and_evaluate

# Of about equal parameters, with patches of 4 pixels, 49 tokens: 30,000 for two CPU cores, 0.8 million for a GPU.
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "small": {
        "MlpMixer": dict(
            name="MlpMixer", num_blocks=4, patch_size=4, hidden_dim=32, tokens_mlp_dim=24, channels_mlp_dim=64
        ),
        "ResMlp": dict(name="ResMlp", num_blocks=4, patch_size=4, hidden_dim=32, mlp_ratio=2, layerscale_init=0.1),
        "GMlp": dict(name="GMlp", num_blocks=4, patch_size=4, hidden_dim=32, mlp_ratio=2.75),
    },
    "large": {
        "MlpMixer": dict(
            name="MlpMixer", num_blocks=6, patch_size=4, hidden_dim=128, tokens_mlp_dim=64, channels_mlp_dim=496
        ),
        "ResMlp": dict(name="ResMlp", num_blocks=6, patch_size=4, hidden_dim=128, layerscale_init=0.1),
        "GMlp": dict(name="GMlp", num_blocks=7, patch_size=4, hidden_dim=128, mlp_ratio=4.5),
    },
}


def config(source: str, model: dict[str, Any], seed: int, steps: int, *, batch_size: int, rate: float) -> Any:
    """Return the config of a supervised run."""
    made = common.get_config()
    made.seed, made.steps, made.batch_size = seed, steps, batch_size
    made.model = {**model, "dtype": "float32"}
    made.data.source, made.data.eval = source, "test"
    made.data.train_ops = "decode(1)|random_shift(1)|flip_lr|value_range(-1, 1)"
    made.data.eval_ops = "decode(1)|value_range(-1, 1)"
    made.optim.optimizer = "adamw(weight_decay=0.05)"
    made.optim.learning_rate, made.optim.warmup_steps = rate, max(min(steps // 10, 500), 1)
    made.log_every = max(steps // 20, 1)
    made.eval_every = made.checkpoint.every = max(steps // 4, 1)
    return made


def masked(made: Any) -> Any:
    """Return it as that of a masked pretraining."""
    made.task = mae.get_config().task
    made.checkpoint.best = "min loss"
    return made


def trained(made: Any, workdir: str) -> float:
    """Make a run, or find it complete; return its last accuracy on the test split, or its loss."""
    logging.set_verbosity(logging.WARNING)  # what Orbax tells of each checkpoint
    train_and_evaluate(made, workdir)
    lines = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    (last,) = [line for line in lines if line["step"] == made.steps and "test/loss" in line]
    return last.get("test/accuracy", last["test/loss"])


def parameters(model: dict[str, Any]) -> int:
    """Return how many a model of ten classes has."""
    fields = dict(model)
    module = models.create(fields.pop("name"), 10, **fields)
    shapes = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 28, 28, 1), np.float32))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def summary(found: dict[str, list[float]]) -> None:
    """Print means over seeds, and deviations (n - 1) where there are several."""
    for name, values in found.items():
        spread = f" +- {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
        print(f"{name}: {np.mean(values):.4f}{spread}, {len(values)} seed(s)")
