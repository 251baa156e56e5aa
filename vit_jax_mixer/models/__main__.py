"""List the models, with parameters and forward cost.

  python -m vit_jax_mixer.models

Their names are what config.model.name takes.
"""

from absl import flags

from vit_jax_mixer import cli
from vit_jax_mixer.errors import UserError


def main(argv: list[str]) -> None:
    """Print the table."""
    if len(argv) > 1:
        raise UserError(f"{argv[1]!r} is no flag, and all models are listed; leave it out.")
    # Imported here, so that --help need not wait for JAX.
    from vit_jax_mixer import models

    print(f"{'model':<12}{'classes':>9}{'parameters':>14}{'GFLOP/image':>13}  input (H x W x channels)")
    for name, entry in models.MODELS.items():
        if entry.image_shape is None:  # a bare family: its sizes are the caller's
            continue
        parameters, flop = cost(name, entry.image_shape, entry.num_classes)
        shape = " x ".join(map(str, entry.image_shape))
        print(f"{name:<12}{entry.num_classes:>9}{parameters:>14,}{flop / 1e9:>13.2f}  {shape}")


def cost(name: str, image_shape: tuple[int, int, int], num_classes: int) -> tuple[int, float]:
    """Return the number of parameters and the forward FLOP of one image."""
    import jax
    import jax.numpy as jnp

    from vit_jax_mixer import models

    model = models.create(name, num_classes)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    parameters = sum(p.size for p in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0), images)))
    return parameters, models.forward_flop(model, image_shape)


if __name__ == "__main__":
    cli.run(main, flags.FlagValues())
