"""`scan` and `remat`: the same numbers, other memory; and published names wherever parameters leave the devices."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import traverse_util

from tests.helpers import assert_close, assert_same
from tests.test_train import small
from vit_jax_mixer import models, pretrained, tasks, trained
from vit_jax_mixer.config import Config
from vit_jax_mixer.models import stacked
from vit_jax_mixer.models.layers import apply_blocks, embed_patches
from vit_jax_mixer.models.mixer import MixerBlock
from vit_jax_mixer.run import optim, parallel, step, weight_decay
from vit_jax_mixer.run.assemble import assemble
from vit_jax_mixer.run.checkpoint import Checkpoints
from vit_jax_mixer.train import train_and_evaluate

TINY = dict(num_blocks=3, patch_size=8, hidden_dim=24)
FAMILIES = {
    "MlpMixer": dict(**TINY, tokens_mlp_dim=10, channels_mlp_dim=36),
    "ResMlp": dict(**TINY, layerscale_init=0.1),
    "GMlp": TINY,
}
IMAGES = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
WAYS = [dict(scan=True), dict(remat=True), dict(scan=True, remat=True)]


def fresh(model):
    params = stacked.init(model, jax.random.key(0), IMAGES)
    head = jax.random.normal(jax.random.key(1), params["head"]["kernel"].shape)
    return {**params, "head": {**params["head"], "kernel": head}}


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_gradients_and_intermediates_are_those_of_the_unrolled_model(family):
    def results(**way):
        model = models.create(family, 5, **FAMILIES[family], **way)

        @partial(jax.value_and_grad, has_aux=True)
        def loss(params):
            logits, state = model.apply({"params": params}, IMAGES, train=True, mutable=["intermediates"])
            return jnp.mean(logits**2), {"logits": logits, **state["intermediates"]}

        (_, found), grads = jax.jit(loss)(fresh(model))
        return found, stacked.unstack(grads)

    expected = results()
    assert set(expected[0]) == {"logits", "block_0", "block_1", "block_2", "tokens", "pre_logits"}
    for way in WAYS if family == "MlpMixer" else WAYS[-1:]:
        found, grads = results(**way)
        assert_close(found, expected[0])
        assert_close(grads, expected[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seed_means_the_same_parameters_in_both_layouts(family):
    unrolled, scanned = (fresh(models.create(family, 5, **FAMILIES[family], scan=scan)) for scan in (False, True))
    block = {"MlpMixer": "MixerBlock", "ResMlp": "ResMlpBlock", "GMlp": "GMlpBlock"}[family]
    assert block in scanned
    assert f"{block}_0" not in scanned
    assert_same(stacked.unstack(scanned), unrolled)
    assert_same(stacked.stack(unrolled, scanned), scanned)


def test_in_a_scan_too_stochastic_depth_grows_linearly_and_keeps_the_mean():
    rates = [0, 0.25, 0.5]
    model = models.create("MlpMixer", 5, **FAMILIES["MlpMixer"], scan=True, remat=True, stochastic_depth_rate=0.5)
    params = fresh(model)
    # Without channel mixing, a block is x + token mixing.
    block = params["MixerBlock"]["*"]
    block = {**block, "channel_mixing": jax.tree.map(jnp.zeros_like, block["channel_mixing"])}
    params = {**params, "MixerBlock": {"*": block}}
    images = np.random.default_rng(0).normal(size=(400, 32, 32, 3)).astype(np.float32)

    @partial(jax.grad, has_aux=True)
    def gradient(params):
        logits, state = model.apply(
            {"params": params}, images, train=True, rngs={"dropout": jax.random.key(2)}, mutable=["intermediates"]
        )
        return jnp.mean(logits**2), state["intermediates"]

    grads, tokens = jax.jit(gradient)(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    skipped = []
    for i in (1, 2):
        before, after = tokens[f"block_{i - 1}"], tokens[f"block_{i}"]
        branch = MixerBlock(10, 36).apply({"params": stacked.unstack(params)[f"MixerBlock_{i}"]}, before) - before
        scale = np.einsum("bnc,bnc->b", after - before, branch) / np.einsum("bnc,bnc->b", branch, branch)
        skipped.append(np.abs(scale) < 1e-3)
        np.testing.assert_allclose(scale[~skipped[-1]], 1 / (1 - rates[i]), rtol=1e-3)
        assert abs(skipped[-1].mean() - rates[i]) < 0.1
    both = np.mean(skipped[0] & skipped[1])
    assert abs(both - 0.125) < 0.08, "blocks draw alike"


def test_dropout_draws_anew_in_each_block_of_a_scan_and_in_training_alone():
    model = models.create("MlpMixer", 5, **FAMILIES["MlpMixer"], scan=True, dropout_rate=0.5)
    params = fresh(model)

    @partial(jax.jit, static_argnames="train")
    def apply(train):
        rngs = {"dropout": jax.random.key(0)}
        return model.apply({"params": params}, IMAGES, train=train, rngs=rngs, mutable=["intermediates"])

    tokens = apply(train=True)[1]["intermediates"]
    # A value that both MLPs drop stays what it was: a quarter of all, in each block others.
    first, second = (tokens[f"block_{i + 1}"] == tokens[f"block_{i}"] for i in (0, 1))
    assert 0.2 < np.mean(first) < 0.3
    assert 0.3 < np.mean(first != second) < 0.45
    without = jax.jit(partial(model.clone(dropout_rate=0.0).apply, train=True))
    assert_close(apply(train=False)[0], without({"params": params}, IMAGES))


def test_any_tree_is_unstacked_and_stacked_again():
    def state(scan):
        model = models.create("MlpMixer", 5, **FAMILIES["MlpMixer"], scan=scan)
        optimizer, _ = optim.create(
            optimizer="adamw(weight_decay=0.1)",
            learning_rate=0.1,
            schedule="constant",
            warmup_steps=0,
            clip_norm=1,
            steps=9,
        )
        return step.new_state(optimizer, fresh(model), {"teacher": fresh(model)}, ema=True)

    unrolled, scanned = state(False), state(True)
    assert len(jax.tree.leaves(scanned)) < len(jax.tree.leaves(unrolled)) / 2
    assert_same(stacked.unstack(scanned), unrolled)
    assert_same(stacked.unstack(jax.device_get(scanned)), unrolled)  # NumPy arrays
    shapes = jax.eval_shape(stacked.unstack, jax.eval_shape(lambda: scanned))
    assert shapes == jax.eval_shape(lambda: unrolled)
    assert_same(stacked.stack(unrolled, jax.eval_shape(lambda: scanned)), scanned)
    of_file = stacked.stack(jax.device_get(unrolled), jax.eval_shape(lambda: scanned))
    assert not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(of_file))  # not whole on one device
    assert_same(of_file, scanned)
    assert_same(stacked.stack(unrolled, unrolled), unrolled)


class HeadBlock(nn.Module):
    """A module that is not scanned, whatever its name; its arrays are as long as the model has blocks."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="InnerBlock")(x)


