"""Whether masked pretraining helps with few labels: fine-tuned on 1 % of them, against training on these alone.

    python -m benchmarks.masked --data=idx:data/fashion --workdir=runs/masked

For each seed, a small Mixer (or ResMLP) is pretrained on all training images without labels, then trained on
`train[:1%]` from there, and from random weights with the same settings. Prints the test accuracy of the last
evaluation, a line a seed, then means and deviations. Runs that are complete in the workdir are not made again.
"""

from absl import app, flags

from benchmarks import small_images

_DATA = flags.DEFINE_string("data", "idx:data/fashion", "Images of 28 x 28 pixels, as config.data.source.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/masked", "Takes the workdirs of the runs.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "How many.", lower_bound=1)
_SIZE = flags.DEFINE_enum("size", "small", [*small_images.SIZES], "Of the model: for CPU cores, or for a GPU.")
_FAMILY = flags.DEFINE_enum("family", "MlpMixer", [*small_images.SIZES["small"]], "The model.")
_STEPS = flags.DEFINE_integer("steps", 2_400, "Updates of the pretraining, of 512 images.", lower_bound=2)
_TUNED = flags.DEFINE_integer("tuned_steps", 2_000, "Updates of the training on 1 %, of 64 images.", lower_bound=2)
_RATE = flags.DEFINE_float("rate", 1e-3, "Highest learning rate of the training on 1 %, either way.")


def main(argv: list[str]) -> None:
    """Make the runs, and print what came out."""
    del argv
    model = small_images.SIZES[_SIZE.value][_FAMILY.value]
    found: dict[str, list[float]] = {"from_masked": [], "from_random": []}
    for seed in range(_SEEDS.value):
        place = f"{_WORKDIR.value}/seed_{seed}"
        config = small_images.config(_DATA.value, model, seed, _STEPS.value, batch_size=512, rate=1.5e-3)
        small_images.trained(small_images.masked(config), f"{place}/masked")
        for name, start in (("from_masked", f"{place}/masked"), ("from_random", "")):
            config = small_images.config(_DATA.value, model, seed, _TUNED.value, batch_size=64, rate=_RATE.value)
            config.data.train, config.init_from = "train[:1%]", start
            found[name].append(small_images.trained(config, f"{place}/{name}"))
        print(f"seed {seed}: " + ", ".join(f"{name} {values[-1]:.4f}" for name, values in found.items()), flush=True)
    small_images.summary(found)


if __name__ == "__main__":
    app.run(main)
