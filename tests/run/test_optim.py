from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.helpers import DATA, assert_close, assert_same
from vit_jax_mixer import specs
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models import stacked
from vit_jax_mixer.run import optim, optimizers, weight_decay

FIELDS: dict[str, Any] = dict(
    optimizer="sgd", learning_rate=0.5, schedule="constant", warmup_steps=0, clip_norm=0.0, steps=10
)
LAMB_NAMES = ("fc.weight", "fc.bias", "gamma", "head.weight")
PARAMS = {"Dense_0": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "LayerNorm_0": {"scale": jnp.ones(2)}}


def rates(**fields):
    _, rate = optim.create(**{**FIELDS, **fields})
    return np.array([rate(step) for step in range(fields.get("steps", 10) + 1)])


def updates(grads, **fields) -> Any:  # a tree of arrays
    optimizer, _ = optim.create(**{**FIELDS, **fields})
    return optimizer.update(grads, optimizer.init(PARAMS), PARAMS)[0]


def test_schedules_follow_their_formulas_after_the_warm_up():
    steps = np.arange(11)
    np.testing.assert_allclose(rates(), 0.5)
    np.testing.assert_allclose(rates(schedule="linear"), 0.5 * (1 - steps / 10), rtol=1e-6)
    np.testing.assert_allclose(rates(schedule="cosine"), 0.25 * (1 + np.cos(np.pi * steps / 10)), atol=1e-7)
    warm = rates(schedule="cosine", warmup_steps=4)
    np.testing.assert_allclose(warm[:5], [0, 0.125, 0.25, 0.375, 0.5])
    np.testing.assert_allclose(warm[4:], 0.25 * (1 + np.cos(np.pi * np.arange(7) / 6)), atol=1e-7)


def test_the_global_norm_is_clipped():
    grads = {
        "Dense_0": {"kernel": 3 * jnp.ones((2, 2)), "bias": 4 * jnp.ones(2)},
        "LayerNorm_0": {"scale": jnp.zeros(2)},
    }
    norm = np.sqrt(4 * 9 + 2 * 16)
    np.testing.assert_allclose(updates(grads, clip_norm=1.0)["Dense_0"]["bias"], -0.5 * 4 / norm, rtol=1e-6)
    np.testing.assert_allclose(updates(grads)["Dense_0"]["bias"], -2.0)


def test_decay_is_decoupled_and_spares_biases_and_scales():
    zero = {"Dense_0": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}, "LayerNorm_0": {"scale": jnp.zeros(2)}}
    found = updates(zero, optimizer="adamw(weight_decay=0.1)")
    np.testing.assert_allclose(found["Dense_0"]["kernel"], -0.5 * 0.1, rtol=1e-6)
    assert not found["Dense_0"]["bias"].any()
    assert not found["LayerNorm_0"]["scale"].any()
    everything = updates(zero, optimizer="adamw(weight_decay=0.1, no_decay='')")
    np.testing.assert_allclose(everything["LayerNorm_0"]["scale"], -0.05, rtol=1e-6)


def test_adam_takes_a_first_step_of_the_rate_in_the_gradients_direction():
    grads = {"Dense_0": {"kernel": 2 * jnp.ones((2, 2)), "bias": -jnp.ones(2)}, "LayerNorm_0": {"scale": jnp.ones(2)}}
    found = updates(grads, optimizer="adam(b1=0.8)")
    np.testing.assert_allclose(found["Dense_0"]["kernel"], -0.5, rtol=1e-5)
    np.testing.assert_allclose(found["Dense_0"]["bias"], 0.5, rtol=1e-5)


def test_adam_with_l2_reads_the_gradient_of_the_penalty_too():
    grads = jax.tree.map(lambda x: 3 * x, PARAMS)
    penalised = jax.tree.map(lambda grad, x: grad + 0.1 * x, grads, PARAMS)
    assert_same(updates(grads, optimizer="adam(l2=0.1, eps=1.0)"), updates(penalised, optimizer="adam(eps=1.0)"))


