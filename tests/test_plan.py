"""Plans: roofline, targets, memory; end to end for GPUs and for this machine's CPU."""

import dataclasses
import gc
import importlib
import importlib.util
import json
import math
from functools import partial

import jax
import jax.numpy as jnp
import jaxlib
import pytest

from configs import common, digits, mixer_b16, mnist, translate, translate_wmt
from tests.helpers import ROOT, command
from vit_jax_mixer import models, tasks
from vit_jax_mixer.config import Config
from vit_jax_mixer.data.sources import open_source
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models import stacked
from vit_jax_mixer.plan import estimate, report, targets
from vit_jax_mixer.plan.compiled import Planned, _asked, compiler_of, devices_of
from vit_jax_mixer.plan.data_shape import without_data
from vit_jax_mixer.run import hardware
from vit_jax_mixer.run.assemble import assemble
from vit_jax_mixer.run.parallel import SMALLEST_SHARDED


def run_of(config, **fields):
    return dataclasses.replace(Config.of(config), **fields)


def small(**fields):
    """Return the run on the digits with two blocks and some changed fields of the model."""
    run = without_data(Config.of(digits.get_config()), None, "")
    return dataclasses.replace(
        run, model={**run.model, "num_blocks": 2, **fields}
    )  # each more takes a second to compile


def held_at_start_and_save(run):
    """Return the bytes that the first device holds when a run's state has been placed, and when it is being saved."""
    moments = []

    def held():
        arrays = [a for a in jax.live_arrays() if jax.devices()[0] in a.sharding.device_set]
        moments.append(sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in arrays))

    def put_state(state):
        copied = place(state)
        held()
        return copied

    gc.collect()
    held()
    parts = assemble(run)
    devices = parts.devices
    place, devices.put_state = devices.put_state, put_state
    state = parts.fresh_state()
    unstacked = stacked.unstack(devices.saved_form(state))
    held()
    del unstacked
    before, fresh, saved = moments
    return fresh - before, saved - before


def target(name):
    return targets.parse(name, lambda: hardware.Chip("cpu", "", 1e9, {"bfloat16": 1e9, "float32": 1e9}, 1e9, 1e9))


@pytest.mark.parametrize("capacity", [1000, 5000, 129, 104])
def test_the_search_finds_the_largest_batch_that_fits(capacity):
    calls = []

    def peak(n):
        calls.append(n)
        return 100 + 3.7 * n + (n % 5)

    found = estimate.largest_that_fits(peak, {8: peak(8)}, capacity)
    exact = max((n for n in range(2000) if 100 + 3.7 * n + (n % 5) <= capacity and n), default=0)
    assert exact * 15 / 16 - 1 <= found <= exact
    assert len(calls) <= 1 + estimate.ATTEMPTS


def test_the_search_goes_on_where_the_compiler_does_not_say_how_much_is_too_much():
    peak = lambda n: 100 + n if n <= 60 else math.inf
    assert 56 <= estimate.largest_that_fits(peak, {64: math.inf}, 1000) <= 60
    assert estimate.largest_that_fits(lambda n: math.inf, {4: math.inf}, 1000) == 0


def test_what_the_compiler_asked_for_is_read_from_its_message():
    asks = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.25G of 15.75G hbm. Exceeded by 1.5G."
    assert _asked(asks) == 17.25 * 2**30
    asks = "RESOURCE_EXHAUSTED: the total memory required for HLO temporaries (4.11T) exceeds available HBM (15.75G)."
    assert _asked(asks) == 4.11 * 2**40
    assert _asked("INTERNAL: a defect") is None


def test_a_missing_compiler_for_tpus_is_told():
    if importlib.util.find_spec("libtpu"):
        pytest.skip("the compiler for TPUs is installed, so it cannot be missed")
    with pytest.raises(UserError, match=r"pip install -e '\.\[plan\]'"):
        devices_of(target("v5e:2x2"))


# --- Runs ---


def test_blank_images_stand_in_for_data_that_are_not_here():
    run = without_data(Config.of(mixer_b16.get_config("cifar100")), None, "")
    assert run.data["source"] == "blank:100,32x32x3"
    run = without_data(Config.of(mnist.get_config()), None, "")
    source = open_source(run.data["source"], run.data["train"])
    assert source.examples[3]["image"].shape == (28, 28, 1)
    assert len(source.class_names) == 10
    run = run_of(common.get_config())
    folder = dataclasses.replace(run, data={**run.data, "source": "folder:photos"})
    assert without_data(folder, None, "") == folder
    assert without_data(folder, 7, "64x64x3").data["source"] == "blank:7,64x64x3"
    for bad in ("blank:-1", "blank:10,8x8", "blank:x", "blank:3,0x8x1"):
        with pytest.raises(UserError, match="blank:CLASSES"):
            open_source(bad, "train")


