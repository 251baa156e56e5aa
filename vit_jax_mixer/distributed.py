"""The former place of `run.processes`, for scripts that import it from here."""

from vit_jax_mixer.run.processes import arguments, processes

__all__ = ["arguments", "processes"]
