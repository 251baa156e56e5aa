from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import assert_close
from vit_jax_mixer import models
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models import search
from vit_jax_mixer.models.seq2seq import sinusoids

TINY = dict(vocab_size=23, max_length=9, num_encoder_layers=2, num_decoder_layers=2, hidden_dim=16, mlp_dim=24)
MIXINGS = ("linear", "attention")
SOURCE = np.array([[5, 6, 7, 3, 0, 0], [8, 9, 10, 11, 12, 3], [3, 0, 0, 0, 0, 0]], np.int32)
TARGET = np.array([[2, 5, 6, 3, 0], [2, 7, 8, 9, 10], [2, 0, 0, 0, 0]], np.int32)  # as a decoder reads it


@pytest.fixture(scope="module", params=MIXINGS)
def made(request):
    """Return (model, variables), where no parameter is 0 or 1."""
    model = models.create("Seq2Seq", **TINY, num_heads=4, self_mixing=request.param)
    fresh = jax.jit(model.init)(jax.random.key(0), SOURCE, TARGET)
    leaves, structure = jax.tree.flatten(fresh)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [leaf + 0.2 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return model, jax.tree.unflatten(structure, noisy)


@pytest.fixture(scope="module")
def logits(made):
    model, variables = made
    return jax.jit(partial(model.apply, variables))


def test_one_position_a_step_gives_the_logits_of_the_whole_target(made, logits):
    model, variables = made

    @jax.jit
    def stepwise():
        encoded = model.apply(variables, SOURCE, method="encode")
        cache = model.apply(variables, encoded, SOURCE, method="start")

        def step(cache, at):
            found, cache = model.apply(variables, cache, *at, method="step")
            return cache, found

        return jax.lax.scan(step, cache, (TARGET.T, jnp.arange(5)))[1]

    found, whole = np.swapaxes(stepwise(), 0, 1), logits(SOURCE, TARGET)
    assert whole.shape == (3, 5, 23)
    assert whole.dtype == jnp.float32
    assert np.isfinite(whole).all()
    there = TARGET != 0  # what follows padding is nobody's
    assert_close(found[there], np.asarray(whole)[there])
    assert np.abs(whole[:, 1:] - whole[:, :-1]).max() > 0.1  # positions differ


def test_beams_of_a_sentence_share_its_source(made, logits):
    model, variables = made

    @jax.jit
    def first():
        encoded = model.apply(variables, SOURCE, method="encode")
        cache = model.apply(variables, encoded, SOURCE, 2, 3, method="start")
        return model.apply(variables, cache, np.array([2, 7, 2, 7, 2, 7]), 0, method="step")

    found, cache = first()
    assert {leaf.shape[:2] for leaf in jax.tree.leaves(cache["state"])} == {(6, 3)}  # 3 positions are enough
    assert {len(leaf) for leaf in jax.tree.leaves(cache["source"])} == {3}
    assert_close(found[::2], logits(SOURCE, TARGET)[:, 0])
    assert np.abs(found[1::2] - found[::2]).max() > 0.1


def test_no_output_sees_a_later_token_of_the_target(logits):
    before = np.asarray(logits(SOURCE, TARGET))
    for position in range(1, 5):
        changed = TARGET.copy()
        changed[:, position] = 13
        after = np.asarray(logits(SOURCE, changed))
        np.testing.assert_array_equal(after[:, :position], before[:, :position])
        assert (after[:, position] != before[:, position]).any(-1).all()


def test_a_sentence_depends_neither_on_the_others_nor_on_their_padding(logits):
    """To the bit among batches of one shape; in another shape XLA may sum in another order."""
    whole = np.asarray(logits(SOURCE, TARGET))
    source, target = np.flip(SOURCE, 0).copy(), np.flip(TARGET, 0).copy()
    source[1], target[1] = 13, 14
    np.testing.assert_array_equal(np.asarray(logits(source, target))[[2, 0]], whole[[0, 2]])
    alone = logits(SOURCE[:1, :4], TARGET[:1, :4])
    assert_close(alone, whole[:1, :4])
    longer = logits(np.pad(SOURCE, [(0, 0), (0, 3)]), np.pad(TARGET, [(0, 0), (0, 2)]))
    assert_close(longer[:, :5], whole)


def test_every_token_of_the_source_is_read(logits):
    before = np.asarray(logits(SOURCE, TARGET))
    for position in range(4):
        changed = SOURCE.copy()
        changed[0, position] = 13
        after = np.asarray(logits(changed, TARGET))
        assert (after[0] != before[0]).any(-1)[:4].all()
        np.testing.assert_array_equal(after[1:], before[1:])


def test_gradients_reach_all_that_is_read_and_nothing_else(made):
    model, variables = made
    weight = jax.random.normal(jax.random.key(2), (3, 5, 23)) * (TARGET != 0)[..., None]
    grads = jax.jit(jax.grad(lambda v: jnp.sum(model.apply(v, SOURCE, TARGET) * weight)))(variables)["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        # A bias of the keys moves all scores alike, and so no weight.
        assert np.isfinite(leaf).all(), name
        assert np.abs(leaf).max() > 1e-4 or name.endswith("key/bias"), name
    if model.self_mixing == "linear":
        encoder, decoder = (np.asarray(grads[f"{kind}Block_0"]["mixing"]["kernel"]) for kind in ("Encoder", "Decoder"))
        assert not np.tril(decoder, -1).any()
        assert np.triu(decoder)[:4, :4].any()
        assert not encoder[6:].any()
        assert not encoder[:, 6:].any()


@pytest.mark.parametrize(("self_mixing", "millions"), [("linear", 49.1), ("attention", 60.9)])
def test_parameters_of_the_papers_size(self_mixing, millions):
    sizes = dict(vocab_size=32768, max_length=256, num_encoder_layers=6, num_decoder_layers=6, hidden_dim=512)
    model = models.create("Seq2Seq", **sizes, mlp_dim=2048, self_mixing=self_mixing)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 8), int), jnp.ones((1, 8), int))["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    attention, mlp, table = 4 * (512 * 512 + 512), 2 * 512 * 2048 + 2048 + 512, 32768 * 512
    if self_mixing == "attention":
        expected = table + 18 * attention + 12 * mlp + (5 * 6 + 2) * 2 * 512
    else:  # of each sublayer Aff and a layer scale
        expected = table + 12 * (256 * 256 + 256) + 6 * attention + 12 * mlp + 5 * 6 * 3 * 512 + 2 * 2 * 512
    assert count == expected
    assert abs(count / 1e6 - millions) < 0.5


@pytest.mark.parametrize("self_mixing", MIXINGS)
def test_dropout_is_on_in_training_alone(self_mixing):
    sizes = {**TINY, "num_encoder_layers": 1, "num_decoder_layers": 1}
    model = models.create("Seq2Seq", **sizes, num_heads=4, self_mixing=self_mixing, dropout_rate=0.3)
    variables = jax.jit(model.init)(jax.random.key(0), SOURCE, TARGET)
    run = jax.jit(partial(model.apply, variables, SOURCE, TARGET), static_argnums=0)
    draw = lambda seed: run(True, rngs={"dropout": jax.random.key(seed)})
    assert np.abs(draw(0) - draw(1)).max() > 0.1
    np.testing.assert_array_equal(draw(0), draw(0))
    assert np.abs(draw(0) - run(False)).max() > 0.1


def test_bfloat16_computes_roughly_the_same(made, logits):
    model, variables = made
    found = jax.jit(partial(model.clone(dtype="bfloat16").apply, variables))(SOURCE, TARGET)
    assert found.dtype == jnp.float32
    assert np.abs(found - logits(SOURCE, TARGET))[TARGET != 0].max() < 0.1 * np.abs(logits(SOURCE, TARGET)).max()


def test_positions_are_those_of_fairseq_or_learned_or_none():
    table = sinusoids(5, 8)
    turns = 10000 ** (-np.arange(4) / 3)
    angles = np.arange(5)[:, None] * turns[None]
    np.testing.assert_allclose(table, np.concatenate([np.sin(angles), np.cos(angles)], 1), atol=1e-6)
    assert sinusoids(5, 7).shape == (5, 7)
    shapes = lambda **fields: jax.eval_shape(
        models.create("Seq2Seq", **TINY, **fields).init, jax.random.key(0), SOURCE, TARGET
    )["params"]
    assert shapes(positions="learned")["positions"].shape == (9, 16)
    assert "positions" not in shapes()
    assert "positions" not in shapes(positions="none")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"self_mixing": "convolution"}, "self_mixing is 'convolution'; choose from linear, attention"),
        ({"positions": "rotary"}, "positions is 'rotary'; choose from sinusoidal, learned, none"),
        ({"num_heads": 3}, "num_heads is 3, which does not divide hidden_dim 16"),
        ({"max_length": 5}, "a sentence has 6 tokens, and config.model.max_length is 5"),
        ({"max_length": 0}, "max_length is 0; it must be from 1"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(fields, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(models.create("Seq2Seq", **{**TINY, **fields}).init, jax.random.key(0), SOURCE, TARGET)


def test_no_translation_is_longer_than_the_model_knows(made):
    model, variables = made
    with pytest.raises(UserError, match=r"10 tokens, and config\.model\.max_length is 9"):
        jax.eval_shape(lambda: search.translate(model, variables["params"], jnp.asarray(SOURCE), 10))
