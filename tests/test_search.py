from functools import partial

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import DATA, assert_close
from vit_jax_mixer import models, specs
from vit_jax_mixer.models import search
from vit_jax_mixer.special_tokens import BOS, EOS, PAD

REFERENCE = np.load(DATA / "seq2seq_reference.npz")
# Its tokens are bos 0, pad 1, eos 2, unk 3 and others, and a sentence begins with eos; each of ours, by its number:
OURS = np.array([4, PAD, EOS, 1, 5, 6, 7])
LENGTH = 6


def toy():
    """Return the reference's table, f32[sentence, position, previous token, next token], of our tokens."""
    table = np.full((3, 7, 8, 8), -1e9, np.float32)
    table[:, :, OURS[:, None], OURS] = REFERENCE["beam/table"]
    table[:, :, BOS] = table[:, :, EOS]
    return table


TABLE = toy()


def step(cache, tokens, position):
    return jnp.asarray(TABLE)[cache["state"], position, tokens], cache


def penalty(spec):
    return specs.build(search.PENALTIES, spec, "penalty")


@partial(jax.jit, static_argnums=(0, 1))
def beam(size, spec):
    cache = {"state": jnp.repeat(jnp.arange(3), size)}
    return search.beam(step, cache, 3, LENGTH, penalty(spec))


@jax.jit
def greedy():
    return search.greedy(step, {"state": jnp.arange(3)}, 3, LENGTH)


def ours(tokens):
    """Return tokens of the reference as ours, which is -1 or pad where there are none."""
    return np.where(tokens < 0, PAD, OURS[np.maximum(tokens, 0)])


@pytest.mark.parametrize("size", [1, 2, 4, 6])
@pytest.mark.parametrize("power", ["1", "0.6", "0"])
def test_beam_search_on_a_table_is_that_of_fairseq(size, power):
    tokens, scores = beam(size, f"length({power})")
    of = lambda name: REFERENCE[f"beam/size_{size}/lenpen_{power}/{name}"]
    np.testing.assert_array_equal(tokens, ours(of("tokens")))
    assert_close(scores, of("scores"))
    np.testing.assert_array_equal(search.lengths(tokens), of("lengths"))


@pytest.mark.parametrize("spec", ["length(1)", "length(0.6)", "length(0)", "gnmt(0.6)", "gnmt(1)"])
def test_with_a_beam_for_each_sentence_the_search_finds_the_best(spec):
    name, power = spec.rstrip(")").split("(")
    exact = f"beam/exact/{'lenpen' if name == 'length' else 'gnmt'}_{power}"
    tokens, scores = beam(4000, spec)  # of five words there are 3905 sentences of at most five
    np.testing.assert_array_equal(tokens[:, 0], ours(REFERENCE[f"{exact}/tokens"]))
    assert_close(scores[:, 0], REFERENCE[f"{exact}/score"].astype(np.float32))


@pytest.mark.parametrize("power", ["0.6", "1"])
def test_length_penalties_are_those_of_fairseq_and_of_gnmt(power):
    lengths = REFERENCE["length_penalty/lengths_with_eos"]
    assert_close(penalty(f"length({power})")(lengths), REFERENCE[f"length_penalty/fairseq_{power}"].astype(np.float32))
    assert_close(penalty(f"gnmt({power})")(lengths), REFERENCE[f"length_penalty/gnmt_{power}"].astype(np.float32))


def test_one_beam_is_the_greedy_search():
    tokens, total = greedy()
    np.testing.assert_array_equal(tokens, ours(REFERENCE["beam/greedy/tokens"]))
    found, scores = beam(1, "length(0)")
    np.testing.assert_array_equal(found[:, 0], tokens)
    np.testing.assert_array_equal(scores[:, 0], total)


class Table(nn.Module):
    """A model that is a table of logits; a sentence is i32[1], its number there."""

    def encode(self, inputs):
        return inputs[:, 0]

    def start(self, encoded, inputs, beams, length):
        return {"state": jnp.repeat(encoded, beams)}

    def step(self, cache, tokens, position):
        table = self.get_variable("params", "table")
        return table[cache["state"], position, tokens], cache