def test_blank_sentences_stand_in_for_pairs_that_are_not_here(tmp_path):
    pytest.importorskip("sentencepiece")
    run = without_data(Config.of(translate_wmt.get_config()), None, "")
    assert run.data["source"] == "blank_pairs:32000,256"
    run = Config.of(translate.get_config())
    assert without_data(run, None, "") == run  # numbers need no data
    run = dataclasses.replace(run, data={**run.data, "source": "text:not_here.tsv", "vocabulary": "bpe(500)"})
    run = without_data(dataclasses.replace(run, batch_size=256), None, "")
    found = estimate.estimate(run, target("cpu"), utilisation=0.5, search=False)
    assert found.memory.parameters == 4 * (500 * 64 + parameters_but_the_embedding(run))
    assert found.cost.flop
    assert "tokens a second" in report.text(found, run, 0.5)
    with pytest.raises(UserError, match="blank_pairs:PIECES,LENGTH"):
        open_source("blank_pairs:8", "train")


def parameters_but_the_embedding(run):
    model = models.create(**run.model, vocab_size=4)
    tokens = jnp.zeros((1, run.model["max_length"]), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(params)) - params["embedding"].size


@pytest.mark.parametrize("parallel", ["jit(fsdp=2)", pytest.param("pmap", marks=pytest.mark.slow)])
def test_the_plan_is_that_of_the_step_that_trains(parallel, tmp_path):
    run = dataclasses.replace(small(scan=True, hidden_dim=256), parallel=parallel, batch_size=512)
    there = dataclasses.replace(target("cpu"), shape=(2,))
    found = Planned(run, there).compile(512)
    model = models.create(run.model["name"], 10, **{k: v for k, v in run.model.items() if k != "name"})
    shapes = jax.eval_shape(partial(model.init, jax.random.key(0)), jnp.zeros((1, 8, 8, 1)))
    sizes = [4 * leaf.size for leaf in jax.tree.leaves(shapes)]
    held = sum(size / 2 if "fsdp" in parallel and size >= 4 * SMALLEST_SHARDED else size for size in sizes)
    assert found.memory.parameters == held
    assert 2 * held <= found.memory.optimizer <= 2 * held + 64  # AdamW's two means, and counts
    assert found.memory.batch == 256 * (8 * 8 + 4 + 8)  # image, label, position
    assert found.memory.peak > sum((found.memory.parameters, found.memory.optimizer, found.memory.batch))
    # 16 tokens of 256 channels in 2 blocks; backward costs twice forward, but images need no gradient.
    stem, block, head = 16 * 4 * 256, 16 * 256 * 32 * 2 + 16 * 256 * 128 * 2, 256 * 10
    assert sum(found.cost.flop.values()) == 2 * 256 * (2 * stem + 3 * 2 * block + 3 * head)
    # The gradients and, with fsdp, parameters are sent; activations, many times as large, never.
    assert 0.9 * sum(sizes) <= sum(message.sent for message in found.cost.collectives) <= 2.5 * sum(sizes)
    fresh, saved = held_at_start_and_save(run)
    assert fresh == pytest.approx(found.memory.start, rel=1e-3)
    assert saved <= fresh
    with pytest.raises(UserError, match="nearest that is: 64"):
        Planned(dataclasses.replace(run, batch_size=65), there)


def test_a_run_fits_if_its_start_does():
    run = dataclasses.replace(small(hidden_dim=512, num_blocks=1), batch_size=1)
    tight = dataclasses.replace(target("cpu").chip, memory=3.2e6)
    plan = estimate.estimate(run, dataclasses.replace(target("cpu"), chip=tight), utilisation=0.5, search=True)
    assert plan.memory.step < plan.capacity < plan.memory.start == plan.memory.peak
    assert (plan.fits, plan.largest_batch) == (False, 0)
    assert json.loads(report.as_json(plan))["memory"]["peak"] == plan.memory.start
    told = report.text(
        dataclasses.replace(plan, cost=dataclasses.replace(plan.cost, unknown_loops=("while.7",))), run, 0.5
    )
    for part in (
        "start, save: state twice",
        "108% of 3.20 MB: DOES NOT FIT",
        "For a smaller state",
        "once is counted: while.7",
    ):
        assert part in told, told