class Layer(MixerBlock):
    """A block whose name does not say so."""


class WithHeadBlock(nn.Module):
    """A user's own model of our blocks."""

    scan: bool = True
    remat: bool = False

    @nn.compact
    def __call__(self, images):
        x = embed_patches(images, 16, 6, jnp.float32)
        x = apply_blocks(self, partial(Layer, 2, 5), [0.0] * 3, x, train=False)
        return HeadBlock(name="HeadBlock")(x.mean(1))


def test_only_what_was_scanned_is_taken_apart(tmp_path):
    unrolled, scanned = (stacked.init(WithHeadBlock(scan), jax.random.key(0), IMAGES) for scan in (False, True))
    assert scanned["HeadBlock"]["InnerBlock"]["kernel"].shape == (6, 3)
    assert_same(stacked.unstack(scanned), unrolled)
    assert_same(stacked.stack(unrolled, scanned), scanned)
    assert set(stacked.unstack(scanned)) == {"stem", "Layer_0", "Layer_1", "Layer_2", "HeadBlock"}
    assert_close(
        WithHeadBlock().apply({"params": scanned}, IMAGES), WithHeadBlock(False).apply({"params": unrolled}, IMAGES)
    )

    saved, expected = (
        step.new_state(optax.adam(0.1), params, {"QueueBlock": jnp.ones((3, 2))}) for params in (scanned, unrolled)
    )
    checkpoints = Checkpoints(tmp_path, every=1, keep=1, best="")
    checkpoints.save(1, saved, {}, last=True)
    for state in (saved, expected):
        assert_same(checkpoints.restore(1, state, lambda leaf: leaf.sharding), state)
    checkpoints.close()


def test_weight_decay_goes_by_the_published_names_in_both_layouts():
    params = stacked.init(models.create("MlpMixer", 5, **FAMILIES["MlpMixer"], scan=True), jax.random.key(0), IMAGES)
    for no_decay in ("(bias|scale)$", r"^MixerBlock_\d+/token", "", "^MixerBlock_0/"):
        mask = weight_decay.decay_mask(no_decay)
        of_each = stacked.unstack(jax.tree.map(lambda decays, leaf: np.full(leaf.shape, decays), mask(params), params))
        assert jax.tree.map(np.all, of_each) == jax.tree.map(np.any, of_each) == mask(stacked.unstack(params))


