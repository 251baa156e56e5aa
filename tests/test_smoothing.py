import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import DATA, assert_close
from vit_jax_mixer.tasks.smoothing import label_smoothed


@pytest.fixture(scope="module")
def reference():
    """Return the file, its logits and targets, where padding, 1 there, is 0 as ours: classes 0 and 1 change places."""
    found = np.load(DATA / "seq2seq_reference.npz")
    targets = found["smoothing/targets"]
    swapped = np.array([1, 0, *range(2, 11)])
    return found, jnp.asarray(found["smoothing/logits"][..., swapped]), jnp.asarray(swapped[targets]), swapped


@pytest.mark.parametrize("epsilon", ["0.1", "0"])
def test_smoothing_is_fairseqs_and_padding_counts_for_nothing(reference, epsilon):
    found, logits, targets, swapped = reference
    of = lambda name: found[f"smoothing/eps_{epsilon}/{name}"]
    smoothed, plain = label_smoothed(logits, targets, float(epsilon))
    assert_close(smoothed.sum(), of("sum"))
    assert_close(plain.sum(), of("nll_sum"))
    tokens = found["smoothing/tokens"]
    assert_close(smoothed.sum() / tokens, of("mean_over_tokens"))
    assert (targets != 0).sum() == tokens
    assert not smoothed[targets == 0].any()
    grad = jax.grad(lambda logits: label_smoothed(logits, targets, float(epsilon))[0].sum())(logits)
    assert_close(grad, of("grad_of_sum")[..., swapped])
    assert not grad[targets == 0].any()


def test_the_uniform_kind_is_that_of_pytorch(reference):
    found, logits, targets, _ = reference
    smoothed, _ = label_smoothed(logits, targets, 0.1, "uniform")
    assert_close(smoothed.sum(), found["smoothing/uniform_over_all_classes_eps_0.1/sum"])
