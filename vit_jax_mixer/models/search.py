"""Translations by a sequence-to-sequence model: the likeliest token each time, or a beam search.

B sentences, K beams of each, V tokens of the vocabulary, T most tokens of a translation, its EOS counted. All is
pure, of static shapes, and one position a step. The rules are fairseq's (``sequence_generator.py``): padding and BOS
are never chosen, nor EOS as the first token, and the last of T tokens is EOS. A score is the sum of log-probabilities
over a power of the length (`penalties`), EOS counted.

What is searched is a step: (cache, tokens i32[R], position i32[]) -> (logits f32[R, V] of the next token, cache).
Of the cache, ``cache["state"]`` has a row for each of the R = B K that are decoded, those of a sentence side by side.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax_mixer import specs
from vit_jax_mixer.special_tokens import BOS, EOS, PAD
from vit_jax_mixer.specs import Within

Cache = dict[str, Any]
Step = Callable[[Cache, jax.Array, jax.Array], tuple[jax.Array, Cache]]
Penalty = Callable[[Any], Any]  # from lengths, EOS counted, to what the sum of log-probabilities is divided by
Power = Annotated[float, Within(0, 10)]


def by_length(power: Power = 1.0) -> Penalty:
    """``length ** power``: fairseq's; 0 prefers short translations, 1 takes the mean."""
    return lambda length: jnp.asarray(length, jnp.float32) ** power


def gnmt(alpha: Power = 0.6) -> Penalty:
    """``((5 + length) / 6) ** alpha`` (Wu et al. 2016, arXiv 1609.08144, equation 14)."""
    return lambda length: ((5 + jnp.asarray(length, jnp.float32)) / 6) ** alpha


PENALTIES: Mapping[str, Callable[..., Penalty]] = {"length": by_length, "gnmt": gnmt}


def translate(
    model: nn.Module, params: Any, inputs: jax.Array, length: int, beam_size: int = 1, penalty: str = "length(0.6)"
) -> tuple[jax.Array, jax.Array]:
    """Return the best translation that is found, and its score.

    A beam search may lose the greedy translation early, and end with worse ones. So it is made too, and taken
    where its score is better: more beams never give a worse score than one.

    Args:
        model: a `seq2seq.Seq2Seq`, or any that has its four methods.
        params: of the model.
        inputs: sources, i32[B, S], each with EOS and then padding.
        length: T.
        beam_size: K; 1 for the greedy translation.
        penalty: a spec of `PENALTIES`.

    Returns:
        tokens i32[B, T] with EOS, then padding; scores f32[B].
    """
    call: Callable[..., Any] = lambda method, *args: model.apply({"params": params}, *args, method=method)
    divide_by = specs.build(PENALTIES, penalty, "config.task.penalty")
    rows, encoded = inputs.shape[0], call("encode", inputs)  # a symbol, while it is exported
    step = lambda *args: call("step", *args)
    tokens, total = greedy(step, call("start", encoded, inputs, 1, length), rows, length)
    score = total / divide_by(lengths(tokens))
    if beam_size == 1:
        return tokens, score
    found, scores = beam(step, call("start", encoded, inputs, beam_size, length), rows, length, divide_by)
    better = scores[:, 0] >= score
    return jnp.where(better[:, None], found[:, 0], tokens), jnp.where(better, scores[:, 0], score)


def lengths(tokens: jax.Array) -> jax.Array:
    """Return the number of tokens, EOS counted: i32[..., T] -> i32[...]."""
    return jnp.sum(tokens != PAD, axis=-1)


def greedy(step: Step, cache: Cache, rows: int, length: int) -> tuple[jax.Array, jax.Array]:
    """Return (tokens i32[B, T], the sum of their log-probabilities f32[B]), where R = B is ``rows``."""

    def body(carry: Any) -> Any:
        position, cache, last, tokens, total, done = carry
        logits, cache = step(cache, last, position)
        of_next = _log_probabilities(logits, position, length)
        last = jnp.where(done, PAD, jnp.argmax(of_next, -1).astype(jnp.int32))
        total = total + jnp.where(done, 0, jnp.max(of_next, -1))
        return position + 1, cache, last, tokens.at[:, position].set(last), total, done | (last == EOS)

    first = jnp.full(rows, BOS, jnp.int32)
    tokens, done = jnp.full((rows, length), PAD, jnp.int32), jnp.zeros(rows, bool)
    carry = (jnp.int32(0), cache, first, tokens, jnp.zeros(rows), done)
    *_, tokens, total, _ = jax.lax.while_loop(lambda carry: ~carry[-1].all(), body, carry)
    return tokens, total


