import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from tests.helpers import DATA, assert_same, nested
from vit_jax_mixer import pretrained
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models.mixer import MlpMixer
from vit_jax_mixer.pretrained import resize
from vit_jax_mixer.run.checkpoint import Checkpoints
from vit_jax_mixer.tasks.base import TrainState

PATH = DATA / "mixer_tiny_params.npz"
TINY = dict(num_blocks=2, patch_size=8, hidden_dim=24, tokens_mlp_dim=10, channels_mlp_dim=36)


def fresh(size=32, **fields):
    model = MlpMixer(num_classes=3, **{**TINY, **fields})
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, size, size, 3), np.float32))["params"]
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def fill(params):
    return pretrained.fill(params, pretrained.load(PATH), new=("head",), where="file.npz")


def test_loading_gives_the_files_arrays():
    assert_same(pretrained.load(PATH), nested(np.load(PATH)))


def test_the_official_and_timms_file_of_one_model_load_alike():
    official = pretrained.load(DATA / "resmlp_tiny.pth")
    assert "ResMlpBlock_0" in official
    assert_same(official, pretrained.load(DATA / "resmlp_tiny_timm.safetensors"))


def test_a_tree_of_ours_without_a_published_family_is_read(tmp_path):
    np.savez(tmp_path / "a.npz", **{"Dense_0/kernel": np.ones((2, 3), np.float32)})
    assert_same(pretrained.load(tmp_path / "a.npz"), {"Dense_0": {"kernel": np.ones((2, 3), np.float32)}})
    np.savez(tmp_path / "a.npz", weight=np.ones(3))
    with pytest.raises(UserError, match="no family known"):
        pretrained.load(tmp_path / "a.npz")
    for names in (("x", "x/y/z"), ("x/y/z", "x")):
        np.savez(tmp_path / "a.npz", **{name: np.ones(3) for name in names})
        with pytest.raises(UserError, match="x is a parameter, and also the beginning of others"):
            pretrained.load(tmp_path / "a.npz")


@pytest.mark.parametrize("metric", ["", "test/accuracy", "test/loss"])
def test_a_workdirs_best_or_newest_checkpoint_is_loaded(tmp_path, metric):
    loaded = pretrained.load(PATH)
    trees = {step: jax.tree.map(lambda x, step=step: jnp.asarray(x + step), loaded) for step in (1, 2, 3)}
    checkpoints = Checkpoints(tmp_path, every=1, keep=2, best=metric)
    for step, params in trees.items():
        state = TrainState(jnp.int32(step), params, optax.adam(1e-3).init(params), (), ())
        checkpoints.save(
            step, state, {"test/accuracy": [0, 0.1, 0.9, 0.5][step], "test/loss": [0, 3.0, 1.0, 2.0][step]}
        )
    checkpoints.close()
    (tmp_path / "config.json").write_text(f'{{"checkpoint": {{"best": "{metric}"}}}}')
    expected = trees[2 if metric else 3]
    assert_same(pretrained.load(tmp_path), expected)
    assert_same(pretrained.load(tmp_path / "checkpoints"), expected)
    assert_same(pretrained.load(tmp_path / "checkpoints/3"), trees[3])
    assert_same(pretrained.load(tmp_path / "checkpoints/3/default"), trees[3])


def test_filling_takes_all_but_the_head():
    params, loaded = fresh(), pretrained.load(PATH)
    filled = fill(params)
    assert_same(filled.pop("head"), params["head"])
    loaded.pop("head")
    assert_same(filled, loaded)


def test_filling_takes_other_floats_to_the_models(tmp_path):
    with np.load(PATH) as file:
        np.savez(tmp_path / "a.npz", **{name: file[name].astype(np.float64) for name in file.files})
        half = {name: file[name].astype(ml_dtypes.bfloat16) for name in file.files}
    assert_same(pretrained.fill(fresh(), pretrained.load(tmp_path / "a.npz"), new=("head",), where=""), fill(fresh()))
    np.savez(tmp_path / "a.npz", **half)  # NumPy writes them as |V2
    filled = pretrained.fill(fresh(), pretrained.load(tmp_path / "a.npz"), new=("head",), where="")
    assert filled["stem"]["kernel"].dtype == np.float32
    np.testing.assert_array_equal(filled["stem"]["kernel"], half["stem/kernel"].astype(np.float32))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (dict(size=64), r"token_mixing/Dense_0/kernel +\(16, 10\) +\(64, 10\)$"),
        (dict(num_blocks=3), r"12 of 40 parameters are .*\n  parameter .*\n  MixerBlock_2/\S+ +absent +\(24,\)$"),
        (dict(num_blocks=1), r"MixerBlock_1/LayerNorm_0/bias +\(24,\) +absent$"),
        (dict(num_blocks=6), r"\n  \.\.\. and 28 more$"),
    ],
)
def test_parameters_that_do_not_fit_are_in_one_table(params, message):
    with pytest.raises(UserError, match=rf"(?ms)^file\.npz does not fit config\.model: .*{message}") as error:
        fill(fresh(**params))
    sentence, header, *rows = str(error.value).splitlines()
    hint = f", {resize.HINT}" if "size" in params else ""  # only the number of tokens differs
    assert sentence.endswith(f"choose the model or image size it has{hint}.")
    assert len(rows) <= 21
    column = header.index("in the file")
    assert all(row[column - 1] == " " != row[column] for row in rows if "more" not in row)


def test_files_that_are_no_checkpoint_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        pretrained.load(tmp_path / "absent.npz")
    path = tmp_path / "x.npz"
    for data in (b"abc", PATH.read_bytes()[:5000]):
        path.write_bytes(data)
        with pytest.raises(UserError, match=rf"{path} is not an \.npz file"):
            pretrained.load(path)
    np.savez(path, labels=np.arange(3))
    with pytest.raises(UserError, match="labels has type int64, not float"):
        pretrained.load(path)
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(UserError, match=r"not a file of weights by its suffix; known are \.npz, \.safetensors,"):
        pretrained.load(tmp_path / "x.npy")


def test_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path / "exploded").touch, ()

    np.savez(tmp_path / "x.npz", stem=np.array([Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="stem has type object, not float"):
        pretrained.load(tmp_path / "x.npz")
    assert not (tmp_path / "exploded").exists()
