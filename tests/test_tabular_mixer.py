import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from tests.helpers import DATA, assert_close
from vit_jax_mixer import models
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models.tabular import Columns, TabularMixer, periodic, piecewise

TINY = dict(num_blocks=2, patch_size=3, hidden_dim=10)


@pytest.fixture(scope="module")
def reference():
    return np.load(DATA / "tabular_mixer_tiny.npz")


def ours(reference, prefix="param/"):
    """Rename the document's parameters, and lay them out as Flax does."""
    dense = lambda name: {"kernel": reference[f"{prefix}{name}.weight"].T, "bias": reference[f"{prefix}{name}.bias"]}
    norm = lambda name: {"scale": reference[f"{prefix}{name}.weight"], "bias": reference[f"{prefix}{name}.bias"]}
    mlp = lambda name: {f"Dense_{k}": dense(f"{name}.fn.linear{k + 1}") for k in range(2)}
    block = lambda i: {
        "LayerNorm_0": norm(f"mixer_layers.{i}.0.norm"),
        "token_mixing": mlp(f"mixer_layers.{i}.0"),
        "LayerNorm_1": norm(f"mixer_layers.{i}.1.norm"),
        "channel_mixing": mlp(f"mixer_layers.{i}.1"),
    }
    return {
        "stem": dense("proj"),
        **{f"MixerBlock_{i}": block(i) for i in range(2)},
        "pre_head_layer_norm": norm("layer_norm"),
        "head": dense("classifier"),
    }


def test_logits_and_loss_are_those_of_the_document(reference):
    model = TabularMixer(num_classes=1, **TINY)
    params = ours(reference)
    rows = reference["features"][..., 0]
    logits = model.apply({"params": params}, rows)
    np.testing.assert_allclose(logits, reference["logits"], atol=1e-5, rtol=0)
    loss = optax.sigmoid_binary_cross_entropy(logits, reference["labels"]).mean()
    np.testing.assert_allclose(loss, reference["loss"], atol=1e-5, rtol=0)
    fresh = jax.eval_shape(model.init, jax.random.key(0), rows)["params"]
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, params)


def test_a_last_patch_that_is_not_full_is_filled_with_zeros(reference):
    model, params = TabularMixer(num_classes=1, **TINY), ours(reference)
    rows = reference["features"][..., 0]
    padded = rows * (np.arange(12) < 10)
    assert_close(model.apply({"params": params}, rows[:, :10]), model.apply({"params": params}, padded))


def test_a_scan_computes_the_same(reference):
    rows = reference["features"][..., 0]
    loop = TabularMixer(num_classes=1, scan=True, **TINY)
    stacked = models.stacked.stack(ours(reference), loop.init(jax.random.key(0), rows)["params"])
    assert_close(loop.apply({"params": stacked}, rows), reference["logits"])


def test_columns_become_vectors_by_their_kind():
    columns = Columns(dim=4, categories=(0, 3, 0, 2), numbers="linear")
    rows = np.array([[0.5, 2, -1.5, 1], [0.5, 9, 2.0, -3]], np.float32)  # the second has codes that are none
    params = columns.init(jax.random.key(0), rows)["params"]
    found = columns.apply({"params": params}, rows)
    assert found.shape == (2, 4, 4)
    number = lambda x, place: x * params["kernel"][place, 0] + params["bias"][place]
    table = params["categories"]  # 3 rows of one column, then 2 of the other
    assert table.shape == (5, 4)
    assert_close(found[0], np.stack([number(0.5, 0), table[2], number(-1.5, 1), table[4]]))
    assert_close(found[1], np.stack([number(0.5, 0), table[2], number(2.0, 1), table[3]]))


def test_piecewise_numbers_are_those_of_the_paper():
    bounds = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    x = np.array([[-0.1, 0.3], [0.5, 1.2]], np.float32)
    expected = (x[..., None] - bounds[:-1]) / np.diff(bounds)
    expected[..., 1:] = np.maximum(expected[..., 1:], 0)
    expected[..., :-1] = np.minimum(expected[..., :-1], 1)
    assert_close(piecewise(4)(None, x), expected)


def test_periodic_numbers_are_those_of_the_paper():
    class Module:
        def param(self, name, init, shape):
            return jnp.asarray([[0.5, 2.0]])

    found = periodic(2)(Module(), jnp.asarray([[0.3]]))
    angles = 2 * np.pi * np.array([0.5, 2.0]) * 0.3
    assert_close(found[0, 0], np.concatenate([np.cos(angles), np.sin(angles)]), 1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"categories": (0, 3), "column_dim": 4}, "give a count for each of the 12 columns"),
        ({"categories": (-1,) * 12, "column_dim": 4}, "give a count for each of the 12 columns"),
        ({"numbers": "sine", "column_dim": 4}, "config.model.numbers: 'sine' is not known"),
        ({"numbers": "piecewise(bins=0)", "column_dim": 4}, "bins is 0"),
        ({"numbers": "piecewise(low=1)", "column_dim": 4}, "low must be less"),
        ({"channels_expansion": 0.01}, "channels_expansion 0.01 of 10 channels leaves no hidden width"),
        ({"tokens_expansion": 0.1}, "tokens_expansion 0.1 of 4 tokens leaves no hidden width"),
    ],
)
def test_sizes_that_make_no_sense_are_one_sentence(fields, message):
    model = models.create("TabularMixer", num_classes=1, **TINY, **fields)
    with pytest.raises(UserError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), np.zeros((2, 12), np.float32))


@pytest.mark.parametrize(
    "fields",
    [
        {"column_dim": 0},
        {"column_dim": 4, "categories": (0, 3, 0, 2, 5), "numbers": "piecewise(4)"},
        {"column_dim": 4, "numbers": "periodic(2)"},
        {"column_dim": 0, "activation": "silu"},
    ],
)
def test_it_is_written_as_onnx(fields):
    onnxruntime = pytest.importorskip("onnxruntime")
    from vit_jax_mixer.export import onnx_graph

    model = TabularMixer(num_classes=2, num_blocks=1, patch_size=3, hidden_dim=8, **fields)
    rng = np.random.default_rng(0)
    rows = rng.integers(-2, 7, (4, 5)).astype(np.float32)  # some are no codes
    params = jax.jit(model.init)(jax.random.key(0), rows)["params"]
    weights = {name: value + rng.normal(size=value.shape).astype("f") for name, value in flatten_dict(params).items()}
    named = {"/".join(name): value for name, value in weights.items()}
    outputs = lambda flat, x: {"y": model.apply({"params": unflatten_dict(flat, sep="/")}, x)}
    graph = onnx_graph.convert(outputs, named, "rows", jax.ShapeDtypeStruct((5,), np.float32))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    assert_close(session.run(None, {"rows": rows})[0], jax.jit(outputs)(named, rows)["y"])
