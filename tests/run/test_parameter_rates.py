import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import assert_same
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models import stacked
from vit_jax_mixer.run import optim

FIELDS = dict(learning_rate=0.1, schedule="constant", warmup_steps=0, clip_norm=1.0, steps=10)
OPTIMIZERS = ("sgd(momentum=0.9)", "adamw(weight_decay=0.1)", "lamb(weight_decay=0.1)", "lars(weight_decay=0.1)")


def tree(seed):
    """Three blocks with a stem, blocks of another kind before them, and a head."""
    draw = np.random.default_rng(seed).normal
    layer = lambda: {
        "kernel": jnp.asarray(draw(size=(2, 3)), jnp.float32),
        "bias": jnp.asarray(draw(size=3), jnp.float32),
    }
    blocks = {f"MixerBlock_{i}": {"Dense_0": layer()} for i in range(3)}
    return {"stem": layer(), "ConvBlock_0": layer(), **blocks, "pre_head_layer_norm": layer(), "head": layer()}


PARAMS, GRADS = tree(0), tree(1)
LIKE = {"MixerBlock": {"*": jax.tree.map(lambda x: jnp.zeros((3, *x.shape)), PARAMS["MixerBlock_0"])}} | {
    name: value for name, value in PARAMS.items() if not name.startswith("MixerBlock")
}


def trained(optimizer="sgd", scan=False, steps=2, grads=GRADS, **fields):
    """Return the parameters after some steps, in the published layout."""
    optimizer, _ = optim.create(**{**FIELDS, "optimizer": optimizer, **fields})
    optimizer = optim.by_block(optimizer)
    params, grads = (stacked.stack(one, LIKE) if scan else one for one in (PARAMS, grads))
    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = optimizer.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return stacked.unstack(params) if scan else params


def factors(**fields):
    """Return by what multiple of those without ``fields`` parameters move in a step, a number each."""
    moved = [jax.tree.map(jnp.subtract, trained(steps=1, **one), PARAMS) for one in ({}, fields)]
    one, other = (dict(jax.tree.leaves_with_path(tree)) for tree in moved)
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    return {name(path): float(f"{jnp.mean(other[path] / one[path]):.3g}") for path in one}


@pytest.mark.parametrize(
    ("optimizer", "scan"), [(OPTIMIZERS[0], True), (OPTIMIZERS[1], True), (OPTIMIZERS[2], False), (OPTIMIZERS[3], True)]
)
def test_what_is_frozen_does_not_change_by_a_bit_and_counts_in_no_norm(optimizer, scan):
    params = {**PARAMS, "stem": jax.tree.map(lambda x: x.at[0].set(-0.0), PARAMS["stem"])}
    grads = {**GRADS, "stem": jax.tree.map(lambda x: x.at[0].set(jnp.nan), GRADS["stem"])}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "PARAMS", params)
        found = trained(optimizer, scan, grads=grads, rates='{"^stem|^MixerBlock_1": 0}')
    for name in ("stem", "MixerBlock_1"):
        for a, b in zip(jax.tree.leaves(found[name]), jax.tree.leaves(params[name]), strict=True):
            np.testing.assert_array_equal(np.asarray(a).view(np.uint32), np.asarray(b).view(np.uint32))
    zero = lambda one: jax.tree.map(jnp.zeros_like, one)
    alone = trained(
        optimizer, grads={**GRADS, "stem": zero(GRADS["stem"]), "MixerBlock_1": zero(GRADS["MixerBlock_1"])}
    )
    for name in ("MixerBlock_0", "MixerBlock_2", "head"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found[name], alone[name])


def test_the_first_pattern_found_in_a_published_name_decides():
    found = factors(rates='{"^head/bias$": 3, "^head": 10, "MixerBlock_[12]/": 0.5}')
    expected = {"head/bias": 3, "head/kernel": 10, "MixerBlock_1/Dense_0/bias": 0.5, "MixerBlock_2/Dense_0/kernel": 0.5}
    assert {name: factor for name, factor in found.items() if factor != 1} == expected | {
        "MixerBlock_1/Dense_0/kernel": 0.5,
        "MixerBlock_2/Dense_0/bias": 0.5,
    }


def test_rates_fall_with_depth_and_multiply_those_by_name():
    found = factors(layer_decay=0.5, rates='{"^head": 10}')
    by_part = {name.partition("/")[0]: factor for name, factor in found.items()}
    assert by_part == {
        "stem": 0.0625,
        "ConvBlock_0": 0.0625,
        "MixerBlock_0": 0.125,
        "MixerBlock_1": 0.25,
        "MixerBlock_2": 0.5,
        "pre_head_layer_norm": 1,
        "head": 10,
    }


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_stacked_blocks_are_updated_as_apart(optimizer):
    fields = dict(layer_decay=0.75, rates='{"MixerBlock_1/.*bias": 4, "MixerBlock_2": 0}')
    apart, scanned = (trained(optimizer, scan, **fields) for scan in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), scanned, apart)
    assert_same(scanned["MixerBlock_2"], PARAMS["MixerBlock_2"])


def test_the_state_is_that_of_the_optimizer_alone():
    init = lambda **fields: optim.create(**FIELDS, optimizer="adamw(weight_decay=0.1)", **fields)[0].init(PARAMS)
    assert_same(init(rates='{"head": 0}', layer_decay=0.5), init())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rates": '{"^hed": 10}'}, "'^hed' is in none of the parameters' names: 'ConvBlock_0/bias'"),
        (
            {"rates": '{"head": 2, "^head": 10}'},
            "'^head' is found only where one before it is of the parameters' names",
        ),
        ({"rates": '{"": 0}'}, "config.optim.rates freezes every parameter"),
        ({"rates": '{"(": 1}'}, "'(' is no regular expression"),
        ({"rates": '{"head": -1}'}, "'head' has -1; it must have a number from 0 to 1,000,000"),
        ({"rates": '{"head": NaN}'}, "'head' has nan; it must have a number"),
        ({"rates": '{"head": true}'}, "'head' has True; it must have a number"),
        ({"rates": '{"head": {"x": 1}}'}, "'head' has [('x', 1)]; it must have a number"),
        ({"rates": '{"head": 1, "head": 2}'}, "has a regular expression twice"),
        ({"rates": "head=10"}, "config.optim.rates is 'head=10'; it must be regular expressions with numbers, as {"),
        ({"rates": "[1]"}, "config.optim.rates is '[1]'; it must be"),
        ({"rates": "{}"}, "config.optim.rates is '{}'; it must be"),
    ],
)
def test_a_pattern_that_does_nothing_is_one_sentence(fields, message):
    with pytest.raises(UserError) as error:
        trained(**fields)
    assert message in str(error.value)


def test_layer_decay_needs_blocks():
    optimizer, _ = optim.create(**FIELDS, optimizer="sgd", layer_decay=0.5)
    with pytest.raises(UserError, match="has no blocks, as MixerBlock_0, among its parameters: 'head/bias'"):
        optimizer.init({"head": PARAMS["head"]})
