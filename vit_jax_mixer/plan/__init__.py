"""Whether a run fits on accelerators that are not there, and what it will cost: `python -m vit_jax_mixer.plan`."""
