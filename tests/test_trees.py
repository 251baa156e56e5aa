"""Which tree of a file is taken for the model: the same rules in every format."""

import jax
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from tests import torch_bytes as t
from tests.helpers import DATA, assert_same
from vit_jax_mixer import pretrained
from vit_jax_mixer.convert import convert
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.pretrained import formats
from vit_jax_mixer.pretrained.trees import Chooser
from vit_jax_mixer.trained import open_model

TIMM = load_file(DATA / "mixer_torch_tiny_timm.safetensors")
OURS = pretrained.flatten(pretrained.load(DATA / "mixer_torch_tiny_timm.safetensors"))


def under(path, tensors=TIMM):
    return {f"{path}{name}": value for name, value in tensors.items()}


def half(tensors=TIMM):
    return {name: value / 2 for name, value in tensors.items()}


def pth(path, flat):
    """Write a ``.pth`` file; what stands before a '/' is a dict's key."""
    bodies, storages = {}, {}
    for i, (name, value) in enumerate(flat.items()):
        strides = tuple(np.cumprod((1, *value.shape[:0:-1]))[::-1]) if value.ndim else ()
        bodies[name] = t.tensor(value.shape, tuple(map(int, strides)), key=str(i), count=value.size)
        storages[str(i)] = value.tobytes()
    body = lambda tree: t.mapping({k: body(v) if isinstance(v, dict) else v for k, v in tree.items()})
    return t.archive(path, body(traverse_util.unflatten_dict(bodies, sep="/")), storages)


WRITERS = {
    "a.npz": lambda path, flat: np.savez(path, **flat),
    "a.safetensors": lambda path, flat: save_file({k: np.ascontiguousarray(v) for k, v in flat.items()}, path),
    "a.pth": pth,
    "folder": lambda path, flat: formats.write(path, flat),
}
FORMATS = pytest.mark.parametrize("name", WRITERS)


def written(folder, name, flat):
    WRITERS[name](folder / name, flat)
    return folder / name


@FORMATS
@pytest.mark.parametrize(
    "start",
    ["module.", "_orig_mod.", "model.", "net.", "backbone.", "encoder.", "module._orig_mod.", "state_dict/model.",
     "model/module.", "params/", "state/params/", "anything.else."],
)  # fmt: skip
def test_what_stands_before_all_names_is_cut(tmp_path, name, start):
    path = written(tmp_path, name, under(start))
    weights = pretrained.read(path)
    assert_same(pretrained.flatten(weights.tree), OURS)
    assert weights.convention == "timm_mixer"
    assert weights.origin == ""


@FORMATS
@pytest.mark.parametrize("start", ["opt/0/mu/", "optimizer/exp_avg/", "opt_state/1/0/trace/", "adam_m/", "grad_accum/"])
def test_an_optimizers_state_is_never_taken(tmp_path, name, start):
    both = {**under(start, half(OURS)), "opt/count": np.float32([3]), **under("params/", OURS)}
    weights = pretrained.read(written(tmp_path, name, both))
    assert_same(pretrained.flatten(weights.tree), OURS)
    assert weights.origin == "taken is 'params'"
    (tmp_path / "new").mkdir()
    alone = written(tmp_path / "new", name, under(start, OURS))
    with pytest.raises(UserError, match=r"holds an optimizer's state, .* and no model"):
        pretrained.read(alone)


@FORMATS
@pytest.mark.parametrize("start", ["opt/", "optimizer/", ""])
def test_the_target_of_flaxs_former_optimizers_is_the_model(tmp_path, name, start):
    both = {**under(f"{start}target/", OURS), **under(f"{start}state/param_states/", half(OURS))}
    weights = pretrained.read(written(tmp_path, name, both))
    assert_same(pretrained.flatten(weights.tree), OURS)


@FORMATS
def test_an_optimizers_state_beside_bare_names_is_left_out(tmp_path, name):
    weights = pretrained.read(written(tmp_path, name, {**OURS, **under("opt/mu/", half(OURS)), "step": np.ones(1)}))
    assert_same(pretrained.flatten(weights.tree), OURS)


@FORMATS
@pytest.mark.parametrize(
    ("raw", "mean"),
    [
        ("state_dict/", "state_dict_ema/"),
        ("model/", "model_ema/"),
        ("model.", "ema_model.module."),
        ("params/", "ema_params/"),
        ("params/", "ema/"),
        ("", "ema."),
        ("model/", "swa_model/"),
        ("student/module.backbone.", "teacher/backbone."),
        ("state_dict/model.", "callbacks/EMA/ema_weights/"),
        ("base_encoder.", "momentum_encoder."),
    ],
)
def test_the_running_mean_is_taken_and_said_and_the_other_can_be_asked_for(tmp_path, name, raw, mean):
    path = written(tmp_path, name, {**under(raw), **under(mean, half()), "optimizer/mu/x": np.ones(1, np.float32)})
    weights = pretrained.read(path)
    assert_same(pretrained.flatten(weights.tree), pretrained.flatten(pretrained.read(f"{path}#ema").tree))
    assert not np.array_equal(weights.tree["stem"]["kernel"], OURS["stem/kernel"])
    assert ", a running mean, not " in weights.origin
    assert mean.rstrip("./").replace("/", ".") in weights.origin
    assert_same(pretrained.flatten(pretrained.read(f"{path}#raw").tree), OURS)


