"""Learning rates that differ between parameters: by name, by depth, and none at all for what is frozen."""

import json
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax_mixer.classes import few
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models import stacked

Tree = Any
MOST = 1e6  # times the learning rate
_WHERE = "config.optim.rates"
_BLOCK = re.compile(r"(?:^|/)(\w*Block)_(\d+)/")
_BEFORE = re.compile(r"(?:^|/)(stem|columns|inception)/")  # what comes before the first block


def by_parameter(
    optimizer: optax.GradientTransformation, rates: str, layer_decay: float
) -> optax.GradientTransformation:
    """Return the optimizer with its learning rate times a number of each parameter's own.

    Its state stays as it is. Where the number is 0 the parameter is frozen: its gradient counts in no
    norm, and neither update nor decay changes a bit of it.

    Args:
        optimizer: gives updates that are proportional to the learning rate.
        rates: as `parse` reads it; '' for none.
        layer_decay: as `by_depth` has it; 1 for none.

    Raises:
        UserError: ``rates`` is wrong in itself; `init` raises it where parameters do not fit.
    """
    if not rates and layer_decay == 1:
        return optimizer
    patterns = parse(rates)

    def multiples(params: Tree) -> Tree:
        """Return what the rate is multiplied with, f32[] for each leaf; f32[L, 1, ...] where blocks of one differ."""
        paths, structure = jax.tree.flatten_with_path(params)
        names = [stacked.published_names(path, leaf.shape) for path, leaf in paths]
        every = [name for of_leaf in names for name in of_leaf]
        factors = dict(zip(every, by_name(every, patterns) * by_depth(every, layer_decay), strict=True))

        def of_leaf(names: Sequence[str], leaf: Any) -> np.ndarray:
            own = np.array([factors[name] for name in names], np.float32)
            return own[0] if len(set(own)) == 1 else own.reshape(-1, *[1] * (leaf.ndim - 1))

        return jax.tree.unflatten(
            structure, [of_leaf(*one) for one in zip(names, jax.tree.leaves(params), strict=True)]
        )

    def init(params: Tree) -> optax.OptState:
        multiples(params)  # what is wrong with it is said at once
        return optimizer.init(params)

    def update(updates: Tree, state: optax.OptState, params: Tree = None) -> tuple[Tree, optax.OptState]:
        factors = multiples(params)
        updates, state = optimizer.update(jax.tree.map(_thawed, factors, updates), state, params)
        return jax.tree.map(_times, factors, updates), state

    return optax.GradientTransformation(init, update)


def _thawed(factor: np.ndarray, grad: jax.Array) -> jax.Array:
    return jnp.where(factor == 0, 0, grad)


def _times(factor: np.ndarray, update: jax.Array) -> jax.Array:
    # Minus zero, since -0.0 + 0.0 is 0.0.
    return jnp.where(factor == 0, -0.0, update * factor.astype(update.dtype))


def parse(rates: str) -> list[tuple[str, float]]:
    """Return the pairs of a JSON object of regular expressions and numbers, as ``{"^head": 10, "^stem": 0}``."""
    if not rates:
        return []
    try:
        pairs = json.loads(rates, object_pairs_hook=lambda pairs: pairs)
    except (ValueError, RecursionError):
        pairs = None
    if not isinstance(pairs, list) or not pairs or not all(isinstance(pair, tuple) for pair in pairs):
        example = '{"^head": 10, "^stem": 0}'
        raise UserError(f"{_WHERE} is {rates[:80]!r}; it must be regular expressions with numbers, as {example}.")
    for pattern, factor in pairs:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"{_WHERE}: {pattern!r} is no regular expression ({error}).") from error
        if type(factor) not in (int, float) or not 0 <= factor <= MOST:
            raise UserError(
                f"{_WHERE}: {pattern!r} has {str(factor)[:40]}; it must have a number from 0 to {MOST:,.0f}."
            )
    if len({pattern for pattern, _ in pairs}) < len(pairs):
        raise UserError(f"{_WHERE} has a regular expression twice; leave one out.")
    return [(pattern, float(factor)) for pattern, factor in pairs]


def by_name(names: Sequence[str], patterns: Sequence[tuple[str, float]]) -> np.ndarray:
    """Return the number of each parameter: that of the first pattern that is found in its name, or 1.

    Raises:
        UserError: a pattern decides about no parameter, or all are frozen.
    """
    chosen = [next((i for i, (p, _) in enumerate(patterns) if re.search(p, name)), None) for name in names]
    for i, (pattern, _) in enumerate(patterns):
        if i not in chosen:
            why = "is found only where one before it is" if any(re.search(pattern, n) for n in names) else "is in none"
            raise UserError(f"{_WHERE}: {pattern!r} {why} of the parameters' names: {few(sorted(names))}; change it.")
    factors = np.array([1.0 if i is None else patterns[i][1] for i in chosen])
    if not factors.any():
        raise UserError(f"{_WHERE} freezes every parameter, so there is nothing to train; leave out some.")
    return factors


def by_depth(names: Sequence[str], decay: float) -> np.ndarray:
    """Return layer-wise decay as BEiT has it (Bao et al. 2021, arXiv 2106.08254).

    ``decay ** (L - i)`` for the blocks ``NAMEBlock_i`` of L, ``decay ** (L + 1)`` for what comes before
    them, and 1 for what comes after. Blocks of another kind, of which there are fewer, come before.

    Raises:
        UserError: there are no blocks.
    """
    if decay == 1:
        return np.ones(len(names))
    blocks = [_BLOCK.search(name) for name in names]
    depths: dict[str, int] = {}
    for block in blocks:
        if block:
            depths[block[1]] = max(depths.get(block[1], 0), int(block[2]) + 1)
    if not depths:
        raise UserError(
            f"config.optim.layer_decay is {decay}, and the model has no blocks, as MixerBlock_0, among its "
            f"parameters: {few(sorted(names))}; leave it at 1."
        )
    main = max(depths, key=lambda kind: depths[kind])
    powers = np.zeros(len(names))
    for n, (name, block) in enumerate(zip(names, blocks, strict=True)):
        if block and block[1] == main:
            powers[n] = depths[main] - int(block[2])
        elif block or _BEFORE.search(name):
            powers[n] = depths[main] + 1
    return np.maximum(decay**powers, 1e-30)  # which float32 does not take for 0, that is for frozen
