"""Cross-entropy of tokens with smoothed labels, where padding counts for nothing."""

import jax
import jax.numpy as jnp

from vit_jax_mixer.special_tokens import PAD

KINDS = ("fairseq", "uniform")


def label_smoothed(
    logits: jax.Array, targets: jax.Array, epsilon: float, kind: str = "fairseq"
) -> tuple[jax.Array, jax.Array]:
    """Return the smoothed cross-entropy, and the plain one, of each target; both 0 where it is padding.

    Of V classes, 'uniform' gives ``epsilon / V`` to each and the rest to the target (Szegedy et al. 2016, arXiv
    1512.00567, and PyTorch's). 'fairseq' gives ``epsilon / (V - 1)`` to each *other* class, so that ``1 - epsilon`` is
    left to the target: it is 'uniform' with ``epsilon V / (V - 1)``.

    Args:
        logits: f32[..., V].
        targets: i32[...].
        epsilon: how much is smoothed, from 0 to less than 1.
        kind: one of `KINDS`.
    """
    of_tokens = jax.nn.log_softmax(logits)
    plain = -jnp.take_along_axis(of_tokens, targets[..., None], axis=-1)[..., 0]
    classes = logits.shape[-1]
    share = epsilon * (classes / (classes - 1) if kind == "fairseq" else 1.0)  # of the uniform distribution
    smoothed = (1 - share) * plain - share * jnp.mean(of_tokens, axis=-1)
    there = targets != PAD
    return jnp.where(there, smoothed, 0), jnp.where(there, plain, 0)
