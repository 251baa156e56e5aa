"""Curvature, slices and frequencies against exact ones."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.helpers import DATA, assert_one_sentence, command
from tests.test_train import small
from vit_jax_mixer.landscape import directions, fourier, report, spectrum
from vit_jax_mixer.landscape.look import Found
from vit_jax_mixer.landscape.objective import Batches, Objective
from vit_jax_mixer.train import train_and_evaluate

HESSIAN = np.load(DATA / "hessian_reference.npz")
SIZES = {"0.weight": (5, 4), "0.bias": (5,), "2.weight": (3, 5), "2.bias": (3,)}


def params(prefix="param/"):
    """Return weights as Flax has them, [in, out]."""
    return {name: HESSIAN[prefix + name].T for name in SIZES}


def flat(tree):
    return np.concatenate([np.asarray(tree[name]).T.ravel() for name in SIZES])


def loss(weights, batch, number):
    hidden = jnp.tanh(batch["x"] @ weights["0.weight"] + weights["0.bias"][None])
    logits = hidden @ weights["2.weight"] + weights["2.bias"][None]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
    return losses.mean(), jnp.asarray(len(batch["y"]), losses.dtype)


def objective(sizes, dtype=np.float64):
    """Return the loss of the reference's examples in batches of such sizes."""
    ends = np.cumsum(sizes)
    read = lambda: (
        {"x": HESSIAN["features"][end - size : end].astype(dtype), "y": HESSIAN["labels"][end - size : end]}
        for end, size in zip(ends, sizes, strict=True)
    )
    return Objective(loss, jax.tree.map(lambda w: jnp.asarray(w, dtype), params()), Batches(read, len(sizes)))


def vector(order):
    """Return a vector in the reference's order as one in that of the tree."""
    tree, at = {}, 0
    for name, shape in SIZES.items():
        size = int(np.prod(shape))
        tree[name] = order[at : at + size].reshape(shape).T
        at += size
    return np.concatenate([tree[name].ravel() for name in sorted(tree)])


@pytest.mark.parametrize(("sizes", "dtype", "tolerance"), [((20,), "f8", 1e-12), ((8, 7, 5), "f4", 1e-6)])
def test_products_and_eigenvalues_are_those_of_the_exact_hessian(sizes, dtype, tolerance):
    with jax.enable_x64(dtype == "f8"):
        curved = objective(sizes, np.dtype(dtype))
        found = curved.product(vector(HESSIAN["probe"]))
        expected = vector(HESSIAN["hessian_times_probe"])
        np.testing.assert_allclose(found, expected, rtol=0, atol=10 * tolerance * np.abs(expected).max())
        start = spectrum.starts(curved.size, 1, curved.dtype, 0)[0]
        ritz = spectrum.lanczos(curved.product, start, 43)
        largest = HESSIAN["eigenvalues"].max()
        np.testing.assert_allclose(ritz.values[-5:], np.sort(HESSIAN["eigenvalues"])[-5:], atol=tolerance * largest)
        few = spectrum.lanczos(curved.product, start, 12)
        assert abs(few.values[-1] - largest) <= few.errors[-1] + tolerance * largest


