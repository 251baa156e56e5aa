"""Ways to run the step: what each device holds, and that the numbers are the same in all."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

from tests.eight_devices import CASES
from tests.helpers import ROOT, assert_close, assert_same, environment, nested
from vit_jax_mixer import config as config_lib
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.run import parallel, step
from vit_jax_mixer.run.checkpoint import Checkpoints

LAYOUTS = ("pmap", "jit", "jit(fsdp=2)")


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """What the script leaves that trains on eight devices."""
    folder = tmp_path_factory.mktemp("eight")
    # What LLVM would make faster takes longer to compile than to run.
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    env = {**environment(), "XLA_FLAGS": flags}
    subprocess.run([sys.executable, "-m", "tests.eight_devices", folder], cwd=ROOT, env=env, check=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "accum_steps"), CASES[1:])
def test_on_eight_devices_ten_updates_are_the_same(eight, layout, accum_steps):
    first, found = (nested(np.load(eight / f"{name}_{parts}.npz")) for name, parts in (CASES[0], (layout, accum_steps)))
    assert_close(found, first)


@pytest.mark.slow
def test_on_eight_devices_a_state_is_spread_evenly(eight):
    taken = json.loads((eight / "bytes.json").read_text())
    for model in ("Mixer-S/16", "Mixer-B/16"):
        part, whole = taken[model]
        assert whole / 8 <= part <= 1.1 * whole / 8
    # So says the compiled step, too, of a model whose small arrays count for more.
    assert taken["pmap"] == taken["jit"]
    assert taken["jit(fsdp=4)"] < 0.4 * taken["jit"]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((196, 512), (None, "fsdp")),
        ((1024, 512), ("fsdp",)),
        ((256, 256), ("fsdp",)),  # of equals the first
        ((301, 200), (None, "fsdp")),  # the longest cannot be divided
        ((301, 201), ()),
        ((4, 8), ()),  # small
        ((), ()),
    ],
)
def test_the_longest_axis_that_can_be_divided_is_split(shape, expected):
    found = parallel.create("jit(fsdp=2)").saved_sharding(jax.ShapeDtypeStruct(shape, jnp.float32))
    assert found.spec == PartitionSpec(*expected)
    assert parallel.create("jit").saved_sharding(jax.ShapeDtypeStruct(shape, jnp.float32)).is_fully_replicated


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("jit(fsdp=3)", "fsdp is 3, but there are 2 devices; choose from 1, 2"),
        ("jit(fsdp=0)", "fsdp is 0, but there are 2 devices"),
        ("jit(fdsp=2)", "config.parallel: jit has no field 'fdsp'; did you mean 'fsdp'"),
        ("jit(fsdp=0.5)", "fsdp is 0.5; it must be of type int"),
        ("jot", "config.parallel: 'jot' is not known; did you mean 'jit'"),
        ("pmap(fsdp=2)", "config.parallel: pmap has no field 'fsdp'"),
    ],
)
def test_what_cannot_be_run_is_one_sentence(spec, message):
    with pytest.raises(UserError) as error:
        parallel.create(spec)
    assert message in str(error.value)


def state(seed=0):
    """Return a fresh state with arrays of all kinds: split, small, odd, whole numbers."""
    key = jax.random.key(seed)
    params = {"kernel": jax.random.normal(key, (256, 130)), "bias": jnp.arange(130.0), "odd": jnp.ones((301, 99))}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, 0.9, accumulator_dtype=jnp.bfloat16))
    new = step.new_state(optimizer, params, {"centre": jnp.full((200, 100), 2.0)})
    return dataclasses.replace(new, step=jnp.int32(seed + 3))


def test_a_state_is_the_same_whoever_makes_it():
    expected = jax.device_get(state())
    for layout in LAYOUTS:
        devices = parallel.create(layout)
        made = devices.put_state(devices.make(state))
        assert_same(jax.device_get(devices.saved_form(made)), expected)
        if layout == "jit(fsdp=2)":
            assert made.params["kernel"].addressable_shards[0].data.shape == (128, 130)
            assert made.opt_state[1][0].trace["kernel"].addressable_shards[0].data.shape == (128, 130)
            assert made.params["odd"].is_fully_replicated


@pytest.mark.parametrize("saved_by", LAYOUTS)
def test_what_one_has_saved_the_others_go_on_from(tmp_path, saved_by):
    devices = parallel.create(saved_by)
    checkpoints = Checkpoints(tmp_path, every=1, keep=1, best="")
    checkpoints.save(3, devices.saved_form(devices.put_state(state())), {})
    checkpoints.close()
    expected = jax.device_get(state())
    for layout in LAYOUTS:
        devices = parallel.create(layout)
        checkpoints = Checkpoints(tmp_path, every=1, keep=1, best="")
        restored = devices.put_state(checkpoints.restore(3, jax.eval_shape(state), devices.saved_sharding))
        checkpoints.close()
        assert_same(jax.device_get(devices.saved_form(restored)), expected)


def test_a_spread_state_moves_the_rows_of_a_batch_and_nothing_else():
    class Same(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x

    def kept(rows, shape, how="jit(fsdp=2)"):
        def apply(x):
            with parallel.create(how)._of_rows(rows):
                return Same().apply({}, x)

        return str(jax.make_jaxpr(apply)(jnp.zeros(shape))).count("sharding_constraint[")

    assert kept(6, (6, 3)) == 2  # what goes in, and what comes out
    assert kept(6, (12, 3)) == 2  # two crops of each
    assert kept(6, (4, 3)) == kept(6, (8, 6)) == kept(6, (0, 3)) == kept(6, (6,)) == 0  # a table, not of the batch
    assert kept(6, (6, 3), "jit") == 0


def test_host_arrays_are_placed_as_well():
    devices = parallel.create("jit(fsdp=2)")
    placed = devices.put_state({"weights": np.arange(2.0**15).reshape(128, 256), "row": np.float32([1, 2])})
    assert placed["weights"].addressable_shards[1].data.shape == (128, 128)
    np.testing.assert_array_equal(placed["weights"], np.arange(2.0**15).reshape(128, 256))
    assert placed["weights"].dtype == jnp.float32
    assert placed["row"].is_fully_replicated


def test_another_layout_is_no_other_config():
    from configs import digits

    config = digits.get_config()
    begun = config.to_dict()
    config.parallel = "jit(fsdp=2)"
    config.loader.threads = 3
    assert not config_lib.changes(begun, config.to_dict())
    config.seed = 1
    assert config_lib.changes(begun, config.to_dict()) == ["seed was 0 and is 1"]
