import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import grain
import numpy as np
import pytest

from tests.helpers import DATA, ROOT, environment
from vit_jax_mixer import specs
from vit_jax_mixer.data import permutation
from vit_jax_mixer.data.order import Order, Views, shuffled
from vit_jax_mixer.data.pipeline import IS_EXAMPLE, Dataset, Loader, Share, as_it_is, indices_of, train_order
from vit_jax_mixer.data.sources import Source
from vit_jax_mixer.data.tables.encoded import Encoded
from vit_jax_mixer.errors import UserError


@dataclasses.dataclass
class Numbers:
    count: int

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {"id": index}


def transform(example, rng):
    return {"id": np.int32(example["id"]), "draw": rng.random()}


def dataset(count=10, **options):
    return Dataset(Source(Numbers(count), (), lambda i: f"number {i}"), transform, **options)


def loader(workers=0, threads=1, prefetch=1, share=Share(0, 1)):  # noqa: B008 # frozen
    return Loader(workers, threads, prefetch, share)


def order(share=Share(0, 1), batch_size=4, seed=7):  # noqa: B008 # frozen
    return train_order(dataset(), seed=seed, batch_size=batch_size, share=share)


def ids(batches):
    return np.concatenate([batch["id"] for batch in batches])


def test_each_epoch_is_a_fresh_permutation():
    epochs = ids(order()[step] for step in range(15)).reshape(6, 10)
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in epochs}) == 6


@pytest.mark.parametrize("count", [1000, 1437, 60_000, 70_000])
def test_the_order_of_many_is_grains(count):
    expected = grain.MapDataset.source(range(count)).seed(5).shuffle().repeat()
    found = indices_of(dataset(count), seed=5, batch_size=50, step=10**6)
    assert found == [expected[position] for position in range(50 * 10**6, 50 * 10**6 + 50)]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100, 999])
