import json

import jax
import numpy as np
import pytest

from tests.helpers import DATA
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.run import schedules


def rates(spec, steps=10, warmup_steps=0, peak=0.5, **fields):
    rate = schedules.create(peak, schedule=spec, warmup_steps=warmup_steps, steps=steps, **fields)
    return np.array(jax.jit(jax.vmap(rate))(np.arange(steps + 1)))


@pytest.mark.parametrize(
    ("case", "spec", "warmup", "name"),
    [
        ("warmup_cosine", "cosine", "from_one", "lr"),
        ("sharp", "cosine(decay_steps=15, floor=1e-6)", "from_one", "lr"),
        ("restarts_high", "restarts(first=2, factor=2, floor=1e-8)", "from_one", "lr_as_meant"),
        ("restarts_high", "restarts(first=2, factor=2, floor=1e-8)", "none", "lr_as_it_acts"),
        ("restarts_even", "restarts(10, floor=1e-8)", "from_one", "lr_as_meant"),
        ("restarts_even", "restarts(10, floor=1e-8)", "none", "lr_as_it_acts"),
    ],
)
def test_the_rates_are_those_of_the_tabular_mixers_document(case, spec, warmup, name):
    reference = np.load(DATA / "tabular_schedules_reference.npz")
    of_case = json.loads(str(reference["settings"]))["cases"][case]
    found = rates(spec, of_case["epochs"], of_case["warmup_epochs"], of_case["lr"], warmup=warmup)
    # float32: the cosine near its end is one less than a number near 1
    np.testing.assert_allclose(found[:100], reference[f"{case}/{name}"], rtol=1e-5, atol=1e-6 * of_case["lr"])


@pytest.mark.parametrize("case", ["resmlp_400", "short"])
def test_the_rates_are_those_of_deit_at_whole_epochs(case):
    reference = np.load(DATA / "deit_schedule_reference.npz")
    settings = json.loads(str(reference["settings"]))
    epochs, warm = (settings["cases"][case][name] for name in ("epochs", "warmup_epochs"))
    spec, warmup = "cosine(floor=1e-5, whole=True)", "from_rate(1e-6)"
    found = rates(spec, epochs * 7, warm * 7, peak=5e-3, warmup=warmup)[::7]
    np.testing.assert_allclose(found[:epochs], reference[f"{case}/value"][:epochs], rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(found[-1], 1e-5, rtol=1e-5)  # at the end


@pytest.mark.parametrize(("case", "warmup"), [("zero_init", "from_zero"), ("tiny_init", "from_rate(1e-7)")])
def test_the_inverse_square_root_is_that_of_fairseq(case, warmup):
    reference = np.load(DATA / "seq2seq_reference.npz")
    rate = schedules.create(7e-4, schedule="inverse_sqrt", warmup=warmup, warmup_steps=4000, steps=10**6)
    found = jax.jit(jax.vmap(rate))(reference[f"inverse_sqrt/{case}/updates_done"])
    # float32: at its begin, the warm-up is one less a number near 1
    np.testing.assert_allclose(found, reference[f"inverse_sqrt/{case}/lr"], rtol=1e-5, atol=1e-7 * 7e-4)


def test_restarts_grow_to_the_end_of_the_longest_run():
    rate = schedules.create(1.0, schedule="restarts(3, factor=1000)", warmup_steps=0, steps=2**31 - 1)
    begins = np.array([0, 3, 3003, 3003003])
    found = jax.jit(jax.vmap(rate))(np.concatenate([begins, begins[1:] - 1]))
    np.testing.assert_allclose(found, [1, 1, 1, 1, 0.25, 0, 0], atol=1e-5)


def test_a_range_test_multiplies_the_rate_by_the_same_number_each_step():
    rate = schedules.create(1.0, schedule="rising(first=1e-4)", warmup_steps=0, steps=5)
    np.testing.assert_allclose(jax.vmap(rate)(np.arange(5)), [1e-4, 1e-3, 1e-2, 1e-1, 1], rtol=1e-5)
    with pytest.raises(UserError, match="is not below"):
        schedules.create(1e-4, schedule="rising(first=1e-4)", warmup_steps=0, steps=5)


def test_a_warm_up_of_one_step_or_none():
    for warmup in schedules.WARMUPS:
        np.testing.assert_allclose(rates("constant", warmup=warmup), 0.5)
    assert rates("constant", warmup="from_zero", warmup_steps=1)[0] == 0
    np.testing.assert_allclose(rates("constant", warmup="from_one", warmup_steps=1), 0.5)
    np.testing.assert_allclose(rates("constant", warmup="from_one", warmup_steps=2)[:3], [0.25, 0.5, 0.5])


@pytest.mark.parametrize(
    ("spec", "fields", "message"),
    [
        (
            "cosine(floor=1)",
            {},
            r"config.optim.schedule: cosine: floor is 1.0, above config.optim.learning_rate \(0.5\)",
        ),
        ("cosine(floor=-1)", {}, "floor is -1; it must be 0 or more"),
        ("cosine(decay_steps=0)", {}, "decay_steps is 0; it must be from 1"),
        ("restarts", {}, "restarts lacks the field 'first'"),
        ("restarts(first=0)", {}, "first is 0; it must be from 1"),
        ("restart", {}, "'restart' is not known; did you mean 'restarts'"),
        ("linear(0.1)", {}, "has too many arguments; linear takes none"),
        ("cosine", {"warmup": "from_rate(first=1)"}, r"from_rate\(1.0\) is above config.optim.learning_rate \(0.5\)"),
        ("cosine(whole=1)", {}, "whole is 1; it must be of type bool"),
        ("cosine", {"warmup": "from_nil"}, "config.optim.warmup: 'from_nil' is not known; did you mean"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(spec, fields, message):
    with pytest.raises(UserError, match=message):
        rates(spec, **fields)
