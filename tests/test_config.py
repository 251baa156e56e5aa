import pytest

from configs import digits
from vit_jax_mixer.config import Config, as_json, changes
from vit_jax_mixer.errors import UserError


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        # JAX takes the key of the lowest 32 bits: the run of another seed, in silence.
        ("seed", 2**32, "config: seed is 4294967296; it must be from 0 to 4,294,967,295"),
        ("seed", -1, "config: seed is -1; it must be from 0"),
        ("steps", 10**21, "config: steps is an integer of 70 bits; it must be a finite number of 64 bits"),
        ("steps", 2**31, "config: steps is 2147483648; it must be from 1 to 2,147,483,647"),
        ("batch_size", 0, "config: batch_size is 0; it must be from 1"),
        ("accum_steps", -2, "config: accum_steps is -2; it must be from 1"),
        ("log_every", 0, "config: log_every is 0; it must be from 1"),
        ("eval_every", 2**40, "config: eval_every is 1099511627776; it must be from 1"),
        ("eval_batch_size", -5, "config: eval_batch_size is -5; it must be from 1"),
        ("ema_decay", 1.0, "config: ema_decay is 1.0; it must be from 0 to 0.999999"),
        ("ema_decay", float("nan"), "config: ema_decay is nan; it must be a finite number"),
        ("on_not_finite", "skip(-1)", "config.on_not_finite: skip: steps is -1; it must be from 0"),
        ("on_not_finite", "skip('3')", "config.on_not_finite: skip: steps is '3'; it must be of type int"),
        ("on_not_finite", "skip(99999999999)", "config.on_not_finite: skip: steps is 99999999999; it must be from 0"),
    ],
)
def test_a_number_that_no_run_can_have_is_one_sentence(field, value, message):
    fields = digits.get_config().to_dict() | {field: value}
    with pytest.raises(UserError) as error:
        Config.of(digits.get_config().__class__(fields))
    assert message in str(error.value)


def test_a_run_of_before_goes_on_where_a_new_field_does_what_it_did():
    config = digits.get_config()
    old = as_json(config)
    del old["init"], old["optim"]["warmup"]
    Config(**old)
    assert changes(old, as_json(config)) == []
    config.init = "kaiming_uniform"
    assert changes(old, as_json(config)) == ["init was '' and is 'kaiming_uniform'"]
