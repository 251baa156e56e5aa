"""Images that live on the devices: the same run as with images in memory, for four bytes an example."""

import jax
import numpy as np
import pytest

from configs import digits
from tests.helpers import assert_same
from tests.processes import in_this_process, up_to
from vit_jax_mixer.config import Config
from vit_jax_mixer.data.pipeline import POSITION
from vit_jax_mixer.plan import targets
from vit_jax_mixer.plan.compiled import Planned
from vit_jax_mixer.run import parallel, resident
from vit_jax_mixer.run.assemble import assemble

IMAGES, TRAINING, EVALUATION = 64 + 4, 1437, 360  # bytes of an image and its label, and how many there are


@pytest.fixture(scope="module")
def in_memory(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("host")
    return workdir, in_this_process(workdir, **{"data.cache": "host"})


def parts(**fields):
    config = digits.get_config()
    config.update_from_flattened_dict({"data.cache": "device", "model.num_blocks": 1, **fields})
    return assemble(Config.of(config))


def test_a_run_ends_to_the_same_bits_and_shows_the_same_pictures(in_memory, tmp_path):
    workdir, expected = in_memory
    found = in_this_process(tmp_path / "device", **{"data.cache": "device"})
    assert_same(found[0], expected[0])
    assert found[1] == expected[1]
    for picture in (workdir / "pictures").iterdir():
        assert (tmp_path / "device/pictures" / picture.name).read_bytes() == picture.read_bytes()
    again = up_to(3, tmp_path / "device", tmp_path / "again")
    assert_same(in_this_process(again, **{"data.cache": "device"})[0], expected[0])


@pytest.mark.parametrize("layout", ["jit(fsdp=2)", "pmap"])
def test_batches_are_those_of_memory(layout):
    """Repeated augmentation among them, whose second views are drawn in the step too."""
    assert jax.device_count() == 2
    made = parts(parallel=layout, **{"data.views": 2})
    data, put, whole = resident.placing(made.task.train_data, made.devices)
    read = lambda of: next(made.loader.train_batches(of, seed=1, batch_size=8, start=5))
    batch, expected = read(data), read(made.task.train_data)
    assert {name: value.nbytes for name, value in batch.items()} == {resident.INDEX: 4 * 8, POSITION: 8 * 8}
    assert_same(whole(batch), expected)
    placed = put(batch)
    assert {len(value.sharding.device_set) for name, value in placed.items() if name != POSITION} == {2}
    assert_same({n: np.asarray(v).reshape(expected[n].shape) for n, v in placed.items()}, expected)


def test_what_lies_on_each_device_is_planned():
    made = parts()
    assert resident.size(made.task) == IMAGES * (TRAINING + EVALUATION)
    assert resident.size(parts(**{"data.cache": "host"}).task) == 0
    target = targets.parse("h100:1", lambda: None)
    here, there = (Planned(parts(**{"data.cache": cache}).run, target).compile(64) for cache in ("host", "device"))
    assert there.memory.step - here.memory.step == there.memory.start - here.memory.start == resident.size(made.task)


def test_a_batch_read_otherwise_holds_images():
    """As another command reads it, which knows nothing of the devices."""
    made = parts()
    batch = next(made.loader.train_batches(made.task.train_data, seed=0, batch_size=4, start=0))
    assert batch["image"].shape == (4, 8, 8, 1)
    assert isinstance(made.devices, parallel.Jit)