@pytest.mark.parametrize(
    ("variant", "arguments", "clip_norm"),
    [
        ("default", "", 1.0),
        ("always_adapt", "always_adapt=True", 1.0),
        ("no_clip", "", 0.0),
        ("trust_clip", "trust_clip=True", 1.0),
    ],
)
def test_lamb_makes_the_updates_of_timm(variant, arguments, clip_norm):
    reference = np.load(DATA / "lamb_reference.npz")
    of = lambda prefix: {name: jnp.asarray(reference[f"{prefix}/{name}"]) for name in LAMB_NAMES}
    # The reference has no schedule: a rate for each step.
    rate = lambda step: jnp.asarray(reference["learning_rates"], jnp.float32)[step]
    spec = f"lamb(weight_decay=0.2, no_decay='bias|gamma', {arguments})"
    update = specs.build(optimizers.OPTIMIZERS, spec, "optimizer", learning_rate=rate)
    optimizer = optax.chain(optim.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(), update)
    params = of("param")
    state = optimizer.init(params)
    for step in range(4):
        updates, state = optimizer.update(of(f"grad/{step}"), state, params)
        params = optax.apply_updates(params, updates)
        assert_close(params, of(f"{variant}/{step}"))


def test_adagrad_makes_the_updates_of_pytorch():
    reference = np.load(DATA / "adagrad_reference.npz")
    rate = lambda step: jnp.asarray(reference["learning_rates"], jnp.float32)[step]
    optimizer = specs.build(optimizers.OPTIMIZERS, "adagrad", "optimizer", learning_rate=rate)
    param = jnp.asarray(reference["param"])
    state = optimizer.init(param)
    for step in range(4):
        updates, state = optimizer.update(jnp.asarray(reference[f"grad/{step}"]), state, param)
        param = optax.apply_updates(param, updates)
        assert_close(param, reference[f"after/{step}"])


MASK = {"Dense_0": {"kernel": True, "bias": False}, "LayerNorm_0": {"scale": False}}


@pytest.mark.parametrize(
    ("spec", "of_optax"),
    [
        ("lion(weight_decay=0.1)", optax.lion(0.5, weight_decay=0.1, mask=MASK)),
        ("nadamw(weight_decay=0.1)", optax.nadamw(0.5, weight_decay=0.1, mask=MASK)),
        ("radam", optax.radam(0.5)),
        ("adabelief", optax.adabelief(0.5)),
        ("adan", optax.adan(0.5)),
        ("rmsprop(momentum=0.9, centered=True)", optax.rmsprop(0.5, momentum=0.9, centered=True)),
        (
            "adafactor(min_dim_size_to_factor=2, weight_decay=0.1)",
            optax.adafactor(0.5, min_dim_size_to_factor=2, weight_decay_rate=0.1, weight_decay_mask=MASK),
        ),
    ],
    ids=lambda value: value.partition("(")[0] if isinstance(value, str) else "",
)
def test_those_of_optax_make_its_updates(spec, of_optax):
    rng = np.random.default_rng(0)
    ours, _ = optim.create(**{**FIELDS, "optimizer": spec})
    params = {"ours": PARAMS, "optax": PARAMS}
    states = {"ours": ours.init(PARAMS), "optax": of_optax.init(PARAMS)}
    for _ in range(3):
        grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), PARAMS)
        for name, optimizer in (("ours", ours), ("optax", of_optax)):
            changes, states[name] = optimizer.update(grads, states[name], params[name])
            params[name] = optax.apply_updates(params[name], changes)
    assert_close(params["ours"], params["optax"])


