"""Tests run on two simulated CPU devices, with data and caches in a folder of their own."""

import os
import tempfile

# Before JAX and TFDS are loaded; commands that tests start inherit all three.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_tfds = tempfile.TemporaryDirectory(prefix="tensorflow_datasets")
os.environ["TFDS_DATA_DIR"] = _tfds.name

import jax  # noqa: E402 # after the environment is set

jax.config.update("jax_numpy_rank_promotion", "raise")
