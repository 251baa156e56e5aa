"""Where a step takes its gradient: beside the parameters, where the loss is higher (``config.sharpness``).

SAM and its kin look for parameters whose whole neighbourhood has a low loss. Gradients here are those of
the whole batch, over all devices and accumulation steps, and so is the perturbation (the papers' code
perturbs each device by its own rows). Both gradients of a step have the same dropout. The optimizer gets what
comes out, and `Aux` and the loss are of the unperturbed parameters, but for `s2sam`.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vit_jax_mixer import specs
from vit_jax_mixer.specs import Rate, Within
from vit_jax_mixer.tasks.base import Aux, Tree

Radius = Annotated[float, Within(0, 1000)]
Gradient = tuple[tuple[jax.Array, Aux], Tree]  # ((loss, aux), gradient) of the whole batch
SMALLEST = 1e-12  # added to norms, as in the authors' code: a gradient of zero perturbs nothing


class Gradients(NamedTuple):
    """What a rule may ask of the step, both as functions of the parameters and the same on all devices."""

    mean: Callable[[Tree], Gradient]
    squares: Callable[[Tree], Tree]  # the mean over the batch's examples of each one's squared gradient


class Sharpness(NamedTuple):
    """A rule, and what it remembers from step to step."""

    init: Callable[[Tree], Tree]  # from parameters to the memory before the first step
    # (gradients, parameters, memory, updates made) -> (what the optimizer gets, memory)
    gradient: Callable[[Gradients, Tree, Tree, jax.Array], tuple[Gradient, Tree]]


def parse(spec: str, share: optax.Schedule) -> Sharpness | None:
    """Return the rule of ``config.sharpness``, a spec of `RULES`; None for ''.

    Args:
        spec: as ``sam(rho=0.05)``.
        share: by step, the learning rate as a share of the highest.

    Raises:
        UserError: it is not known, or an argument makes no sense.
    """
    return specs.build(RULES, spec, "config.sharpness", share=share) if spec else None


def sam(share: optax.Schedule, *, rho: Radius, adaptive: bool = False) -> Sharpness:
    """SAM (Foret et al. 2021, arXiv 2010.01412, equation 2 and algorithm 1); two gradients a step.

    Args:
        share: is not read.
        rho: the distance at which the gradient is taken.
        adaptive: ASAM (Kwon et al. 2021, arXiv 2102.11600): distances in
            multiples of each parameter's size, with a ``rho`` of about ten times as much.
    """
    del share

    def gradient(gradients: Gradients, params: Tree, memory: Tree, count: jax.Array) -> tuple[Gradient, Tree]:
        value, grads = gradients.mean(params)
        return (value, gradients.mean(perturbed(params, grads, rho, adaptive=adaptive))[1]), memory

    return Sharpness(lambda params: (), gradient)


def gsam(
    share: optax.Schedule, *, rho: Radius, rho_min: Radius = 0.0, alpha: Annotated[float, Within(0, 100)]
) -> Sharpness:
    """GSAM (Zhuang et al. 2022, arXiv 2203.08065, algorithm 1); two gradients a step.

    From SAM's gradient, ``alpha`` times that part of the plain one is taken which is orthogonal to it:
    so the gap between the two losses falls, and the perturbed loss does not rise.

    Args:
        share: with which the distance falls from ``rho`` to ``rho_min``.
        rho: the distance at the highest learning rate.
        rho_min: where the learning rate is 0.
        alpha: see above.
    """

    def gradient(gradients: Gradients, params: Tree, memory: Tree, count: jax.Array) -> tuple[Gradient, Tree]:
        value, plain = gradients.mean(params)
        distance = rho_min + (rho - rho_min) * share(count)
        _, grads = gradients.mean(perturbed(params, plain, distance))
        along = optax.tree.vdot(plain, grads) / (optax.tree.vdot(grads, grads) + SMALLEST**2)
        return (value, jax.tree.map(lambda g, p: g - alpha * (p - along * g), grads, plain)), memory

    return Sharpness(lambda params: (), gradient)


def ssam(
    share: optax.Schedule, *, rho: Radius, sparsity: Rate = 0.5, every: Annotated[int, Within(0, 2**31 - 1)] = 0
) -> Sharpness:
    """Sparse SAM with a Fisher mask (Mi et al. 2022, arXiv 2210.05177, SSAM-F).

    SAM that perturbs only the parameters with the most Fisher information: the mean of their squared
    gradients of single examples. That is of all examples of the batch, one at a time, so the step that makes
    the mask takes long.

    Args:
        share: is not read.
        rho: the distance, before the mask takes its part of it.
        sparsity: share of the parameters that are not perturbed.
        every: steps between two masks; 0 for one that is made in the first step and stays.
    """
    del share

    def gradient(gradients: Gradients, params: Tree, memory: Tree, count: jax.Array) -> tuple[Gradient, Tree]:
        due = count % every == 0 if every else count == 0
        mask = jax.lax.cond(due, lambda: largest(gradients.squares(params), 1 - sparsity), lambda: memory)
        value, grads = gradients.mean(params)
        _, grads = gradients.mean(perturbed(params, grads, rho, mask=mask))
        return (value, grads), mask

    return Sharpness(lambda params: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), params), gradient)


def s2sam(share: optax.Schedule, *, rho: Radius) -> Sharpness:
    """Single-step S2-SAM (Ji et al. 2024, NeurIPS): SAM at the price of a plain step.

    The gradient of the step before, itself taken beside the parameters, is the direction; the first step has
    none. Loss and metrics are those of the perturbed parameters.

    Args:
        share: is not read.
        rho: the distance at which the gradient is taken.
    """
    del share

    def gradient(gradients: Gradients, params: Tree, memory: Tree, count: jax.Array) -> tuple[Gradient, Tree]:
        value, grads = gradients.mean(perturbed(params, memory, rho))
        return (value, grads), grads

    return Sharpness(lambda params: jax.tree.map(jnp.zeros_like, params), gradient)


def perturbed(params: Tree, grads: Tree, rho: Any, *, adaptive: bool = False, mask: Tree | None = None) -> Tree:
    """Return the parameters, moved by ``rho`` in the direction of the gradient, where the mask lets them."""
    by_size = lambda tree: jax.tree.map(lambda x, w: x * jnp.abs(w), tree, params) if adaptive else tree
    factor = rho / (optax.tree.norm(by_size(grads)) + SMALLEST)
    steps = by_size(by_size(grads))
    if mask is not None:
        steps = jax.tree.map(lambda step, open: jnp.where(open, step, 0), steps, mask)
    return jax.tree.map(lambda w, step: w + (factor * step).astype(w.dtype), params, steps)


def largest(tree: Tree, share: float) -> Tree:
    """Return a tree of bools: where are the largest of all numbers, of which none is negative; zeros never are.

    The bits of such floats, as integers, have their order. So bisection finds the smallest of the largest,
    by sums alone: nothing is sorted or gathered, wherever the parts of the tree lie. Equals are in together.
    """
    bits = jax.tree.map(lambda x: jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32), tree)
    wanted = round(share * sum(leaf.size for leaf in jax.tree.leaves(bits)))

    def halve(_: Any, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds  # so many are at least low, and fewer are at least high
        middle = low + (high - low) // 2
        enough = sum(jnp.sum(leaf >= middle) for leaf in jax.tree.leaves(bits)) >= wanted
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    beyond_infinity = 0x7F800001
    low, _ = jax.lax.fori_loop(0, 31, halve, (jnp.int32(0), jnp.int32(beyond_infinity)))
    return jax.tree.map(lambda leaf: (leaf >= low) & (leaf > 0), bits)


# (share=learning rate by step as a share of the highest, ...) -> rule
RULES: Mapping[str, Callable[..., Sharpness]] = {"sam": sam, "gsam": gsam, "ssam": ssam, "s2sam": s2sam}
