"""Tests run on two simulated CPU devices, with data and caches in a folder of their own."""

import os
import sys
import tempfile

# Before JAX and TFDS are loaded; commands that tests start inherit them, and so do pytest's own workers.
if "PYTEST_XDIST_WORKER" not in os.environ:
    # What LLVM would make faster takes longer to compile than to run.
    flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    _folder = tempfile.TemporaryDirectory(prefix="vit_jax_mixer_tests_")
    os.environ["TFDS_DATA_DIR"] = f"{_folder.name}/tensorflow_datasets"
    # Many tests run the same program; compile it once.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{_folder.name}/compiled")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax  # after the environment is set
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def write_modules(tmp_path, monkeypatch):
    """Write modules of a user's own, as name=text, to a folder in which a fresh process finds them."""
    from vit_jax_mixer import plugins

    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(plugins, "_allowed", set())
    monkeypatch.setattr(plugins, "_folders", [])
    plugins.look_in(tmp_path)

    def write(**modules):
        for name, text in modules.items():
            (tmp_path / f"{name}.py").write_text(text)
        return tmp_path

    yield write
    for name, module in list(sys.modules.items()):
        if str(tmp_path) in (getattr(module, "__file__", None) or ""):
            del sys.modules[name]


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """The workdir of a short run on the digits, which learns some of them."""
    from configs import digits
    from vit_jax_mixer.train import train_and_evaluate

    config = digits.get_config()
    config.steps = config.eval_every = config.checkpoint.every = 60
    config.model.num_blocks = 2
    config.optim.warmup_steps = 10
    workdir = tmp_path_factory.mktemp("digits_run")
    train_and_evaluate(config, workdir)
    return workdir
