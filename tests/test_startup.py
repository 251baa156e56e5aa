"""What a command sets before JAX is loaded: compiled programs, large pages. What is kept of memory: test_cli.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT, environment
from vit_jax_mixer import startup
from vit_jax_mixer.pretrained import download


@pytest.fixture
def before_jax(monkeypatch, tmp_path):
    """As in a process of a user's own that has not loaded JAX yet; gives the user's cache folder."""
    monkeypatch.setenv(startup.CACHE, str(tmp_path))
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "jax")
    return tmp_path / "compiled"


def test_there_is_one_cache_folder_which_the_environment_names(monkeypatch):
    monkeypatch.setenv(startup.CACHE, "/own")
    monkeypatch.setenv("XDG_CACHE_HOME", "/of/all")
    assert startup.cache_folder() == Path("/own")
    monkeypatch.setenv(startup.CACHE, "")
    assert startup.cache_folder() == Path("/of/all/vit_jax_mixer")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert startup.cache_folder() == Path("~/.cache/vit_jax_mixer").expanduser()
    assert download.cache_folder is startup.cache_folder


def test_programs_are_kept_in_a_folder_of_the_user_alone_up_to_a_size(before_jax):
    startup.keep_programs()
    [folder] = before_jax.iterdir()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(folder)
    assert int(os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"]) == 2**30
    assert folder.stat().st_mode & 0o777 == 0o700


def test_what_a_kill_left_half_written_is_removed(before_jax):
    startup.keep_programs()
    [folder] = before_jax.iterdir()
    for name in ("whole-cache", "whole-atime", "half-cache"):
        (folder / name).write_bytes(b"x")
    del os.environ["JAX_COMPILATION_CACHE_DIR"]
    startup.keep_programs()
    assert {path.name for path in folder.iterdir()} == {".lockfile", "whole-cache", "whole-atime"}


def test_a_folder_that_others_can_write_is_not_used(before_jax):
    startup.keep_programs()
    [folder] = before_jax.iterdir()
    folder.chmod(0o777)
    del os.environ["JAX_COMPILATION_CACHE_DIR"]
    startup.keep_programs()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_a_place_that_cannot_be_written_keeps_nothing(before_jax, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(startup.CACHE, str(tmp_path / "file"))
    startup.keep_programs()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_the_variable_of_jax_stands(before_jax, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    startup.keep_programs()
    assert not before_jax.exists()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "elsewhere"


def test_another_processor_has_another_folder(tmp_path):
    infos = {
        "of a core": "processor : 0\nmodel name : A\ncpu MHz : 2000\nflags : sse avx\n\nprocessor : 1\n",
        "at another speed": "processor : 0\nmodel name : A\ncpu MHz : 3000\nflags : sse avx\n\nprocessor : 1\n",
        "with more": "processor : 0\nmodel name : A\ncpu MHz : 2000\nflags : sse avx avx512f\n\nprocessor : 1\n",
        "of another name": "processor : 0\nmodel name : B\ncpu MHz : 2000\nflags : sse avx\n\nprocessor : 1\n",
    }
    names = []
    for text in infos.values():
        (tmp_path / "cpuinfo").write_text(text)
        names.append(startup._machine(tmp_path / "cpuinfo"))
    assert names[0] == names[1]
    assert len(set(names)) == 3


COMPILES = """
from vit_jax_mixer import cli
def main(_):
    import jax
    hits = []
    jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if "cache_hits" in event else None)
    jax.jit(lambda x: x * 2 + 1)(1.0)
    print(len(hits))
cli.run(main)
"""


def test_a_second_command_compiles_nothing_and_says_nothing_of_it(tmp_path):
    env = environment() | {startup.CACHE: str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    del env["JAX_COMPILATION_CACHE_DIR"]

    def hits(**more):
        line = [sys.executable, "-c", COMPILES]
        result = subprocess.run(line, cwd=ROOT, env=env | more, capture_output=True, text=True, check=True)
        assert result.stderr == ""
        return int(result.stdout)

    assert hits() == 0
    assert hits() == 1
    assert hits(JAX_ENABLE_COMPILATION_CACHE="false") == 0


# What is for some runs alone, and takes long to load.
FOR_SOME = (
    "datasets huggingface_hub matplotlib onnx onnxruntime optuna pandas pyarrow sacrebleu scipy sentencepiece sklearn "
    "tensorflow tensorflow_datasets wandb"
)


@pytest.mark.parametrize("modules", ["vit_jax_mixer.train", "vit_jax_mixer.predict, vit_jax_mixer.trained"])
def test_a_command_loads_no_library_before_what_needs_it(modules):
    line = f"import sys, {modules}; print(*{set(FOR_SOME.split())!r}.intersection(sys.modules))"
    done = subprocess.run([sys.executable, "-c", line], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


LARGE = "glibc.malloc.hugetlb=1"
PAGES = pytest.mark.skipif(
    not startup._PAGES.exists() or "[never]" in startup._PAGES.read_text(), reason="a kernel without large pages"
)


@PAGES
@pytest.mark.parametrize(
    ("words", "variables", "expected"),
    [
        (["--config.steps=1", "--workdir=b c"], {}, LARGE),
        ([], {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}, f"glibc.malloc.arena_max=2:{LARGE}"),
        ([], {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, "glibc.malloc.hugetlb=0"),
        (["--nokeep_memory"], {}, "None"),
        ([], {"JAX_PLATFORMS": "cuda,cpu"}, "None"),
    ],
)
def test_training_on_cpus_has_large_pages_and_is_the_same_command(words, variables, expected, tmp_path):
    config = tmp_path / "mine.py"
    config.write_text("import os, sys\nprint(os.getenv('GLIBC_TUNABLES'), sys.argv[1:])\nsys.exit(0)\n")
    given = [f"--config={config}", *words]
    env = environment() | {"JAX_PLATFORMS": "cpu"} | variables
    line = [sys.executable, "-W", "error", "-m", "vit_jax_mixer.main", *given]
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{expected} {given}\n", "")


@PAGES
def test_a_process_that_is_more_than_a_command_does_not_begin_anew():
    code = "import os, sys; from vit_jax_mixer import startup; sys.argv = ['main', '--config=digits']; "
    code += "startup.ask_for_large_pages(); print(os.getenv('GLIBC_TUNABLES'))"
    env = environment() | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("None\n", "")