def test_lamb_without_decay_is_adam_unless_it_always_adapts():
    grads = jax.tree.map(lambda x: 3 * x, PARAMS)
    adam = updates(grads, optimizer="adam(eps=1e-6)")
    assert_close(updates(grads, optimizer="lamb(weight_decay=0.0)"), adam)
    adapted = updates(grads, optimizer="lamb(weight_decay=0.0, always_adapt=True)")
    np.testing.assert_allclose(adapted["Dense_0"]["kernel"], -0.5, rtol=1e-5)  # as long as the array


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer": "adamw"}, "adamw lacks the field 'weight_decay'"),
        ({"optimizer": "sgd(momentun=0.9)"}, "has no field 'momentun'; did you mean 'momentum'"),
        ({"optimizer": "adamw(weight_decay='0.1')"}, "weight_decay is '0.1'; it must be of type float"),
        ({"optimizer": "adamw(weight_decay=0.1, no_decay='(')"}, "is no regular expression"),
        ({"optimizer": "sgd(momentum=0.9, accumulator_dtype='bf16')"}, "accumulator_dtype is 'bf16'; choose from"),
        ({"optimizer": "adam(mu_dtype='int8')"}, "mu_dtype is 'int8'; choose from float32, bfloat16, float16"),
        ({"optimizer": "adam(b1='x')"}, "b1 is 'x'; it must be of type float"),
        ({"optimizer": "adamw(weight_decay=0.1, b1=2)"}, "b1 is 2; it must be from 0 to 0.999999"),
        ({"optimizer": "adam(b2=0.99999999)"}, "b2 is 0.99999999; it must be from 0"),
        ({"optimizer": "lamb(weight_decay=-1)"}, "weight_decay is -1; it must be 0 or more"),
        ({"optimizer": "adam(eps=-1e-8)"}, "eps is -1e-08; it must be from 1e-30 to 1"),
        ({"optimizer": "sgd(momentum=1e400)"}, "momentum is inf; it must be a finite number"),
        ({"optimizer": "sdg"}, "config.optim.optimizer: 'sdg' is not known; did you mean 'sgd'"),
        ({"noise": "gauss(eta=1)"}, "config.optim.noise: 'gauss' is not known; did you mean 'gaussian'"),
        ({"noise": "gaussian(eta=-1)"}, "config.optim.noise: gaussian: eta is -1; it must be 0 or more"),
        ({"schedule": "cosin"}, "config.optim.schedule: 'cosin' is not known; did you mean 'cosine'"),
        ({"warmup_steps": 10}, "warmup_steps is 10; it must be from 0 to config.steps - 1 = 9"),
    ],
)
def test_a_misspelt_field_is_one_sentence(fields, message):
    with pytest.raises(UserError, match=message):
        optim.create(**{**FIELDS, **fields})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("learning_rate", -0.1, "0 or more"),
        ("learning_rate", float("nan"), "a finite number"),
        ("learning_rate", "0.1", "of type float"),
        ("clip_norm", -1, "0 or more"),
        ("warmup_steps", 1.5, "of type int"),
        ("warmup_steps", 10**30, "a finite number of 64 bits"),
    ],
)
def test_a_number_that_makes_no_sense_is_one_sentence(field, value, message):
    fields = {name: given for name, given in FIELDS.items() if name != "steps"}
    with pytest.raises(UserError, match=rf"config.optim: {field} is .*; it must be {message}"):
        specs.call(optim.create, {**fields, field: value}, "config.optim", steps=10)


def test_noise_has_the_variance_of_its_formula_and_is_of_the_seed():
    def noise(seed, steps=2):
        optimizer: Any = optim.create(**FIELDS, noise="gaussian(eta=0.3, gamma=0.5)", seed=seed)[0]
        params: Any = {"w": jnp.zeros(20_000)}
        state, found = optimizer.init(params), []
        for _ in range(steps):
            updates, state = optimizer.update(params, state, params)
            found.append(updates["w"] / -0.5)  # the rate
        assert all(leaf.dtype in (jnp.int32, jnp.uint32) for leaf in jax.tree.leaves(state))  # as a checkpoint holds it
        return np.array(found)

    first = noise(seed=1)
    np.testing.assert_allclose(first.var(1), 0.3 / np.array([1, 2]) ** 0.5, rtol=0.05)
    np.testing.assert_allclose(first.mean(1), 0, atol=0.02)
    np.testing.assert_array_equal(noise(seed=1), first)
    assert abs(np.corrcoef([*first, *noise(seed=2)])[np.triu_indices(4, 1)]).max() < 0.05


