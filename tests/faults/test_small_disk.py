"""A run whose workdir is on a small disk (a tmpfs) that becomes full for all that it writes."""

import json
import subprocess
import sys

import pytest

from tests.helpers import ROOT, assert_same, environment
from vit_jax_mixer import pretrained

MOUNT = ["unshare", "--map-root-user", "--mount", "bash", "-ec"]
STEPS = 400
TRAIN = (
    f"{sys.executable} -m vit_jax_mixer.main --config=configs/digits.py --workdir=$DISK/run --config.steps={STEPS} "
    "--config.checkpoint.every=40 --config.eval_every=200 --config.log_every=1 --config.checkpoint.best="
)
# The disk is full to the last byte once the first checkpoint is there.
FILL = """
mount -t tmpfs -o size=8m none $DISK
$TRAIN > $OUT/said 2>&1 & run=$!
while [ ! -d $DISK/run/checkpoints/40 ]; do kill -0 $run; sleep 0.02; done
cat /dev/zero > $DISK/ballast 2>/dev/null || true
"""
A_WHILE = """
until grep -q 'the run goes on until the next fails too' $OUT/said; do kill -0 $run; sleep 0.02; done
rm $DISK/ballast
code=0; wait $run || code=$?
"""
FOR_GOOD = """
code=0; wait $run || code=$?
rm $DISK/ballast
"""
END = "cp -r $DISK/run $OUT/run; exit $code"


def on_small_disk(tmp_path, script):
    """Run a script; return its exit code and what the run said."""
    (tmp_path / "disk").mkdir()
    env = environment() | {"DISK": str(tmp_path / "disk"), "OUT": str(tmp_path)}
    result = subprocess.run(
        [*MOUNT, script.replace("$TRAIN", TRAIN)], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert (tmp_path / "said").exists(), result.stderr
    return result.returncode, (tmp_path / "said").read_text()


def logged(workdir):
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("perf/")} for line in found]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    train = TRAIN.replace("$DISK", str(folder))
    subprocess.run(train.split(), cwd=ROOT, env=environment(), capture_output=True, check=True)
    return folder / "run"


@pytest.fixture(autouse=True)
def can_mount(tmp_path):
    result = subprocess.run([*MOUNT, f"mount -t tmpfs none {tmp_path}"], capture_output=True, text=True, check=False)
    if result.returncode:
        pytest.skip(f"no disk can be mounted here: {result.stderr.strip()}")


@pytest.mark.slow
def test_a_disk_that_is_full_for_a_while_costs_nothing_but_checkpoints(tmp_path, undisturbed):
    code, said = on_small_disk(tmp_path, FILL + A_WHILE + END)
    assert code == 0, said
    assert "metrics.jsonl (No space left on device); its lines wait until there is room" in said
    assert "cannot write checkpoint" in said
    assert "checkpoints can be written again" in said
    assert logged(tmp_path / "run") == logged(undisturbed)
    assert_same(pretrained.load(tmp_path / "run"), pretrained.load(undisturbed))


@pytest.mark.slow
def test_a_disk_that_stays_full_ends_the_run_in_one_sentence(tmp_path, undisturbed):
    code, said = on_small_disk(tmp_path, FILL + FOR_GOOD + END)
    assert code == 1, said
    assert "Traceback" not in said
    last = said.splitlines()[-1]
    assert last.startswith("error: cannot write checkpoint")
    assert "No space left on device" in last
    assert "so the run stops; the newest there is of step" in last
    kept = [int(path.name) for path in (tmp_path / "run/checkpoints").iterdir() if path.name.isdecimal()]
    assert kept
    assert max(kept) < STEPS
    again = TRAIN.replace("$DISK", str(tmp_path))
    subprocess.run(again.split(), cwd=ROOT, env=environment(), capture_output=True, check=True)
    assert logged(tmp_path / "run") == logged(undisturbed)
    assert_same(pretrained.load(tmp_path / "run"), pretrained.load(undisturbed))


# No further file can be made once the first checkpoint is there.
NO_INODES = """
mount -t tmpfs -o size=64m,nr_inodes=200 none $DISK
$TRAIN > $OUT/said 2>&1 & run=$!
while [ ! -d $DISK/run/checkpoints/40 ]; do kill -0 $run; sleep 0.02; done
i=0; while touch $DISK/$i 2>/dev/null; do i=$((i + 1)); done
until grep -q '^error: ' $OUT/said; do kill -0 $run; sleep 0.1; done
said=$SECONDS
code=0; wait $run || code=$?
[ $((SECONDS - said)) -lt 60 ] || code=99
"""


@pytest.mark.slow
def test_a_disk_without_room_for_files_ends_the_process_too(tmp_path):
    code, said = on_small_disk(tmp_path, NO_INODES + "exit $code")
    assert code == 1, said
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("error: cannot write")
