import pytest

from configs import digits
from vit_jax_mixer.config import Config, as_json, changes, in_steps
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.overrides import override
from vit_jax_mixer.run.assemble import assemble


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


def test_lengths_count_epochs_of_the_examples_that_there_are(tmp_path):
    config = digits.get_config()
    config.steps = "1.5 epochs"
    config.eval_every = config.checkpoint.every = "1 epoch"
    config.optim.warmup_steps = "0.5 epochs"
    config.optim.schedule = "cosine(decay_steps='1 epoch')"
    run = Config.of(config)
    assert run.steps == 2  # until the data are known
    parts = assemble(run)
    assert len(parts.task.train_data) == 1437  # 22.45 batches of 64
    assert (parts.run.steps, parts.run.eval_every, parts.run.checkpoint["every"]) == (34, 23, 23)
    assert parts.run.optim["warmup_steps"] == 12
    assert parts.run.optim["schedule"] == "cosine(decay_steps=23)"
    assert as_json(config)["steps"] == "1.5 epochs"  # so that the same command goes on
    assert (
        in_steps({"data": {"source": "folder:20 epochs"}, "batch_size": 2}, 9)["data"]["source"] == "folder:20 epochs"
    )


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", "many epochs", "config: steps is 'many epochs'; it must be of type int"),
        ("batch_size", "2 epochs", "config: batch_size is '2 epochs'; it must be of type int"),
        ("steps", "0 epochs", "config: steps is 0; it must be from 1"),
    ],
)
def test_what_is_no_length_is_told(field, value, message):
    fields = digits.get_config().to_dict() | {field: value}
    with pytest.raises(UserError, match=message):
        Config.of(digits.get_config().__class__(fields))


def test_a_flag_sets_steps_or_epochs_in_the_place_of_either():
    config = digits.get_config()
    override(config, {"steps": "20 epochs", "optim.warmup_steps": "1 epoch"})
    assert (config.steps, config.optim.warmup_steps) == ("20 epochs", "1 epoch")
    override(config, {"steps": "20"})
    assert config.steps == 20
    with pytest.raises(UserError, match=r"config.batch_size is '2 epochs'; it must be of type int"):
        override(config, {"batch_size": "2 epochs"})