def test_few_are_shuffled_without_a_walk_through_65536_numbers(count):
    epochs = [indices_of(dataset(count), seed=5, batch_size=count, step=epoch) for epoch in (0, 1, 2, 10**9)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert count < 7 or len(set(map(tuple, epochs))) == 4
    assert count < 7 or epochs[0] != indices_of(dataset(count), seed=6, batch_size=count, step=0)
    nodes = [shuffled(count, 5)]
    while nodes:
        node = nodes.pop()
        assert type(node).__name__ != "ShuffleMapDataset"
        nodes.extend(node.parents)


# 65,537 fits into 16 bits for Grain, which rounds the logarithm of the largest number.
@pytest.mark.parametrize("count", [2, 3, 999, 1437, 60_000, 65_536, 65_537, 65_538, 300_000])
def test_the_permutation_of_an_epoch_is_grains(count):
    places = np.unique(np.linspace(0, count - 1, 40).astype(int)).tolist()
    for seed in (0, 2**32 - 1):
        found = permutation.of(seed, count)
        expected = [grain.experimental.index_shuffle(i, max_index=count - 1, seed=seed, rounds=4) for i in places]
        assert found[places].tolist() == expected
    assert count == 65_537 or np.array_equal(np.sort(found), np.arange(count))


@pytest.mark.parametrize(("count", "views"), [(1, 1), (7, 1), (999, 3), (1000, 1), (1437, 2), (70_000, 1)])
def test_many_positions_at_once_are_in_the_same_order(count, views):
    for step in (0, 1, count // 8, 10**6):
        positions = step * 16 + np.arange(16)
        expected = indices_of(dataset(count, views=views), seed=5, batch_size=16, step=step)
        assert Order(count, 5, views)(positions).tolist() == expected


@pytest.mark.parametrize(("count", "views"), [(10, 1), (1437, 2)])
@pytest.mark.parametrize("processes", [1, 4])
def test_examples_in_memory_make_the_same_batches_as_read_one_by_one(count, views, processes):
    rows = {"id": np.arange(count, dtype=np.int32), "row": np.random.default_rng(0).random((count, 3))}

    class Rows(Numbers):
        def __getitem__(self, index):
            return {name: of[index] for name, of in rows.items()}

        batch = __getitem__

    one_by_one = Dataset(Source(Rows(count), (), str), lambda example, rng: example, views)
    at_once = dataclasses.replace(one_by_one, transform=as_it_is)
    assert at_once.gather
    assert not one_by_one.gather
    for process in range(processes):
        reader = loader(threads=0, share=Share(process, processes))
        reads = [
            lambda data, r=reader: itertools.islice(r.train_batches(data, seed=3, batch_size=16, start=0), 2),
            lambda data, r=reader: itertools.islice(r.train_batches(data, seed=3, batch_size=16, start=10**6), 2),
            lambda data, r=reader: r.eval_batches(data, batch_size=512),
        ]
        for read in reads:
            ours, theirs = list(read(at_once)), list(read(one_by_one))
            assert len(ours) == len(theirs)
            for batch, expected in zip(ours, theirs, strict=True):
                assert batch.keys() == expected.keys()
                for name, value in batch.items():
                    assert value.dtype == expected[name].dtype
                    np.testing.assert_array_equal(value, expected[name])


@pytest.mark.parametrize("skip_bad", [False, True])
@pytest.mark.parametrize("count", [1, 5])
def test_padding_of_an_evaluation_reads_no_example_again(count, skip_bad):
    read = []

    class Counting(Numbers):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    data = Dataset(Source(Counting(count), (), str), transform, skip_bad=skip_bad)
    for process in range(4):  # the later ones have nothing but padding, all of the last example
        (batch,) = loader(threads=0, share=Share(process, 4)).eval_batches(data, batch_size=512)
        assert batch["id"].shape == (128,)
        assert batch[IS_EXAMPLE].sum() == (0 if process else count)
        assert set(batch["id"][count:]) <= {count - 1}
    assert len(read) == count + 3


def test_a_split_without_examples_is_one_sentence():
    with pytest.raises(UserError, match="the training split has no example"):
        next(loader().train_batches(dataset(0), seed=0, batch_size=2, start=0))
    with pytest.raises(UserError, match="the evaluation split has no example"):
        next(loader().eval_batches(dataset(0), batch_size=2))
    empty = Dataset(Source(Encoded(np.zeros((0, 2))), (), str), as_it_is)
    assert empty.gather
    with pytest.raises(UserError, match="the training split has no example"):
        next(loader().train_batches(empty, seed=0, batch_size=2, start=0))


def test_the_order_is_the_seeds():
    first = [order()[step] for step in range(5)]
    again = [order()[step] for step in range(5)]
    other = [order(seed=8)[step] for step in range(5)]
    assert all(np.array_equal(a["draw"], b["draw"]) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(ids(first), ids(other))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_same_order_and_the_same_draws(processes):
    for step in range(8):
        whole = order()[step]
        parts = [order(Share(p, processes))[step] for p in range(processes)]
        for name in ("id", "draw"):
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole[name])


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_reading_from_a_step_on_is_reading_on(threads):
    read = lambda start: loader(threads=threads).train_batches(dataset(), seed=7, batch_size=4, start=start)
    for step, batch in enumerate(itertools.islice(read(3), 6), start=3):
        np.testing.assert_array_equal(batch["draw"], order()[step]["draw"])
    far = next(read(10**9))
    np.testing.assert_array_equal(far["id"], order()[10**9]["id"])


def test_draws_differ_between_epochs():
    draws = np.concatenate([order()[step]["draw"] for step in range(15)])
    assert len(set(draws)) == 60


@pytest.mark.parametrize(("batch_size", "processes"), [(1, 1), (4, 1), (4, 2), (16, 4), (10, 2)])
def test_evaluation_counts_every_example_once(batch_size, processes):
    seen, rows = [], 0
    for p in range(processes):
        for batch in loader(share=Share(p, processes)).eval_batches(dataset(), batch_size=batch_size):
            assert len(batch["id"]) == batch_size // processes
            seen += list(batch["id"][batch[IS_EXAMPLE]])
            rows += len(batch["id"])
    assert sorted(seen) == list(range(10))
    assert rows == -(-10 // batch_size) * batch_size


@pytest.mark.parametrize(
    ("processes", "workers"),
    [(1, 0), (2, 0), (4, 0), (1, 2), *(pytest.param(n, 2, marks=pytest.mark.slow) for n in (2, 4))],
)
def test_three_epochs_are_the_same_for_any_number_of_processes_and_workers(processes, workers):
    """Each example occurs three times, and a step read directly is that step read in sequence."""
    data, batch_size = dataset(20), 4
    steps = 3 * 20 // batch_size
    parts = []
    for p in range(processes):
        reader = loader(workers, share=Share(p, processes))
        with contextlib.closing(reader.train_batches(data, seed=3, batch_size=batch_size, start=0)) as batches:
            parts.append(list(itertools.islice(batches, steps)))
        direct = train_order(data, seed=3, batch_size=batch_size, share=Share(p, processes))
        for step in (13, 2, 7):
            np.testing.assert_array_equal(direct[step]["draw"], parts[p][step]["draw"])
    found = {
        name: np.concatenate([part[step][name] for step in range(steps) for part in parts]) for name in ("id", "draw")
    }
    alone = [train_order(data, seed=3, batch_size=batch_size, share=Share(0, 1))[step] for step in range(steps)]
    np.testing.assert_array_equal(found["id"], ids(alone))
    np.testing.assert_array_equal(found["draw"], np.concatenate([batch["draw"] for batch in alone]))
    for epoch in found["id"].reshape(3, 20):
        assert sorted(epoch) == list(range(20))


def test_seeking_reads_no_example_before_its_step():
    read = []

    class Counting(Numbers):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    data = Dataset(Source(Counting(1000), (), str), transform)
    next(loader(threads=0).train_batches(data, seed=0, batch_size=8, start=10**7))
    assert len(read) == 8


def test_views_follow_each_other_with_draws_of_their_own():
    data = dataset(views=3)
    found = [train_order(data, seed=7, batch_size=6, share=Share(0, 1))[step] for step in range(5)]
    np.testing.assert_array_equal(ids(found), np.repeat(ids(order()[step] for step in range(5))[:10], 3))
    assert len(set(np.concatenate([batch["draw"] for batch in found]))) == 30
    parts = [train_order(data, seed=7, batch_size=6, share=Share(p, 2))[1] for p in range(2)]
    np.testing.assert_array_equal(np.concatenate([part["draw"] for part in parts]), found[1]["draw"])


@pytest.mark.parametrize("case", ["n10/epoch0", "n600/epoch0", "n600/epoch1"])
def test_repeated_augmentation_has_the_order_of_the_original_until_that_leaves_off(case):
    reference = np.load(DATA / "repeated_augmentation_reference.npz")
    of_both = lambda name: np.stack([reference[f"{case}/rank{r}{name}"] for r in range(2)], 1).ravel()
    drawn = reference[f"{case}/permutation"].tolist()
    ours = Views(grain.MapDataset.source(drawn), 3)
    shown = np.array([ours[i] for i in range(3 * len(drawn))])
    np.testing.assert_array_equal(shown, of_both("/untruncated"))  # its replicas take turns
    # Its epoch ends after as many images as there are examples, or some fewer, so with a third of them; ours with all.
    epoch = of_both("")
    np.testing.assert_array_equal(shown[: len(epoch)], epoch)
    assert len(epoch) <= len(drawn)
    assert len(set(epoch)) == -(-len(epoch) // 3)
    assert set(shown) == set(range(len(drawn)))


def test_the_views_of_an_example_may_lie_in_two_batches():
    batches = [train_order(dataset(views=3), seed=7, batch_size=4, share=Share(0, 1))[step] for step in range(6)]
    whole = [train_order(dataset(views=3), seed=7, batch_size=6, share=Share(0, 1))[step] for step in range(4)]
    for name in ("id", "draw"):
        found, expected = (np.concatenate([batch[name] for batch in one]) for one in (batches, whole))
        np.testing.assert_array_equal(found, expected)


def bad_transform(example, rng):
    if example["id"] in (3, 6):
        raise UserError("it is broken")
    return transform(example, rng)


def test_skipping_puts_another_in_the_place_of_a_bad_example():
    data = dataclasses.replace(dataset(skip_bad=True), transform=bad_transform)
    read = []
    for workers, threads in ((0, 0), (0, 2), (2, 1)):
        told = []
        reader = loader(workers, threads).train_batches(
            data, seed=7, batch_size=5, start=0, on_skipped=lambda dataset, index, told=told: told.append(index)
        )
        with contextlib.closing(reader) as batches:
            read.append((list(itertools.islice(batches, 6)), told))
    for batches, told in read:
        assert told == read[0][1]
        assert sorted(told) == [3, 3, 3, 6, 6, 6]
        for batch, again in zip(batches, read[0][0], strict=True):
            assert batch.keys() == {"id", "draw"}
            np.testing.assert_array_equal(batch["draw"], again["draw"])
    found, whole = (
        ids(read[0][0]),
        ids(train_order(dataset(), seed=7, batch_size=5, share=Share(0, 1))[s] for s in range(6)),
    )
    good = ~np.isin(whole, (3, 6))
    np.testing.assert_array_equal(found[good], whole[good])
    assert not set(found) & {3, 6}


def test_evaluation_leaves_skipped_examples_out():
    data, told = dataclasses.replace(dataset(skip_bad=True), transform=bad_transform), []
    batches = loader().eval_batches(data, batch_size=4, on_skipped=lambda dataset, index: told.append(index))
    assert ids({"id": batch["id"][batch[IS_EXAMPLE]]} for batch in batches).tolist() == [0, 1, 2, 4, 5, 7, 8, 9]
    assert told == [3, 6]


def test_data_that_is_all_bad_ends_in_one_sentence():
    def broken(example, rng):
        raise UserError("it is broken")

    data = dataclasses.replace(dataset(skip_bad=True), transform=broken)
    with pytest.raises(UserError, match=r"number \d: it is broken So are 9 others"):
        next(loader(threads=0).train_batches(data, seed=0, batch_size=2, start=0))


def test_a_dead_worker_process_ends_in_one_sentence():
    with contextlib.closing(loader(2).train_batches(dataset(), seed=0, batch_size=2, start=0)) as batches:
        next(batches)
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(UserError, match=r"a process that reads data died.*lower config\.loader\.workers"):
            list(itertools.islice(batches, 1000))


@pytest.mark.slow
def test_a_worker_process_whose_reader_was_killed_before_it_could_look_ends(tmp_path):
    script = tmp_path / "reader.py"
    script.write_text("""\
import multiprocessing, os, signal, sys, time
from vit_jax_mixer.data.workers import end_with_parent

def work(begun):
    begun.set()
    while os.getppid() == multiprocessing.parent_process().pid:
        time.sleep(0.1)
    end_with_parent()  # as Grain calls it, after imports of seconds
    time.sleep(3600)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    begun = context.Event()
    worker = context.Process(target=work, args=(begun,))
    worker.start()
    begun.wait()
    print(worker.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
""")
    reader = subprocess.Popen([sys.executable, script], cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
    with reader:
        pid = int(reader.stdout.readline())
        # The worker holds the other end, so that the pipe ends with it.
        ended = bool(select.select([reader.stdout], [], [], 60)[0])
        if not ended:
            os.kill(pid, signal.SIGKILL)
        assert ended


def test_worker_processes_end_with_their_reader():
    batches = loader(2).train_batches(dataset(), seed=0, batch_size=2, start=0)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    deadline = time.monotonic() + 30
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(("workers", "threads", "prefetch"), [(0, 2, 5), (1, 2, 2), (2, 4, 8)])
def test_what_is_made_ahead_is_bounded(workers, threads, prefetch, tmp_path):
    def noted(example, rng):
        (tmp_path / f"{rng.random()}").touch()
        return transform(example, rng)

    data = dataclasses.replace(dataset(), transform=noted)
    with contextlib.closing(
        loader(workers, threads, prefetch).train_batches(data, seed=0, batch_size=1, start=0)
    ) as batches:
        next(batches)
        made = -1
        while made != (made := len(list(tmp_path.iterdir()))):
            time.sleep(1)
    assert made <= 1 + max(workers, 1) * (max(threads, prefetch) + (4 if workers else 0)) + threads


def test_worker_processes_end_when_their_parent_is_killed():
    script = (
        "import multiprocessing, os, signal\n"
        "from tests.test_pipeline import dataset, loader\n"
        "if __name__ == '__main__':\n"
        "    batches = loader(1).train_batches(dataset(), seed=0, batch_size=2, start=0)\n"
        "    next(batches)\n"
        "    print(multiprocessing.active_children()[0].pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    line = [sys.executable, "-c", script]
    parent = subprocess.run(line, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True, check=False)
    worker, deadline = int(parent.stdout), time.monotonic() + 30
    while time.monotonic() < deadline and _alive(worker):
        time.sleep(0.1)
    assert not _alive(worker)


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # One that ended, and waits to be asked how, counts as ended.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_few_cores_have_threads_and_many_have_processes(monkeypatch):
    for cores, crew in ((1, (0, 2)), (2, (0, 3)), (8, (0, 9)), (16, (4, 4)), (96, (24, 4))):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, cores=cores: set(range(cores)))
        assert Loader(-1, -1, 1).crew() == crew
        assert Loader(3, 2, 1).crew() == (3, 2)


@pytest.mark.parametrize(
    ("field", "values"), [("workers", (-2, 2000)), ("threads", (-2, 100_000)), ("prefetch", (-1, 10**9, 10**30))]
)
def test_a_loader_beyond_any_machine_is_refused(field, values):
    for value in values:
        with pytest.raises(UserError, match=f"config.loader: {field} is .*; it must be "):
            specs.call(Loader, {"workers": 0, "threads": 1, "prefetch": 1, field: value}, "config.loader")


@pytest.mark.parametrize(("workers", "threads"), [(0, 0), (0, 2), (2, 1)])
def test_a_bad_example_is_named(workers, threads):
    data = dataclasses.replace(dataset(), transform=bad_transform)
    with pytest.raises(UserError) as error:
        list(itertools.islice(loader(workers, threads).train_batches(data, seed=0, batch_size=5, start=0), 2))
    assert str(error.value) in ("number 6: it is broken", "number 3: it is broken")


class Awkward(Exception):  # noqa: N818 # it cannot be unpickled: its arguments are not what it is made of
    def __init__(self, left, right):
        super().__init__(f"{left} and {right} differ")


def defective(example, rng):
    if example["id"] == 3:
        return example.shape
    if example["id"] == 6:
        raise Awkward(1, 2)
    return transform(example, rng)


@pytest.mark.parametrize(("workers", "threads"), [(0, 0), (0, 2), (2, 1)])
@pytest.mark.parametrize("bad", [3, 6])
def test_a_defect_in_an_operation_keeps_its_traceback_and_ends_the_reading(workers, threads, bad):
    source = Source([{"id": bad}], (), lambda i: "picture \x1b[2J")
    data = Dataset(source, defective, skip_bad=True)
    kind = AttributeError if bad == 3 else RuntimeError if workers else Awkward
    with pytest.raises(kind) as error:
        next(loader(workers, threads).train_batches(data, seed=0, batch_size=5, start=0))
    text = "".join(traceback.format_exception(error.value))
    assert "defective" in text
    assert ("has no attribute 'shape'" if bad == 3 else "1 and 2 differ") in text
    assert r"This happened in the example picture \x1b[2J." in text
    assert not multiprocessing.active_children()


def test_names_that_a_terminal_would_obey_are_named_once_and_escaped():
    source = Source(Numbers(10), (), lambda i: f"a\x1b]0;b\udce9{i}")
    data = Dataset(source, bad_transform, skip_bad=True)
    for sentence in (data.fault(3), data.fault(4)):
        assert sentence.count(r"a\x1b]0;b\xe9") == 1
        assert sentence.isprintable()


def test_examples_of_different_sizes_are_one_sentence():
    ragged = Dataset(Source(Numbers(10), (), str), lambda example, rng: {"image": np.zeros((example["id"] + 1, 2))})
    with pytest.raises(UserError, match=r"shapes \(\d+, 2\) and \(\d+, 2\); bring them to one size"):
        train_order(ragged, seed=0, batch_size=5, share=Share(0, 1))[0]