def test_shares_and_densities_of_all_starts_are_exact():
    matrix, eigenvalues = HESSIAN["hessian"], HESSIAN["eigenvalues"]
    found = [spectrum.lanczos(lambda v: matrix @ v, unit, 43) for unit in np.eye(43)]
    # The reference counts zeros that rounding made negative: softmax has as many flat directions.
    nonzero = np.mean(eigenvalues < -1e-6 * np.abs(eigenvalues).max())
    assert HESSIAN["negative_share"] - 6 / 43 <= nonzero <= HESSIAN["negative_share"] == np.mean(eigenvalues < 0)
    assert spectrum.negative_share(found) == pytest.approx(nonzero, abs=1e-9)
    trace = 43 * np.mean([one.weights @ one.values for one in found])
    assert trace == pytest.approx(float(HESSIAN["trace"]), rel=1e-10)
    at, density = spectrum.density(found)
    width = 0.01 * np.ptp(eigenvalues)
    expected = np.exp(-(((at[:, None] - eigenvalues) / width) ** 2) / 2).mean(1) / (width * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(density, expected, atol=1e-6 * expected.max())


def test_lanczos_ends_where_nothing_is_left():
    ritz = spectrum.lanczos(lambda v: np.diag([2.0, 2, 5, -1]) @ v, np.ones(4), 4)
    np.testing.assert_allclose(ritz.values, [-1, 2, 5], atol=1e-12)
    np.testing.assert_allclose(ritz.weights, [0.25, 0.5, 0.25], atol=1e-12)
    assert ritz.errors.max() < 1e-13


@pytest.mark.parametrize("kind", ["biasbn", "none"])
def test_directions_and_the_slice_are_the_originals(kind):
    drawn = [directions.normalised(params(f"raw/direction_{k}/"), params(), vectors=kind == "none") for k in (0, 1)]
    for k in (0, 1):
        expected = flat(params(f"{kind}/direction_{k}/"))
        np.testing.assert_allclose(flat(drawn[k]), expected, rtol=1e-9, atol=1e-12)
    told = []
    with jax.enable_x64(True):
        grid = objective((12, 8)).grid(*drawn, HESSIAN["coordinates"], lambda *done: told.append(done))
    np.testing.assert_allclose(grid, HESSIAN[f"{kind}/slice"], rtol=1e-9)
    assert told == [(i, 10) for i in range(1, 11)]


def test_a_direction_does_not_depend_on_stacking():
    plain = {f"Block_{i}": {"kernel": np.full((2, 3), i + 1.0), "bias": np.ones(3)} for i in range(2)}
    together = {"Block": {"*": jax.tree.map(lambda *leaves: np.stack(leaves), *plain.values())}}
    one, other = directions.random(plain, 0), directions.random(together, 0)
    for i in range(2):
        np.testing.assert_array_equal(one[f"Block_{i}"]["kernel"], other["Block"]["*"]["kernel"][i])
        assert np.linalg.norm(one[f"Block_{i}"]["kernel"], axis=0) == pytest.approx([2**0.5 * (i + 1)] * 3)
        assert not one[f"Block_{i}"]["bias"].any()


def test_batches_are_read_once_if_they_fit(monkeypatch):
    reads = []
    read = lambda: (reads.append(i) or {"x": np.zeros(10)} for i in range(100))
    batches = Batches(read, 3)
    assert [len(list(batches)) for _ in range(3)] == [3, 3, 3]
    assert reads == [0, 1, 2]
    monkeypatch.setattr("vit_jax_mixer.landscape.objective._KEPT", 100)
    batches = Batches(read, 3)
    assert [len(list(batches)) for _ in range(2)] == [3, 3]
    assert reads == [0, 1, 2] * 3


def test_frequencies_are_the_originals():
    reference = np.load(DATA / "fourier_reference.npz")
    amplitude = fourier.log_amplitude(reference["tokens"])
    np.testing.assert_allclose(amplitude, reference["log_amplitude"], atol=1e-5)
    np.testing.assert_allclose(fourier.relative(amplitude), reference["relative_log_amplitude"], atol=1e-5)


def test_the_page_escapes_names_and_holds_the_pictures():
    ritz = [spectrum.lanczos(lambda v: HESSIAN["hessian"] @ v, np.ones(43), 5)]
    grid = np.array([[1.0, 2, 3], [1, 0, np.nan], [3, 2, np.inf]])
    found = Found(0.0, 20, 43, ritz, np.array([-1.0, 0, 1]), grid, [np.array([0.0, -1])] * 3)
    pictures = report.pictures(found)
    assert all(data.startswith(b"\x89PNG") for data in pictures.values())
    page = report.page({"run": "<script>\x1b"}, found, pictures)
    assert "&lt;script&gt;\\x1b" in page
    assert "<script" not in page
    assert page.count("data:image/png;base64,") == len(pictures) == 3
    told = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert told["slice"]["loss"][2][2] is None
    assert told["largest_eigenvalues"][0]["value"] == ritz[0].values[-1]


@pytest.mark.slow
def test_a_run_is_looked_at(tmp_path):
    train_and_evaluate(small(model__scan=True), tmp_path / "run")
    how = ["--examples=64", "--products=5", "--starts=1", "--points=3", "--step=10"]
    result = command("landscape", tmp_path / "run", *how)
    assert result.returncode == 0, result.stderr
    told = json.loads((tmp_path / "run/landscape/landscape.json").read_text())
    assert told["step"] == 10
    assert told["slice"]["loss"][1][1] == told["loss"] > 0
    assert len(told["relative_log_amplitude"]) > 0
    assert_one_sentence(command("landscape", tmp_path), "is no workdir")
    assert_one_sentence(command("landscape", tmp_path, "--points=4"), "--points is 4")