def test_the_words_of_a_tree_can_be_asked_for(tmp_path):
    path = written(tmp_path, "a.pth", {**under("student/module."), **under("teacher/module.", half())})
    assert_same(pretrained.flatten(pretrained.read(f"{path}#student").tree), OURS)
    assert_same(pretrained.flatten(pretrained.read(f"{path}#student.module").tree), OURS)
    assert "taken is 'teacher.module', a running mean" in pretrained.read(f"{path}#teacher").origin
    with pytest.raises(UserError, match=r"none of it is 'head'; name one, as in .*a\.pth#student"):
        pretrained.read(f"{path}#head")
    with pytest.raises(UserError, match="several of them are meant"):
        pretrained.read(f"{path}#module")


@FORMATS
def test_trees_that_are_no_mean_of_each_other_are_not_guessed(tmp_path, name):
    smaller = {name: value for name, value in TIMM.items() if ".0." not in name}
    for i, other in enumerate((under("generator/"), under("teacher/", smaller))):
        (tmp_path / str(i)).mkdir()
        path = written(tmp_path / str(i), name, {**under("student/"), **other})
        with pytest.raises(UserError, match=r"'student'.*not clear which is meant; name one, as in .*#"):
            pretrained.read(path)
        assert_same(pretrained.flatten(pretrained.read(f"{path}#student").tree), OURS)


@FORMATS
def test_what_is_left_out_is_said(tmp_path, name):
    head = {"module.head.mlp.0.weight": np.ones((2, 3), np.float32)}
    weights = pretrained.read(written(tmp_path, name, {**under("module.backbone."), **head}))
    assert_same(pretrained.flatten(weights.tree), OURS)
    assert weights.origin == "taken is 'module.backbone'; left out: module.head"


@FORMATS
def test_a_model_of_no_table_is_found_by_the_words_around_it(tmp_path, name):
    flat = {"Dense_0/kernel": np.ones((2, 3), np.float32), "model/bias": np.ones(3, np.float32)}
    assert_same(pretrained.flatten(pretrained.read(written(tmp_path, name, flat)).tree), flat)
    (tmp_path / "state").mkdir()
    state = {**under("params/", flat), **under("ema/", half(flat)), **under("opt_state/0/mu/", flat)}
    path = written(tmp_path / "state", name, state)
    assert_same(pretrained.flatten(pretrained.read(path).tree), half(flat))
    assert_same(pretrained.flatten(pretrained.read(f"{path}#raw").tree), flat)
    with pytest.raises(UserError, match="none of it is 'opt_state'"):
        pretrained.read(f"{path}#opt_state")


def test_an_ema_teacher_in_a_state_is_no_default():
    names = [f"{start}/{name}" for start in ("params", "extra/teacher", "opt_state/0/mu") for name in OURS]
    shapes = dict.fromkeys(names, ())
    assert Chooser("a")(shapes) == {name: f"params/{name}" for name in OURS}
    assert Chooser("a", "teacher")(shapes) == {name: f"extra/teacher/{name}" for name in OURS}


@pytest.mark.parametrize("published", ["extra/teacher/backbone", "extra/momentum/encoder", "extra/opt"])
def test_of_a_run_what_its_task_publishes_is_taken_and_any_other_tree_can_be_asked_for(published):
    starts = ("params/student", "params/head", published, "opt_state/0/mu/student", "ema/student")
    shapes = dict.fromkeys(["step", *(f"{start}/{name}" for start in starts for name in OURS)], ())
    taken = lambda wanted, start: Chooser("a", wanted, True, published)(shapes) == {n: f"{start}/{n}" for n in OURS}
    assert taken("", published)
    assert taken("params/student", "params/student")
    assert taken("params.student", "params/student")
    assert taken("ema/student", "ema/student")
    with pytest.raises(UserError, match=r"a holds .*none of it is 'params\.stud'; name one, as in a#"):
        Chooser("a", "params.stud", True, published)(shapes)
    with pytest.raises(UserError, match="none of it is what the run publishes, 'extra/gone'"):
        Chooser("a", "", True, "extra/gone")(shapes)


@pytest.mark.parametrize(
    "name", ["b.PTH", "b.pth.tar", "b.ckpt", "b.pt", "b.bin", "B.NPZ", "b.SafeTensors", "mixer", "b.npz.1", "b.th"]
)
@pytest.mark.parametrize("kind", ["a.npz", "a.safetensors", "a.pth"])
def test_the_bytes_tell_the_format_whatever_the_suffix(tmp_path, kind, name):
    path = written(tmp_path, kind, TIMM).rename(tmp_path / name)
    assert_same(pretrained.flatten(pretrained.load(path)), OURS)


def test_commands_take_the_same_words_and_say_what_they_took(tmp_path, capsys):
    path = written(tmp_path, "a.pth", {**under("state_dict/"), **under("state_dict_ema/", half())})
    assert "; taken is 'state_dict_ema', a running mean, not 'state_dict'" in convert(path, tmp_path / "b.npz")
    said = convert(f"{path}#raw", tmp_path / "c.npz")
    assert said.endswith(f"'state_dict', not 'state_dict_ema' (ask for {path}#state_dict_ema)")
    assert_same(formats.read(tmp_path / "c.npz"), OURS)
    assert open_model(f"{path}#raw").origin.startswith("taken is 'state_dict', not")
    assert_same(jax.device_get(pretrained.flatten(open_model(f"{path}#raw").params)), OURS)
    pretrained.load(path)
    assert capsys.readouterr().err.startswith(f"{path}: taken is 'state_dict_ema', a running mean")


def test_a_file_with_such_a_name_is_that_file(tmp_path):
    path = written(tmp_path, "a.npz", OURS).rename(tmp_path / "a#ema.npz")
    assert_same(pretrained.flatten(pretrained.load(path)), OURS)
    assert_same(pretrained.flatten(pretrained.load(f"{path}#raw")), OURS)
