"""vit_jax_mixer: train, fine-tune and study all-MLP vision models in JAX and Flax."""

__version__ = "0.1.0"