def test_the_compiler_of_tpus_is_named_though_it_is_not_here():
    assert compiler_of(target("v5e:2x2")).startswith("libtpu")


def test_the_flop_of_scan_accumulation_and_remat_are_counted():
    run = dataclasses.replace(small(scan=True, remat=True), accum_steps=2)
    found = Planned(run, target("cpu")).compile(64)
    stem, block, head = 16 * 4 * 64, 16 * 64 * 32 * 2 + 16 * 64 * 128 * 2, 64 * 10
    # The backward pass computes a block again, but for its last product, which nothing needs.
    again = block - 16 * 64 * 128
    assert sum(found.cost.flop.values()) == 2 * 64 * (2 * stem + 2 * (3 * block + again) + 3 * head)


@pytest.mark.slow
def test_a_plan_for_gpus_is_printed_as_json():
    fields = ["--config.model.dtype=bfloat16", "--config.model.num_blocks=1", "--config.parallel=jit(fsdp=8)"]
    fields.append("--config.model.hidden_dim=256")  # else there is nothing large enough to spread
    result = command("plan", "--config=configs/digits.py", "--target=h100:16", "--nosearch", "--json", *fields)
    assert result.returncode == 0, result.stderr
    plan = json.loads(result.stdout)
    assert (plan["chips"], plan["fits"], plan["estimate"], plan["largest_batch"]) == (16, True, True, None)
    assert plan["cost"]["flop"].keys() == {"bf16"}
    assert plan["roofline"]["seconds"] == max(plan["roofline"][k] for k in ("arithmetic", "memory", "interconnect"))
    assert plan["bill"]["chip_hours"] == pytest.approx(16 * plan["bill"]["hours"])
    assert plan["memory"]["peak"] == max(plan["memory"]["step"], plan["memory"]["start"])
    # The state is spread within each node of 8, and gradients are added up between pairs of the two nodes.
    assert {(message["group"], message["nodes"]) for message in plan["cost"]["collectives"]} >= {(8, 1), (2, 2)}


def test_a_plan_for_this_machine_is_printed_as_a_table():
    small = ["--config.model.num_blocks=1", "--config.batch_size=4096", "--utilisation=0.25"]
    result = command("plan", "--config=configs/digits.py", "--target=cpu", "--nosearch", *small)
    assert result.returncode == 0, result.stderr
    compiler = f"of CPU time by jaxlib {jaxlib.__version__}, jax {jax.__version__}"
    for part in (
        compiler,
        "batch 4,096 (4,096 a chip)",
        "activations, temporaries",
        ": fits",
        "binds",
        "chip-hours",
        "at 25%",
    ):
        assert part in result.stdout, result.stdout
    assert "estimate" not in result.stdout


# --- TPUs: these need the extra `plan`, and minutes ---

CONFIGS = sorted(
    path for path in (ROOT / "configs").glob("*.py") if path.stem not in ("common", "distil")
)  # without a teacher


@pytest.fixture
def _libtpu():
    pytest.importorskip("libtpu", reason="needs pip install -e '.[plan]'")


@pytest.mark.slow
@pytest.mark.usefixtures("_libtpu")
@pytest.mark.parametrize("parallel", ["pmap", "jit", "jit(fsdp=4)"])
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_step_of_every_config_compiles_for_a_tpu(path, parallel):
    config = importlib.import_module(f"configs.{path.stem}").get_config()
    run = without_data(run_of(config, parallel=parallel, batch_size=128), None, "")
    there = target("v5e:2x2")
    found = Planned(run, there).compile(128)
    assert found.memory.peak < there.chip.memory
    # The backward pass has twice the products of the forward, but the first layer needs no gradient for the images;
    # remat adds less than one more. The forward's FLOP have work in them that is no product: much in a small model.
    least = {"digits": 2.7, "mnist": 2.2}.get(path.stem, 2.8)
    assert least < sum(found.cost.flop.values()) / (tasks.create(run).forward_flop() * 128 / 4) < 4
    assert found.cost.unknown_loops == ()
    assert found.cost.collectives
