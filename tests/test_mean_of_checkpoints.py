import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.helpers import DATA, assert_same
from vit_jax_mixer import pretrained
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.run.checkpoint import Checkpoints
from vit_jax_mixer.tasks.base import TrainState

PATH = DATA / "mixer_tiny_params.npz"


def test_the_mean_of_the_last_checkpoints_is_loaded(tmp_path):
    loaded = pretrained.load(PATH)
    checkpoints = Checkpoints(tmp_path, every=1, keep=3, best="")
    for step in range(1, 5):
        params, ema = (jax.tree.map(lambda x, n=n: jnp.asarray(x + n), loaded) for n in (step**2, 100))
        checkpoints.save(step, TrainState(jnp.int32(step), params, optax.sgd(1e-3).init(params), (), (), ema), {})
    checkpoints.close()
    (tmp_path / "config.json").write_text('{"checkpoint": {"best": ""}}')
    mean = lambda *steps: jax.tree.map(
        lambda x: np.mean([np.float64(x + np.float32(n**2)) for n in steps], 0).astype(x.dtype), loaded
    )
    weights = pretrained.read(f"{tmp_path}#last3/raw")
    assert_same(weights.tree, mean(2, 3, 4))
    assert weights.origin.startswith("the mean of the checkpoints of steps 2, 3, 4; taken is 'params'")
    assert weights.step is None
    assert_same(pretrained.load(f"{tmp_path}/checkpoints#last2.params"), mean(3, 4))
    assert_same(pretrained.load(f"{tmp_path}#last2"), jax.tree.map(lambda x: x + np.float32(100), loaded))
    for asked, message in (("#last4", "last 4 checkpoints .* it holds 3"), ("/checkpoints/3#last2", "it holds 1")):
        with pytest.raises(UserError, match=message):
            pretrained.load(f"{tmp_path}{asked}")
    with pytest.raises(UserError, match="is no workdir"):
        pretrained.load(f"{PATH}#last2")
    array = next((tmp_path / "checkpoints/3/default/d").iterdir())
    array.write_bytes(array.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="checkpoints/3 is damaged"):
        pretrained.load(f"{tmp_path}#last2")
