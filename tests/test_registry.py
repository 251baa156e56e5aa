import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests import torch_bytes
from tests.helpers import DATA, ROOT, assert_same, environment
from tests.hostile_server import Reply, running
from vit_jax_mixer import convert, models, pretrained
from vit_jax_mixer.data import images
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.pretrained import __main__ as listing
from vit_jax_mixer.pretrained import class_names, download, formats, names, registry

ENTRIES = {entry.reference: entry for entry in registry.published()}
MIXERS = json.loads((DATA / "mixer_param_shapes.json").read_text())
RESMLPS = json.loads((DATA / "resmlp_state_dict_shapes.json").read_text())


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(download.CACHE, str(tmp_path / "cache"))
    yield
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)  # files of full size


def fresh(entry):
    """Return the parameters of an entry's model, which take no memory."""
    return shapes(entry.name, entry.num_classes, entry.input_size, tuple(entry.overrides.items()))


@functools.cache
def shapes(name, num_classes, size, overrides):
    model = models.create(name, num_classes, **dict(overrides))
    return jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, *size, 3), np.float32))["params"]


# --- What stands in the list ---


@pytest.mark.parametrize("reference", ENTRIES)
def test_an_entry_is_sound(reference):
    entry = ENTRIES[reference]
    assert entry.name in models.MODELS
    assert entry.parameters == sum(leaf.size for leaf in jax.tree.leaves(fresh(entry)))
    assert entry.url.startswith("https://")
    assert download.place(entry.url).suffix in formats.READERS
    assert len(class_names.of(entry.class_set)) in (0, entry.num_classes)
    assert (entry.top1 is None) == (entry.top1_from == "")
    assert entry.licence
    assert entry.source


def test_references_and_addresses_are_unique():
    assert len(ENTRIES) == len(registry.published())
    assert len({entry.url for entry in ENTRIES.values()}) == len(ENTRIES)


@pytest.mark.parametrize("ops", sorted({entry.eval_ops for entry in ENTRIES.values()}))
def test_the_operations_make_what_the_model_reads(ops):
    parsed = images.parse(ops, "here")
    photo = np.zeros((300, 400, 3), np.uint8)
    small = parsed(photo, np.random.default_rng(0))
    sizes = {entry.input_size for entry in ENTRIES.values() if entry.eval_ops == ops}
    assert {small.shape[:2]} == sizes
    assert parsed.decodes
    assert parsed.scales


def test_a_name_alone_stands_for_a_head_of_imagenet_1k():
    for name in {entry.name for entry in ENTRIES.values()}:
        assert registry.find(name).class_set == "imagenet1k"
        assert registry.find(name).num_classes == 1000
    assert registry.find("Mixer-B/16").reference == "Mixer-B/16:imagenet1k"
    assert registry.find("Mixer-B/16:sam").url.endswith("/sam/Mixer-B_16.npz")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("Mixer-B/61", "there are no published weights 'Mixer-B/61'; did you mean 'Mixer-B/16'?"),
        ("Mixer-B/16:imagenet", "did you mean 'imagenet1k'? Known: gsam, imagenet1k, imagenet21k, miil"),
        ("Mixer-B/16:", "Known: gsam, imagenet1k"),
        ("MnistMixer", "there are no published weights 'MnistMixer'"),
        ("", "there are no published weights ''"),
    ],
)
def test_unknown_references_are_answered_with_those_that_are_known(reference, message):
    with pytest.raises(UserError) as caught:
        registry.find(reference)
    assert message in str(caught.value)


def test_the_table_says_what_is_in_the_cache():
    entry = ENTRIES["Mixer-B/16:sam"]
    place = download.place(entry.url)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"x")
    lines = listing.table()
    assert len(lines) == len(ENTRIES) + 2
    assert [line.split()[0] for line in lines if line.endswith("yes")] == [entry.reference]
    assert lines[0].index("licence") == lines[1].index("Apache-2.0")


# --- From a reference to parameters ---


def small(path):
    np.savez(path, **{"a/b": np.ones(3, np.float32)})
    return path.read_bytes()


def test_a_path_that_exists_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Mixer-B").mkdir()
    small(tmp_path / "Mixer-B/16.npz")
    (tmp_path / "Mixer-B/16.npz").rename("Mixer-B/16")
    assert pretrained.locate("Mixer-B/16").read_bytes()
    assert str(pretrained.locate("Mixer-B")) == "Mixer-B"
    assert registry.lookup("Mixer-B/16") is None


def test_what_is_no_reference_stays_a_path():
    for text in ("Mixer-B_16.npz", "models/Mixer-B/16", "a:b", "C:/a", "/no/such/file"):
        assert str(pretrained.locate(text)) == text
    with pytest.raises(UserError, match=r"there is no file /no/such/file\.npz"):
        pretrained.load("/no/such/file.npz")