def beam(step: Step, cache: Cache, rows: int, length: int, penalty: Penalty) -> tuple[jax.Array, jax.Array]:
    """Return translations, best first: (tokens i32[B, K, T], scores f32[B, K]), where B is ``rows``.

    Of 2 K continuations, those among the first K that end are finished, and the first K that do not end go on. A
    sentence is done when K translations are finished. Where fewer can be made, the rest have the score -inf.
    """
    beams = int(jax.tree.leaves(cache["state"])[0].shape[0] // rows)
    sentence = jnp.arange(rows)[:, None]

    def body(carry: Any) -> Any:
        position, cache, last, sums, tokens, finished, scores, count = carry
        logits, cache = step(cache, last.reshape(-1), position)
        of_next = _log_probabilities(logits, position, length).reshape(rows, beams, -1)
        vocabulary = of_next.shape[-1]
        flat = (sums[:, :, None] + of_next).reshape(rows, -1)  # [B, K V]
        # [B, 2 K]. Without the barrier XLA merges the slices below into it, and on CPUs then sorts all K V: a step
        # took six times as long.
        best, where = jax.lax.optimization_barrier(jax.lax.top_k(flat, min(2 * beams, flat.shape[1])))
        parent, token = where // vocabulary, (where % vocabulary).astype(jnp.int32)
        ends = (token == EOS) & (best > -jnp.inf)

        ending = ends[:, :beams] & (count < beams)[:, None]
        slot = jnp.where(ending, count[:, None] + jnp.cumsum(ending, 1) - 1, beams)  # the K-th is dropped
        ended = tokens[sentence, parent[:, :beams]].at[:, :, position].set(EOS)
        finished = finished.at[sentence, slot].set(ended, mode="drop")
        scores = scores.at[sentence, slot].set(best[:, :beams] / penalty(position + 1), mode="drop")
        count = jnp.minimum(count + ending.sum(1), beams)

        on = jnp.argsort(ends, axis=1, stable=True)[:, :beams]  # a beam ends in one way, so K of 2 K go on
        parent, last, sums = (jnp.take_along_axis(x, on, 1) for x in (parent, token, best))
        tokens = tokens[sentence, parent].at[:, :, position].set(last)
        row = (sentence * beams + parent).reshape(-1)
        cache = {**cache, "state": jax.tree.map(lambda x: x[row], cache["state"])}
        return position + 1, cache, last, sums, tokens, finished, scores, count

    def goes_on(carry: Any) -> jax.Array:
        return (carry[0] < length) & (carry[-1] < beams).any()

    nothing = jnp.full((rows, beams, length), PAD, jnp.int32)
    unlikely = jnp.full((rows, beams), -jnp.inf)
    first = jnp.full((rows, beams), BOS, jnp.int32)
    # All beams begin alike: the first alone is continued.
    carry = (jnp.int32(0), cache, first, unlikely.at[:, 0].set(0), nothing, nothing, unlikely, jnp.zeros(rows, int))
    *_, finished, scores, _ = jax.lax.while_loop(goes_on, body, carry)
    order = jnp.argsort(-scores, axis=1, stable=True)
    return finished[sentence, order], jnp.take_along_axis(scores, order, 1)


def _log_probabilities(logits: jax.Array, position: jax.Array, length: int) -> jax.Array:
    """Return the log-probabilities f32[R, V] of the tokens, -inf of those that may not come at that position."""
    token = jnp.arange(logits.shape[-1])
    may = (token != PAD) & (token != BOS) & ((token != EOS) | (position > 0))
    may = jnp.where(position == length - 1, token == EOS, may)
    return jnp.where(may[None], jax.nn.log_softmax(logits.astype(jnp.float32)), -jnp.inf)
