"""SAM and its kin against the authors' code, each on two devices in another way, and what they must not do."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.helpers import DATA, assert_close, assert_same
from tests.run.test_step import UNEQUAL, Tokens, sentences
from tests.test_train import small
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.run import parallel, sharpness, step
from vit_jax_mixer.tasks import Aux, Task
from vit_jax_mixer.train import train_and_evaluate

NAMES = ("0.weight", "0.bias", "2.weight", "2.bias")
SGD = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, momentum=0.9))

ADAMW = optax.adamw(0.01, weight_decay=0.1)


class Layers(Task):
    """Linear, exact GELU, Linear; mean cross-entropy."""

    def loss(self, params, state, batch, key):
        hidden = jax.nn.gelu(batch["x"] @ params["0.weight"].T + params["0.bias"][None], approximate=False)
        logits = hidden @ params["2.weight"].T + params["2.bias"][None]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean(), Aux({})

    def init(self, key):
        raise NotImplementedError

    def eval_step(self, state, batch):
        raise NotImplementedError

    def evaluate(self, outputs):
        raise NotImplementedError


@pytest.fixture(scope="module")
def reference():
    return np.load(DATA / "sam_reference.npz")


def tree(reference, prefix):
    return {name: reference[f"{prefix}/{name}"] for name in NAMES}


def steps(task, optimizer, rule, how, accum_steps, params, batches):
    """Return the state's saved form, and the metrics, after each step."""
    devices = parallel.create(how)
    sharp = sharpness.parse(rule, lambda count: 1 - count / 3)
    run = devices.train_step(partial(step.train_step, task, optimizer, lambda step: 0.1, 0, accum_steps, sharp=sharp))
    state = devices.put_state(step.new_state(optimizer, params, (), sharp=sharp))
    for batch in batches:
        state, metrics = run(state, devices.put_batch(batch))
        yield jax.device_get((devices.saved_form(state), metrics))


@pytest.mark.parametrize(
    ("kind", "rule", "optimizer", "how", "accum_steps"),
    [
        ("sam", "sam(rho=0.05)", SGD, "jit", 1),
        pytest.param("sam_plain_sgd", "sam(rho=0.05)", optax.sgd(0.1), "pmap", 1, marks=pytest.mark.slow),
        pytest.param("sam_adamw", "sam(rho=0.05)", ADAMW, "jit(fsdp=2)", 2, marks=pytest.mark.slow),
        ("asam", "sam(rho=0.5, adaptive=True)", SGD, "jit", 2),
        ("gsam", "gsam(rho=0.08, rho_min=0.02, alpha=0.4)", SGD, "pmap", 2),
        ("ssam", "ssam(rho=0.05, sparsity=0.5)", SGD, "jit(fsdp=2)", 1),
        pytest.param("ssam", "ssam(rho=0.05, sparsity=0.5)", SGD, "pmap", 4, marks=pytest.mark.slow),
        ("s2sam", "s2sam(rho=0.05)", SGD, "jit(fsdp=2)", 4),
    ],
)
def test_three_steps_are_those_of_the_authors(reference, kind, rule, optimizer, how, accum_steps, monkeypatch):
    monkeypatch.setattr(parallel, "SMALLEST_SHARDED", 1)
    batches = [{"x": reference["features"][t], "y": reference["labels"][t].astype(np.int32)} for t in range(3)]
    params = tree(reference, "param")
    for t, (state, metrics) in enumerate(steps(Layers(), optimizer, rule, how, accum_steps, params, batches)):
        assert_close(state.params, tree(reference, f"{kind}/{t}"))
        np.testing.assert_allclose(metrics["loss"], reference[f"{kind}/{t}/loss"], rtol=1e-5)
        if kind == "ssam":
            mask = state.opt_state[1]
            assert all((mask[name] == reference[f"ssam/mask/{name}"]).all() for name in NAMES)


def test_the_perturbation_is_that_of_a_whole_batch_whose_parts_weigh_unequally():
    batch, task = sentences(UNEQUAL), Tokens()
    params, extra = task.init(jax.random.key(0))
    state = step.new_state(optax.sgd(0.1), params, extra)
    gradient = jax.grad(lambda params: task.loss(params, state, batch, jax.random.key(0))[0])
    plain = gradient(params)
    beside = jax.tree.map(lambda w, g: w + 0.1 * g / optax.tree.norm(plain), params, plain)
    expected = jax.tree.map(lambda w, g: w - 0.1 * g, params, gradient(beside))

    class Parts(Tokens):
        def after_update(self, state, aux):
            return ()

    ((found, _),) = steps(Parts(), optax.sgd(0.1), "sam(rho=0.1)", "pmap", 2, params, [batch])
    assert_close(found.params, jax.device_get(expected))


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["ssam(rho=0.05, every=3)", "s2sam(rho=0.05)"])
def test_a_run_that_goes_on_has_the_same_bits(tmp_path, rule):
    fields = dict(sharpness=rule, optim__noise="gaussian(eta=0.01)", optim__schedule="constant", model__scan=True)
    fields["optim__warmup_steps"] = 1
    expected = train_and_evaluate(small(steps=5, **fields), tmp_path / "whole")
    for steps in (2, 5):
        found = train_and_evaluate(small(steps=steps, **fields), tmp_path / "parts")
    assert_same(jax.device_get((found.params, found.opt_state)), jax.device_get((expected.params, expected.opt_state)))


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_gradient_of_zero_perturbs_nothing(adaptive):
    params = {"w": jnp.arange(3.0)}
    found = sharpness.perturbed(params, {"w": jnp.zeros(3)}, 0.05, adaptive=adaptive)
    np.testing.assert_array_equal(found["w"], params["w"])


def test_the_largest_are_those_of_a_sort():
    values = jnp.asarray(np.random.default_rng(0).lognormal(0, 9, 1000), jnp.float32).at[:100].set(0)
    tree = {"a": values[:300].reshape(3, 100), "b": values[300:]}
    find = jax.jit(sharpness.largest, static_argnums=1)
    for share in (0.001, 0.4):
        found = jax.tree.leaves(find(tree, share))
        chosen = np.concatenate([np.asarray(leaf).ravel() for leaf in found])
        wanted = round(share * 1000)
        assert chosen.sum() == wanted
        assert set(np.flatnonzero(chosen)) == set(np.argsort(-np.asarray(values))[:wanted])
    assert sum(leaf.sum() for leaf in jax.tree.leaves(find(tree, 1.0))) == 900  # zeros are never in


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sma(rho=0.05)", "config.sharpness: 'sma' is not known; did you mean 'sam'"),
        ("sam", "config.sharpness: sam lacks the field 'rho'"),
        ("sam(rho=-1)", "rho is -1; it must be from 0 to 1,000"),
        ("gsam(rho=0.1)", "gsam lacks the field 'alpha'"),
        ("ssam(rho=0.1, sparsity=2)", "sparsity is 2; it must be from 0 to 1"),
        ("s2sam(share=1, rho=0.1)", "has no field 'share'"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(spec, message):
    with pytest.raises(UserError, match=message):
        sharpness.parse(spec, lambda count: 1.0)