OF_OPTIM = dict(learning_rate=0.3, schedule="linear", warmup_steps=0, clip_norm=0.5, steps=9)
OPTIMIZERS = {
    **{
        spec: lambda spec=spec: optim.create(optimizer=spec, **OF_OPTIM)[0]
        for spec in (
            "adamw(weight_decay=0.5, no_decay='Block_1/|bias')",
            "lamb(weight_decay=0.5)",
            "lars(weight_decay=0.5, no_decay='Block_[01]/kernel|bias')",
            "lion(weight_decay=0.5, no_decay='Block_1/|bias')",
            "adan",
            "adafactor(weight_decay=0.5, min_dim_size_to_factor=4, no_decay='Block_1/|bias')",
        )
    },
    "noise": lambda: optim.create(optimizer="sgd", noise="gaussian(eta=0.1)", **OF_OPTIM)[0],
    # As a user may write them: none knows of `stacked`.
    "adafactor": lambda: optax.adafactor(0.3, min_dim_size_to_factor=4),
    "clipped by parameter": lambda: optax.chain(optax.clip_by_block_rms(0.5), optax.sgd(0.3, 0.9)),
    "clipped by unit": lambda: optax.chain(optax.adaptive_grad_clip(0.1), optax.sgd(0.3)),
    "rates by layer": lambda: optax.multi_transform(
        {"slow": optax.sgd(0.01), "fast": optax.adam(0.3)},
        lambda params: {name: "slow" if name == "Block_0" else "fast" for name in params},
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name.startswith(("noise", "adan", "adafactor(")) else [])
        for name in OPTIMIZERS
    ],
)
def test_an_optimizer_sees_one_block_at_a_time_in_both_layouts(name):
    def tree(seed):
        rng = np.random.default_rng(seed)
        scales = np.float32([1, 10, 0.01]).reshape(3, 1, 1)  # blocks that a common norm would not fit
        kernel, bias, head = (rng.normal(size=size).astype(np.float32) for size in ((3, 4, 5), (3, 5), (5, 2)))
        return {"Block": {"*": {"kernel": kernel * scales, "bias": bias}}, "head": {"kernel": head}}

    @partial(jax.jit, static_argnames="unrolled")
    def results(params, batches, *, unrolled):
        of = stacked.unstack if unrolled else lambda tree: tree
        optimizer = optim.by_block(OPTIMIZERS[name]())
        params = of(params)
        state = optimizer.init(params)
        for grads in batches:
            updates, state = optimizer.update(of(grads), state, params)
            params = optax.apply_updates(params, updates)
        return stacked.unstack((params, state))

    args = tree(0), [tree(1), tree(2)]
    expected, found = (results(*args, unrolled=unrolled) for unrolled in (True, False))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [[line["train/loss"], line["train/grad_norm"]] for line in lines if "train/loss" in line]


@pytest.mark.slow
def test_a_run_goes_on_in_the_other_layout_with_the_same_curve_and_files(tmp_path):
    def config(steps, scan, **changes):
        fields = dict(model__dropout_rate=0.0, model__stochastic_depth_rate=0.0, ema_decay=0.9, eval_every=100)
        fields |= dict(optim__schedule="constant", optim__warmup_steps=0, **changes)
        return small(steps=steps, model__scan=scan, model__remat=scan, **fields)

    expected = train_and_evaluate(config(3, False), tmp_path / "unrolled")

    switched = tmp_path / "switched"
    train_and_evaluate(config(1, True), switched)
    written = pretrained.load(switched)
    assert {"MixerBlock_0", "MixerBlock_1"} < set(written)
    opened = trained.open_model(str(switched))
    assert_same(opened.params, jax.tree.map(jnp.asarray, written))

    for steps, scan in ((2, False), (3, True)):
        state = train_and_evaluate(config(steps, scan), switched, change_config=True)
        assert ("MixerBlock" in state.params) == scan
    np.testing.assert_allclose(losses(switched), losses(tmp_path / "unrolled"), rtol=1e-5)
    assert_close(stacked.unstack(state.params), expected.params, 1e-4)
    assert_close(stacked.unstack(state.ema), expected.ema, 1e-4)

    # Fine-tuning from such a workdir, whatever the layout.
    task = tasks.create(Config.of(config(1, True, init_from=str(switched))))
    params, _ = task.load(*task.init(jax.random.key(0)))
    of_blocks = lambda tree: {name: value for name, value in tree.items() if name != "head"}
    assert_same(stacked.unstack(of_blocks(params)), of_blocks(pretrained.load(switched)))


def compiled_memory(**changes):
    """Return what the digits' step needs beside its arguments, what it reuses, and the state's size, in bytes."""
    sizes = dict(model__num_blocks=4, model__dropout_rate=0.0, batch_size=512, optim__optimizer="sgd()")
    config = small(**sizes, **changes)
    run = Config.of(config)
    parts = assemble(run)
    devices, train_step = parts.devices, parts.train_step
    state = devices.make(lambda: parts.new_state(*parts.init()))
    batch = devices.put_batch({"image": np.zeros((512, 8, 8, 1), np.uint8), "label": np.zeros(512, np.int32)})
    analysis = devices.lower(train_step, state, batch).compile(parallel.COMPILER_OPTIONS).memory_analysis()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    return analysis.temp_size_in_bytes, analysis.alias_size_in_bytes, size


@pytest.mark.slow
def test_scan_with_remat_and_parts_of_a_batch_need_less_memory_and_the_state_is_reused():
    unrolled, reused, size = compiled_memory()
    assert reused >= 0.99 * size
    scanned, reused, size = compiled_memory(model__scan=True, model__remat=True)
    assert reused >= 0.99 * size
    assert scanned < 0.5 * unrolled
    in_parts, reused, size = compiled_memory(accum_steps=4)
    assert reused >= 0.99 * size
    assert in_parts < 0.5 * unrolled
