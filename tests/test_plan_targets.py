"""What a run can be planned for: chips, how they are joined, and the least time of a step on them."""

import pytest

from tests.test_plan import target
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.plan import cost, this_machine
from vit_jax_mixer.plan.roofline import bill, roofline
from vit_jax_mixer.run import hardware


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5e", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
    ],
)
def test_a_chip_is_known_by_the_kind_that_jax_gives_it(kind, name):
    assert hardware._peak(kind) == hardware.CHIPS[name].flops["bfloat16"]
    assert hardware._peak("cpu") == 0


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("v5e", ["needs a topology", "v5e:2x2"]),
        ("v5e:3x5", ["no topology '3x5'", "v5e:16x16"]),
        ("v4:2x2", ["no topology '2x2'", "v4:2x2x1"]),
        ("v7:2x2", ["'v7' is not known", "v6e"]),
        ("h100:0", ["h100:8"]),
        ("h100:4x2", ["h100:8"]),
        ("h100:" + "9" * 5000, ["h100:8"]),
        ("", ["--target=v5e:16x16"]),
    ],
)
def test_a_target_that_does_not_exist_is_told_with_those_that_do(name, parts):
    with pytest.raises(UserError) as error:
        target(name)
    for part in parts:
        assert part in str(error.value)


def test_a_ring_uses_the_links_that_there_are():
    message = lambda nodes: cost.Cost({}, 0, 0, (cost.Collective("all-reduce", 2, 1e9, nodes),))
    assert target("v5e:16x16").bandwidth(256) == 4 * 50e9
    assert target("v5e:16x16").bandwidth(16) == 2 * 50e9
    assert target("v5e:4x4").bandwidth(16) == 2 * 50e9  # open axes
    assert target("v5e:2x2").bandwidth(2) == 50e9
    assert target("v4:4x4x4").bandwidth(64) == 6 * 50e9
    assert target("h100:8").bandwidth(8) == 450e9
    assert target("a100:16").bandwidth(16, nodes=2) == 8 * 25e9
    assert target("h100:16").bandwidth(8, nodes=1) == 450e9
    assert target("h100:16").bandwidth(2, nodes=2) == 50e9  # one GPU of each node: one port
    assert roofline(message(2), target("h100:16")).interconnect == 1e9 / 50e9
    assert roofline(message(1), target("h100:16")).interconnect == 1e9 / 450e9


def test_the_roofline_is_the_longest_of_three_times():
    message = cost.Collective("all-reduce", 256, 1e9)
    line = roofline(cost.Cost({"bf16": 197e10, "f32": 197e10}, 819e6, 819e6, (message,)), target("v5e:16x16"))
    assert line.arithmetic == pytest.approx(0.02)
    assert line.memory == pytest.approx(0.001)
    assert line.interconnect == pytest.approx(2 * 255 / 256 / 200)
    assert (line.seconds, line.bound) == (line.arithmetic, "arithmetic")
    costs = bill(line, utilisation=0.5, steps=90_000, batch_size=4096, chips=256)
    assert costs.examples_per_second == pytest.approx(4096 / 0.04)
    assert costs.hours == pytest.approx(1)
    assert costs.chip_hours == pytest.approx(256)


def test_the_memory_of_this_machine_is_what_its_container_may_take(tmp_path):
    physical = this_machine.memory(tmp_path)
    assert physical > 2**20
    (tmp_path / "memory.max").write_text("max\n")
    assert this_machine.memory(tmp_path) == physical
    (tmp_path / "memory.max").write_text("1048576\n")
    assert this_machine.memory(tmp_path) == 2**20
    (tmp_path / "memory.max").unlink()
    (tmp_path / "memory").mkdir()
    limit = tmp_path / "memory/memory.limit_in_bytes"
    limit.write_text("9223372036854771712\n")  # none
    assert this_machine.memory(tmp_path) == physical
    limit.write_text("524288\n")
    assert this_machine.memory(tmp_path) == 2**19