def test_the_state_of_adamw_has_the_form_of_optaxs_which_checkpoints_hold():
    mask = weight_decay.decay_mask("(bias|scale)$")
    ours = optimizers.adamw(lambda step: 0.1, weight_decay=0.1)
    theirs = optax.adamw(lambda step: 0.1, weight_decay=0.1, mask=mask)
    assert jax.tree.structure(ours.init(PARAMS)) == jax.tree.structure(theirs.init(PARAMS))
    grads = jax.tree.map(lambda x: 3 * x, PARAMS)
    updates = [one.update(grads, one.init(PARAMS), PARAMS)[0] for one in (ours, theirs)]
    assert_same(*updates)


def test_the_norm_of_each_parameter_is_clipped_also_of_blocks_that_are_stacked():
    of_blocks = jnp.stack([3 * jnp.ones((2, 2)), jnp.full((2, 2), 0.1)])
    grads = {"Block": {stacked.MARK: {"kernel": of_blocks}}, "bias": jnp.full(4, 5.0)}
    optimizer, _ = optim.create(**{**FIELDS, "clip_norm": 1.0, "clip_norm_of": "each"})
    found, _ = optimizer.update(grads, optimizer.init(grads), grads)
    np.testing.assert_allclose(found["bias"], -0.25, rtol=1e-5)
    expected = np.stack([np.full((2, 2), -0.25), np.full((2, 2), -0.05)])
    np.testing.assert_allclose(found["Block"][stacked.MARK]["kernel"], expected, rtol=1e-5)


def test_a_decay_by_a_schedule_is_adamws_at_each_step():
    optimizer, _ = optim.create(**{**FIELDS, "optimizer": "adam", "decay": "cosine(start=0.1, end=0.3)"})
    params, state = PARAMS, optimizer.init(PARAMS)
    for step in range(3):
        share = 0.2 - 0.1 * np.cos(np.pi * step / 10)
        found, state = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params)
        np.testing.assert_allclose(found["Dense_0"]["kernel"], -0.5 * share, rtol=1e-5)
        assert not found["LayerNorm_0"]["scale"].any()


def test_what_is_held_begins_later_as_if_it_were_trained_alone():
    fields = {**FIELDS, "optimizer": "adam", "decay": "cosine(start=0.1, end=0.3)", "schedule": "linear"}
    held, _ = optim.create(**fields, hold="Dense_0/kernel", hold_steps=3)
    free, rate = optim.create(**fields)
    grads = jax.tree.map(lambda x: 2 * x, PARAMS)
    state, of_free = held.init(PARAMS), free.init(PARAMS)
    for step in range(5):
        found, state = held.update(grads, state, PARAMS)
        expected, of_free = free.update(grads, of_free, PARAMS)
        np.testing.assert_array_equal(found["LayerNorm_0"]["scale"], expected["LayerNorm_0"]["scale"])
        if step < 3:
            assert not found["Dense_0"]["kernel"].any()
        else:  # Adam's first steps, at the rate and decay of now
            share = 0.2 - 0.1 * np.cos(np.pi * step / 10)
            np.testing.assert_allclose(found["Dense_0"]["kernel"], -rate(step) * (1 + share), rtol=1e-5)
    with pytest.raises(UserError, match=r"config.optim.hold: 'headd' is in the name of no parameter"):
        optim.create(**fields, hold="headd", hold_steps=3)[0].init(PARAMS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hold": "head"}, "config.optim.hold is 'head' and hold_steps 0; set both, or neither"),
        ({"hold": "(", "hold_steps": 1}, r"config.optim.hold: '\(' is no regular expression"),
        (
            {"clip_norm": 1.0, "clip_norm_of": "eech"},
            "config.optim.clip_norm_of: 'eech' is not known; did you mean 'each'",
        ),
        (
            {"optimizer": "adamw(weight_decay=0.1)", "decay": "cosine(start=0.1, end=0.3)"},
            "decays by itself; name one without, as 'adam'",
        ),
    ],
)
def test_wrong_holds_clips_and_decays_are_one_sentence(fields, message):
    with pytest.raises(UserError, match=message):
        optim.create(**{**FIELDS, **fields})
