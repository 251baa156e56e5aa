"""What a program costs, from its text: products, bytes, loops, messages."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_jax_mixer.plan import cost, hlo

# As libtpu writes them: tiles and memory spaces in the layout, products as convolutions, a loop without its
# count (1, 3, 5, 7, 9), a message that is spread over several fusions, and one that runs in each turn of the
# loop.
TPU = """HloModule jit_step, is_scheduled=true, num_partitions=4

%start (p.1: bf16[16,64]) -> (bf16[16,64], bf16[64,64], u32[]) {
  %p.1 = bf16[16,64]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %gather.1 = bf16[64,64]{1,0:T(8,128)(2,1)} all-gather(%p.1), channel_id=9, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %c = (bf16[16,64], bf16[64,64], u32[]) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%product (p.2: f32[32,64], p.3: bf16[5,64,64], p.4: s32[]) -> f32[32,64] {
  %p.2 = f32[32,64]{1,0:T(8,128)} parameter(0)
  %p.3 = bf16[5,64,64]{2,1,0:T(8,128)(2,1)} parameter(1)
  %p.4 = s32[]{:T(128)S(6)} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  %slice = bf16[1,64,64]{2,1,0} dynamic-slice(%p.3, %p.4, %zero, %zero), dynamic_slice_sizes={1,64,64}
  %weights = bf16[64,64]{1,0} bitcast(%slice)
  ROOT %convolution.1 = f32[32,64]{1,0:T(8,128)} convolution(%p.2, %weights), dim_labels=bf_io->bf
}

%body (state: (s32[], f32[32,64], bf16[5,64,64])) -> (s32[], f32[32,64], bf16[5,64,64]) {
  %state = (s32[]{:T(128)}, f32[32,64]{1,0:T(8,128)}, /*index=2*/bf16[5,64,64]{2,1,0}) parameter(0)
  %i = s32[]{:T(128)S(6)} get-tuple-element(%state), index=0
  %x = f32[32,64]{1,0} get-tuple-element(%state), index=1
  %w = bf16[5,64,64]{2,1,0} get-tuple-element(%state), index=2
  %one = s32[]{:T(128)S(6)} constant(1)
  %after = s32[]{:T(128)S(6)} add(%i, %one)
  %next = s32[]{:T(128)S(6)} add(%one, %after)
  %fusion.1 = f32[32,64]{1,0:T(8,128)S(1)} fusion(%x, %w, %i), kind=kOutput, calls=%product
  %sum = f32[32,64]{1,0:S(1)} all-reduce(%fusion.1), channel_id=3, replica_groups=mesh['a'=2,'b'=2] {'b'}, to_apply=%add
  %copy-start.1 = (f32[32,64]{1,0}, f32[32,64]{1,0:S(1)}, u32[]{:S(2)}) copy-start(%sum)
  %copy-done.1 = f32[32,64]{1,0} copy-done(%copy-start.1)
  ROOT %t = (s32[], f32[32,64]{1,0}, bf16[5,64,64]{2,1,0}) tuple(%next, %copy-done.1, %w)
}

%condition (state.1: (s32[], f32[32,64], bf16[5,64,64])) -> pred[] {
  %state.1 = (s32[], f32[32,64]{1,0}, bf16[5,64,64]{2,1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %limit = s32[]{:T(128)} constant(10)
  ROOT %less = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}

ENTRY %main (a: f32[32,64], b: bf16[5,64,64], c: bf16[16,64]) -> f32[32,64] {
  %a = f32[32,64]{1,0} parameter(0), sharding={replicated}, metadata={op_name="x = (f32)"}
  %b = bf16[5,64,64]{2,1,0} parameter(1)
  %c = bf16[16,64]{1,0:S(1)} parameter(2)
  %first = s32[]{:S(6)} constant(1)
  %zero.1 = s32[]{:S(6)} copy(%first)
  %begin = (bf16[16,64]{1,0:S(1)}, bf16[64,64]{1,0:S(1)}, u32[]{:S(2)}) fusion(%c), kind=kCustom, calls=%start
  %again = (bf16[16,64]{1,0:S(1)}, bf16[64,64]{1,0:S(1)}, u32[]{:S(2)}) fusion(%c), kind=kCustom, calls=%start
  %tuple.1 = (s32[], f32[32,64]{1,0}, bf16[5,64,64]{2,1,0}) tuple(%zero.1, %a, %b)
  %while.1 = (s32[], f32[32,64]{1,0}, bf16[5,64,64]{2,1,0}) while(%tuple.1), condition=%condition, body=%body
  ROOT %out = f32[32,64]{1,0} get-tuple-element(%while.1), index=1
}
"""


def compiled(function, *args, **kwargs):
    return jax.jit(function, **kwargs).lower(*args).compile()


def cost_of(program):
    return cost.cost_of(hlo.parse(program.as_text()))


def test_a_program_of_a_tpu_is_read():
    found = cost.cost_of(hlo.parse(TPU))
    assert found.flop == {"f32": 5 * 2 * 32 * 64 * 64}
    x, weights = 32 * 64 * 4, 64 * 64 * 2
    # Each turn reads x and a fifth of the weights and writes x back; VMEM (S(1)) is not main memory.
    assert found.bytes == 5 * (x + weights + x)
    assert found.bytes_once == x + weights + x
    gather = cost.Collective("all-gather", 4, 64 * 64 * 2)
    assert found.collectives == (gather, cost.Collective("all-reduce", 2, 5 * x))
    assert gather.sent == 64 * 64 * 2 * 3 / 4


def test_flop_and_bytes_are_those_of_xla_where_there_is_no_loop():
    def step(w, x):
        image = jax.lax.conv_general_dilated(x, w["conv"], (2, 2), [(1, 2), (0, 1)], rhs_dilation=(1, 2))
        return jnp.mean((image.reshape(len(x), -1) @ w["dense"]) ** 2)

    w = {"conv": jnp.ones((8, 3, 5, 5)), "dense": jnp.ones((8 * 13 * 9, 64))}
    x = jnp.ones((16, 3, 27, 25))
    program = compiled(jax.grad(step), w, x)
    found, expected = cost_of(program), program.cost_analysis()
    assert sum(found.flop.values()) == pytest.approx(expected["flops"], rel=0.05)
    assert sum(found.flop.values()) < expected["flops"]  # which counts additions as well
    assert found.bytes == pytest.approx(expected["bytes accessed"], rel=0.05)


def test_a_loops_body_counts_as_often_as_it_runs():
    def loop(w, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].sum()

    w, x = jnp.ones((7, 64, 64)), jnp.ones((32, 64))
    program = compiled(jax.grad(loop), w, x)
    assert sum(cost_of(program).flop.values()) == 3 * 7 * 2 * 32 * 64 * 64
    assert program.cost_analysis()["flops"] < 7 * 2 * 32 * 64 * 64


def test_the_messages_between_devices_are_found():
    mesh = Mesh(jax.devices(), ("d",))
    spread, whole = (NamedSharding(mesh, spec) for spec in (PartitionSpec("d"), PartitionSpec()))
    x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=spread)
    (message,) = cost_of(compiled(lambda x: x.sum(0), x, out_shardings=whole)).collectives
    assert message == cost.Collective("all-reduce", 2, 32 * 4)
    (message,) = cost_of(compiled(lambda x: x + 1, x, out_shardings=whole)).collectives
    assert message == cost.Collective("all-gather", 2, 64 * 32 * 4)
    assert message.sent == 64 * 32 * 4 / 2


def test_a_loop_of_unknown_length_counts_once_and_is_told():
    def until(x):
        return jax.lax.while_loop(lambda x: x.sum() < 1000, lambda x: x @ x, x)

    def loops(x):
        return jax.lax.scan(lambda x, _: (until(x), None), x, length=3)[0]

    found = cost_of(compiled(loops, jnp.ones((32, 32))))
    (name,) = found.unknown_loops
    assert name.startswith("while")
    assert sum(found.flop.values()) == 3 * 2 * 32**3
    assert cost.cost_of(hlo.parse(TPU)).unknown_loops == ()
    noise = compiled(lambda x, key: (x @ x, jax.random.gamma(key, 0.2)), jnp.ones((1024, 1024)), jax.random.key(0))
    assert "while(" in noise.as_text()
    assert cost_of(noise).unknown_loops == ()  # it draws until a number is accepted
    lost = TPU.replace("direction=LT", "direction=GT")
    assert cost.cost_of(hlo.parse(lost)).unknown_loops == ("while.1",)


@pytest.mark.parametrize(
    ("attributes", "groups"),
    [
        ("replica_groups=[4,2]<=[8]", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("replica_groups={{0,1,2,3},{4,5,6,7}}, use_global_device_ids=true", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=mesh['a'=2,'b'=3,'c'=1] {'a','b'}", [[0, 1, 2, 3, 4, 5]]),
        ("replica_groups=mesh['a'=2,'b'=3] {'a'}, dimensions={0}", [[0, 3], [1, 4], [2, 5]]),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=3,'b'=2], device_ids=([2,3]T(1,0)) {'a'}, dimensions={0}", [[0, 1, 2], [3, 4, 5]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=(0,2,1,3) {'b'}", [[0, 2], [1, 3]]),
        ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
        ("channel_id=1, replica_groups={}", []),
    ],
)
def test_the_devices_of_each_group_are_read(attributes, groups):
    assert cost._groups(attributes) == groups


@pytest.mark.parametrize(
    ("groups", "size", "nodes"),
    [
        ("replica_groups=[8,2]<=[2,8]T(1,0)", 2, 2),
        ("replica_groups=[2,8]<=[16]", 8, 1),
        ("replica_groups=[1,16]<=[16]", 16, 2),
        ("source_target_pairs={{6,7},{7,8}}", 2, 2),
    ],
)
def test_messages_that_leave_a_node_are_told_from_those_that_do_not(groups, size, nodes):
    line = f"  ROOT %sum = f32[64]{{0}} all-reduce(%x), channel_id=1, {groups}, to_apply=%add"
    text = f"ENTRY %main (x: f32[64]) -> f32[64] {{\n  %x = f32[64]{{0}} parameter(0)\n{line}\n}}\n"
    assert cost.cost_of(hlo.parse(text), 8).collectives == (cost.Collective("all-reduce", size, 256, nodes),)
    assert cost.cost_of(hlo.parse(text)).collectives == (cost.Collective("all-reduce", size, 256),)
