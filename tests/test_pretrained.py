import jax
import numpy as np
import pytest

from tests.helpers import DATA, assert_same, nested
from vit_jax_mixer import pretrained
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models.mixer import MlpMixer

PATH = DATA / "mixer_tiny_params.npz"
TINY = dict(num_blocks=2, patch_size=8, hidden_dim=24, tokens_mlp_dim=10, channels_mlp_dim=36)


def fresh(size=32, **fields):
    model = MlpMixer(num_classes=3, **{**TINY, **fields})
    return model.init(jax.random.key(0), np.zeros((1, size, size, 3), np.float32))["params"]


def fill(params):
    return pretrained.fill(params, pretrained.load(PATH), new=("head",), where="file.npz")


def test_loading_gives_the_files_arrays():
    assert_same(pretrained.load(PATH), nested(np.load(PATH)))


def test_filling_takes_all_but_the_head():
    params, loaded = fresh(), pretrained.load(PATH)
    filled = fill(params)
    assert_same(filled.pop("head"), params["head"])
    loaded.pop("head")
    assert_same(filled, loaded)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (dict(size=64), r"token_mixing/Dense_0/kernel has shape \(16, 10\) in the file and \(64, 10\) in the model"),
        (dict(num_blocks=3), "MixerBlock_2/.* is missing in the file"),
        (dict(num_blocks=1), "MixerBlock_1/.* is not in the model"),
    ],
)
def test_parameters_that_do_not_fit_are_named(params, message):
    with pytest.raises(UserError, match=message):
        fill(fresh(**params))


def test_files_that_are_no_checkpoint_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        pretrained.load(tmp_path / "absent.npz")
    path = tmp_path / "x.npz"
    for data in (b"", b"<html>", PATH.read_bytes()[:5000]):
        path.write_bytes(data)
        with pytest.raises(UserError, match=rf"{path} is not an \.npz file"):
            pretrained.load(path)
    np.savez(path, labels=np.arange(3))
    with pytest.raises(UserError, match="labels has type int64, not float"):
        pretrained.load(path)
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(UserError, match=r"is not an \.npz file"):
        pretrained.load(tmp_path / "x.npy")


def test_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path / "exploded").touch, ()

    np.savez(tmp_path / "x.npz", stem=np.array([Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"is not an \.npz file"):
        pretrained.load(tmp_path / "x.npz")
    assert not (tmp_path / "exploded").exists()
