"""A folded ResMLP against the same model as it is trained: time of a forward pass, and operations in it.

python -m benchmarks.folding [--model=ResMLP-S12 --batch_size=8 --runs=10]

Both are float32 and take turns, on one device. FLOP are XLA's count for the compiled program, operations the
instructions of its entry and of what that calls. Token mixing keeps a scale and a bias, so do not expect much.
"""

import re
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from vit_jax_mixer import cli, models
from vit_jax_mixer.models import resmlp

_MODEL = flags.DEFINE_string("model", "ResMLP-S12", "Model, a ResMLP.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Images.")
_RUNS = flags.DEFINE_integer("runs", 10, "Forward passes of each that are timed.", lower_bound=1)


def main(argv: list[str]) -> None:
    """Measure and print the table."""
    del argv
    shape = models.MODELS[_MODEL.value].image_shape or (224, 224, 3)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(_BATCH_SIZE.value, *shape)), jnp.float32)
    model = models.create(_MODEL.value, num_classes=1000)
    # Random throughout, as after training: at the start every Aff is 1 and 0.
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: leaf + jnp.asarray(rng.normal(0, 0.02, leaf.shape), leaf.dtype),
        jax.jit(model.init)(jax.random.key(0), images)["params"],
    )
    both = {
        "as trained": (model, params),
        "folded": (models.create(_MODEL.value, num_classes=1000, folded=True), resmlp.fold(params)),
    }
    calls, counts = {}, {}
    for name, (one, variables) in both.items():
        variables = jax.device_put({"params": variables})
        compiled = jax.jit(one.apply).lower(variables, images).compile()
        counts[name] = operations(compiled)
        calls[name] = lambda compiled=compiled, variables=variables: np.asarray(compiled(variables, images))
    results = [call() for call in calls.values()]
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(_RUNS.value):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - begun)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"{_MODEL.value}, {_BATCH_SIZE.value} images, {_RUNS.value} runs, {jax.devices()[0].device_kind}")
    print(f"{'':<12}{'ms (median)':>12}{'ms (least)':>12}{'GFLOP':>10}{'operations':>12}")
    for name, times in seconds.items():
        flop, number = counts[name]
        print(f"{name:<12}{1e3 * medians[name]:>12.1f}{1e3 * min(times):>12.1f}{flop / 1e9:>10.3f}{number:>12,}")
    print(f"time folded / as trained: {medians['folded'] / medians['as trained']:.3f} of the medians, ", end="")
    print(f"{min(seconds['folded']) / min(seconds['as trained']):.3f} of the least")
    print(
        f"largest difference of logits: {np.abs(results[0] - results[1]).max():.2e} of {np.abs(results[0]).max():.2e}"
    )


def operations(compiled: jax.stages.Compiled) -> tuple[float, int]:
    """Return the FLOP and the instructions of a compiled program, without its parameters and constants."""
    analysis = compiled.cost_analysis()
    assert analysis is not None  # every backend of ours has one
    found = re.findall(r"^\s+(?:ROOT )?%?[\w.-]+ = \S.*? ([a-z][\w-]*)\(", compiled.as_text() or "", re.MULTILINE)
    return float(analysis["flops"]), sum(name not in ("parameter", "constant", "get-tuple-element") for name in found)


if __name__ == "__main__":
    cli.run(main)
