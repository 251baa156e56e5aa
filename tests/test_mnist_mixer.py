import jax
import numpy as np
import optax
import pytest

from tests.helpers import DATA, assert_close
from vit_jax_mixer.models.mnist_mixer import MnistMixer


@pytest.fixture(scope="module")
def reference():
    return np.load(DATA / "mnist_mixer_tiny.npz")


def ours(reference, prefix):
    """Rename the document's PyTorch parameters, and lay them out as Flax does."""

    def dense(name):
        return {"kernel": reference[f"{prefix}{name}.weight"].T, "bias": reference[f"{prefix}{name}.bias"]}

    def norm(name):
        return {"scale": reference[f"{prefix}{name}.weight"], "bias": reference[f"{prefix}{name}.bias"]}

    def block(i):
        mlp = lambda j: {f"Dense_{k}": dense(f"mixers.{i}.mlp{j}.fc{k + 1}") for k in range(2)}
        return {
            "LayerNorm_0": norm(f"mixers.{i}.ln1"),
            "channel_mixing": mlp(1),
            "LayerNorm_1": norm(f"mixers.{i}.ln2"),
            "token_mixing": mlp(2),
        }

    stem = reference[f"{prefix}patch_embedding.weight"].transpose(2, 3, 1, 0)  # OIHW -> HWIO
    return {
        "stem": {"kernel": stem, "bias": reference[f"{prefix}patch_embedding.bias"]},
        "MnistMixerBlock_0": block(0),
        "MnistMixerBlock_1": block(1),
        "head": {f"Dense_{k}": dense(f"clf.{2 * k}") for k in range(3)},
    }


def test_logits_loss_and_gradients_are_those_of_the_document(reference):
    model = MnistMixer(num_classes=10, num_blocks=2, hidden_dim=12, mlp_dim=9, head_dim=14)
    images = reference["images_nchw"].transpose(0, 2, 3, 1)

    def loss(params):
        logits = model.apply({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, reference["labels"]).mean(), logits

    (value, logits), grads = jax.value_and_grad(loss, has_aux=True)(ours(reference, "param/"))
    assert_close(logits, reference["logits"])
    assert_close(value, reference["loss"])
    assert_close(grads, ours(reference, "grad/"))


def test_it_has_the_documents_number_of_parameters():
    shapes = jax.eval_shape(MnistMixer(num_classes=10).init, jax.random.key(0), np.zeros((1, 28, 28, 1), np.float32))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 1_379_578


def test_its_blocks_have_a_name_of_their_own_and_offer_tokens_as_all_models_do():
    model = MnistMixer(num_classes=10, num_blocks=2, hidden_dim=12)
    images = np.zeros((3, 28, 28, 1), np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert set(variables["params"]) == {"stem", "MnistMixerBlock_0", "MnistMixerBlock_1", "head"}
    _, state = jax.eval_shape(lambda params: model.apply({"params": params}, images, mutable=True), variables["params"])
    assert {name: kept.shape for name, kept in state["intermediates"].items()} == {
        "block_0": (3, 16, 12),  # [B, N, C]
        "block_1": (3, 16, 12),
        "pre_logits": (3, 16 * 12),
    }