@pytest.mark.parametrize("text", ["Mixer-B_16", "mixer-b/16", "ResMLP-S21", "Mixer-C/16:imagenet1k", "Mixer-B/16:x"])
def test_what_is_much_like_a_reference_is_answered_with_one(text):
    with pytest.raises(UserError, match=r"did you mean|Known: "):
        pretrained.load(text)


def test_published_addresses_are_known():
    entry = ENTRIES["Mixer-L/16:imagenet21k"]
    assert registry.lookup(entry.url) == entry
    assert registry.lookup("https://host/a.npz") is None
    assert entry.model == {"name": "Mixer-L/16"}
    assert ENTRIES["Mixer-B/16:miil"].model == {"name": "Mixer-B/16", "exact_gelu": True}


def test_weights_are_loaded_from_an_address(tmp_path):
    body = small(tmp_path / "a.npz")
    with running() as server:
        url = server.offer("/b.npz", Reply(body))
        for _ in range(2):
            np.testing.assert_array_equal(pretrained.load(url)["a"]["b"], np.ones(3))
        assert len(server.requests) == 1
        convert.convert(url, tmp_path / "c.npz")
        assert_same(pretrained.load(tmp_path / "c.npz"), pretrained.load(url))
        assert len(server.requests) == 1


# --- Files of full size ---


def official_shapes(entry):
    """Return the names and shapes in an entry's file."""
    if entry.family == "Mixer" and entry.url.endswith(".npz"):
        found = MIXERS[entry.name.replace("/", "_")]["shapes"]
        width = found["head/kernel"][0]
        return {**found, "head/kernel": [width, entry.num_classes], "head/bias": [entry.num_classes]}
    if entry.family == "ResMLP":
        key = {"S12": "resmlp_12", "S24": "resmlp_24", "S36": "resmlp_36", "B24": "resmlpB_24"}[entry.name[-3:]]
        headless = entry.num_classes == 0
        return {name: shape for name, shape in RESMLPS[key].items() if not (headless and name.startswith("head"))}
    hollow = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), fresh(entry))
    return {k: v.shape for k, v in names.from_ours(hollow, f"timm_{entry.family.lower()}").items()}


def put(entry):
    """Write a file of random values to where the entry's is kept; return the values."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in official_shapes(entry).items()}
    path = download.place(entry.url)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".safetensors":
        save_file(arrays, path)
    else:
        tensors, data = {}, {}
        for i, (name, value) in enumerate(arrays.items()):
            strides = tuple(np.array(value.strides) // 4)
            storage = torch_bytes.storage(str(i), value.size)
            tensors[name] = torch_bytes.tensor(value.shape, tuple(map(int, strides)), of=storage)
            data[str(i)] = value.tobytes()
        torch_bytes.archive(path, torch_bytes.mapping(tensors), data)
    return arrays


def assert_fits(reference):
    entry = ENTRIES[reference]
    arrays = put(entry)
    weights = pretrained.read(reference)
    loaded = weights.tree
    assert_same(names.from_ours(loaded, weights.convention), arrays)
    filled = pretrained.fill(fresh(entry), loaded, new=(), where=reference)
    assert_same(filled, loaded)


@pytest.mark.parametrize("reference", ["Mixer-S/32:gsam", "ResMLP-S12:dino", "gMLP-S16:timm"])
def test_a_file_of_full_size_fits_its_model(reference):
    assert_fits(reference)


@pytest.mark.slow
@pytest.mark.parametrize("reference", ENTRIES)
def test_every_file_of_full_size_fits_its_model(reference):
    assert_fits(reference)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no figure of the peak memory")
@pytest.mark.parametrize("reference", ["Mixer-L/16:imagenet21k", "ResMLP-B24:22k", "Mixer-B/16:miil"])
def test_loading_takes_little_more_memory_than_the_file(reference):
    entry = ENTRIES[reference]
    put(entry)
    code = """
import re, sys
from pathlib import Path
import jax, numpy as np
from vit_jax_mixer import models, pretrained
from vit_jax_mixer.pretrained import registry
# Of this program alone; getrusage's figure begins at that of the one that started it.
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
entry = registry.find(sys.argv[1])
model = models.create(entry.name, entry.num_classes, **entry.overrides)
image = np.zeros((1, *entry.input_size, 3), np.float32)
params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
jax.block_until_ready(jax.numpy.zeros(3))
before = peak()
filled = pretrained.fill(params, pretrained.load(sys.argv[1]), new=(), where="here")
jax.block_until_ready(filled)
print(peak() - before)
"""
    line = [sys.executable, "-c", code, reference]
    result = subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True)
    assert int(result.stdout) < 2.5 * download.place(entry.url).stat().st_size