def test_more_beams_never_give_a_worse_score_than_one():
    count = 300
    table = 3 * np.random.default_rng(0).normal(size=(count, LENGTH, 9, 9)).astype(np.float32)
    table[..., EOS] -= 2
    inputs, spec = jnp.arange(count)[:, None], "length(1)"

    @partial(jax.jit, static_argnums=0)
    def scores(size):
        return search.translate(Table(), {"table": jnp.asarray(table)}, inputs, LENGTH, size, spec)

    tokens, one = scores(1)
    _, two = scores(2)
    step = lambda cache, tokens, position: (jnp.asarray(table)[cache["state"], position, tokens], cache)
    alone = search.beam(step, {"state": jnp.repeat(jnp.arange(count), 2)}, count, LENGTH, penalty(spec))[1][:, 0]
    assert (two >= one).all()
    assert (two > one).sum() > 20
    assert (alone < one).sum() > 3  # without the greedy translation it would
    assert (np.asarray(tokens)[np.arange(count), search.lengths(tokens) - 1] == EOS).all()


SOURCE = np.array([[5, 6, 7, 3, 0, 0], [8, 9, 10, 11, 12, 3], [13, 3, 0, 0, 0, 0]], np.int32)


SEEDS = {"linear": 5, "attention": 12}  # of parameters whose translations are of several lengths


@pytest.fixture(scope="module", params=["linear", pytest.param("attention", marks=pytest.mark.slow)])
def made(request):
    """Return (model, parameters, a function from size and sources to translations)."""
    sizes = dict(vocab_size=23, num_encoder_layers=1, num_decoder_layers=1, hidden_dim=16, mlp_dim=24, num_heads=4)
    model = models.create("Seq2Seq", **sizes, max_length=9, self_mixing=request.param)
    params = jax.jit(model.init)(jax.random.key(0), SOURCE, SOURCE)["params"]
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(SEEDS[request.param])
    params = jax.tree.unflatten(structure, [leaf + 0.3 * rng.normal(size=leaf.shape).astype("f") for leaf in leaves])
    run = lambda size, source: search.translate(model, params, source, 8, size, "gnmt(0.6)")
    return model, params, jax.jit(run, static_argnums=0)


@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_translation_has_the_score_that_the_whole_model_gives_it(made, size):
    model, params, run = made
    tokens, scores = map(np.asarray, run(size, SOURCE))
    inputs = np.concatenate([np.full((3, 1), BOS), tokens[:, :-1]], 1)
    of_all = np.asarray(jax.nn.log_softmax(jax.jit(model.apply)({"params": params}, SOURCE, inputs)))
    of_tokens = np.take_along_axis(of_all, tokens[..., None], 2)[..., 0]
    lengths = (tokens != PAD).sum(1)
    assert_close(scores, (of_tokens * (tokens != PAD)).sum(1) / penalty("gnmt(0.6)")(lengths))
    assert len(set(lengths.tolist())) > 1  # some end early
    if size == 1:
        free = (np.arange(8)[None] < lengths[:, None]) & (np.arange(8)[None] > 0) & (np.arange(8)[None] < 7)
        np.testing.assert_array_equal(tokens[free], (np.argmax(of_all[..., EOS:], -1) + EOS)[free])


@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_translation_depends_on_its_own_sentence_alone(made, size):
    """To the bit, in a batch of one shape; `test_seq2seq` has what padding changes."""
    _, _, run = made
    others = np.array([[14, 15, 16, 17, 18, 3], SOURCE[0], [3, 0, 0, 0, 0, 0]], np.int32)
    for before, after in zip(run(size, SOURCE), run(size, others), strict=True):
        np.testing.assert_array_equal(after[1], before[0])


def test_a_program_of_it_takes_any_number_of_sentences(made):
    model, params, run = made
    function = jax.jit(lambda params, source: search.translate(model, params, source, 8, 3, "gnmt(0.6)"))
    (rows,) = jax.export.symbolic_shape("b")
    program = jax.export.export(function)(params, jax.ShapeDtypeStruct((rows, 6), np.int32))
    for found, expected in zip(program.call(params, SOURCE[:2]), run(3, SOURCE), strict=True):
        assert_close(found, np.asarray(expected)[:2])
