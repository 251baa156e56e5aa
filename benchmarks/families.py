"""Mixer, ResMLP and gMLP of about equal parameters and the same budget, side by side on small images.

    python -m benchmarks.families --data=idx:data/fashion --workdir=runs/families

The same augmentation, optimizer and number of updates for all three. Prints parameters and the test accuracy of the
last evaluation, a line a run, then means and deviations over seeds.
"""

import time

from absl import app, flags

from benchmarks import small_images

_DATA = flags.DEFINE_string("data", "idx:data/fashion", "Images of 28 x 28 pixels, as config.data.source.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/families", "Takes the workdirs of the runs.")
_SIZE = flags.DEFINE_enum("size", "small", [*small_images.SIZES], "Of the models: for CPU cores, or for a GPU.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "How many.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 2_820, "Updates, of 256 images.", lower_bound=2)


def main(argv: list[str]) -> None:
    """Make the runs, and print what came out."""
    del argv
    models = small_images.SIZES[_SIZE.value]
    found: dict[str, list[float]] = {family: [] for family in models}
    for seed in range(_SEEDS.value):
        for family, values in found.items():
            begun = time.perf_counter()
            config = small_images.config(_DATA.value, models[family], seed, _STEPS.value, batch_size=256, rate=3e-3)
            values.append(small_images.trained(config, f"{_WORKDIR.value}/{family}_{seed}"))
            seconds = time.perf_counter() - begun
            print(f"{family} seed {seed}: {values[-1]:.4f}, {seconds:.0f} s", flush=True)
    for family in found:
        print(f"{family}: {small_images.parameters(models[family]):,} parameters")
    small_images.summary(found)


if __name__ == "__main__":
    app.run(main)
