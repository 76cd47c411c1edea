"""What a program computes, moves and sends is counted as often as it happens."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from cram_jax.training import chips, plan
from cram_jax.training.costs import costs


def compiled(function, *shapes) -> jax.stages.Compiled:
    return jax.jit(function).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile()


def repeated(times, function):
    return lambda x, *more: jax.lax.scan(lambda x, _: (function(x, *more), None), x, None, length=times)[0]


def test_a_program_without_loops_costs_what_the_compiler_says():
    program = compiled(lambda x, w, b: jnp.tanh(x @ w + b) @ w, (160, 320), (320, 320), (320,))
    found = costs(program.as_text())
    assert found.flops == 2 * (2 * 160 * 320 * 320) and not found.sent
    assert found.bytes == program.cost_analysis()["bytes accessed"]


def test_a_loop_costs_as_often_as_it_runs():
    layer = lambda x, w: jnp.tanh(x @ w)
    of = lambda function: costs(compiled(function, (160, 320), (320, 320)).as_text())
    one, ten, loops = of(layer), of(repeated(10, layer)), of(repeated(7, repeated(10, layer)))
    assert one.flops == 2 * 160 * 320 * 320
    assert ten.flops == 10 * one.flops and loops.flops == 70 * one.flops
    # Counters of the loops and a first copy are small
    assert ten.bytes == pytest.approx(10 * one.bytes, rel=0.1) and loops.bytes == pytest.approx(7 * ten.bytes, rel=0.1)


def test_what_a_loop_takes_of_a_stack_is_a_slice():
    def layers(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    few, many = (costs(compiled(layers, (8, 512), (depth, 512, 512)).as_text()) for depth in (4, 40))
    assert many.flops == 10 * few.flops == 40 * 2 * 8 * 512 * 512
    assert many.bytes == pytest.approx(10 * few.bytes, rel=0.01)


PROGRAM = """
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %part = f32[4]{0} get-tuple-element(%p), index=1
  %begins = (f32[4]{0}, f32[8]{0}) fusion(%part), kind=kCustom, calls=%one
  %all-gather.3 = f32[8]{0} fusion(%part), kind=kCustom, calls=%two
  %chosen = f32[8]{0} conditional(%part, %a, %b), branch_computations={%small, %large}
}

%one (a: f32[4]) -> (f32[4], f32[8]) {
  %a = f32[4]{0} parameter(0)
  %all-gather.1 = f32[8]{0} all-gather(%a), channel_id=23, dimensions={0}
  ROOT %both = (f32[4]{0}, f32[8]{0}) tuple(%a, %all-gather.1)
}

%two (a: f32[4]) -> f32[8] {
  %a = f32[4]{0} parameter(0)
  ROOT %all-gather.2 = f32[8]{0} all-gather(%a), channel_id=23, dimensions={0}
}

%small (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %all-to-all = f32[8]{0} all-to-all(%p), channel_id=24
}

%large (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %square = f32[8,8]{1,0} broadcast(%p), dimensions={0}
  ROOT %all-reduce = f32[8]{0} all-reduce(%p), channel_id=25
}

%condition (p: (s32[], f32[8])) -> pred[] {
  %p = (s32[], f32[8]{0}) parameter(0)
  %n = s32[] constant(24)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: f32[64,8]) -> f32[] {
  %x = f32[64,8]{1,0} parameter(0)
  %all-reduce.1 = (f32[64,8]{1,0:T(8,128)}, bf16[3]{0}) all-reduce(%x, %x), channel_id=39
  %start = (f32[4]{0}, f32[16]{0}) all-gather-start(%x), channel_id=40, dimensions={0}
  %all-gather.2 = f32[16]{0} all-gather-done(%start)
  %loop = (s32[], f32[8]{0}) while(%x), condition=%condition, body=%body
  ROOT %end = f32[] constant(0)
}
"""


def test_a_collective_counts_once_a_turn_however_many_fusions_it_spans_and_of_branches_the_dearest():
    assert costs(PROGRAM).sent == {"all-reduce": 64 * 8 * 4 + 3 * 2 + 24 * 8 * 4, "all-gather": 16 * 4 + 24 * 8 * 4}


def test_what_stays_in_the_fast_memory_is_no_traffic():
    number = 4 * 8  # bytes of one array
    found = costs("""
ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %room = f32[100,8]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  %read = f32[8]{0:T(8)S(1)} negate(%x)
  %nothing = f32[8]{0:T(8)S(1)} negate(%read)
  %slice = f32[100,8]{1,0} dynamic-update-slice(%room, %x, %read)
  %start = (f32[8]{0:S(1)}, f32[8]{0}, u32[]{:S(2)}) copy-start(%x)
  %copied = f32[8]{0:S(1)} copy-done(%start)
  ROOT %written = f32[8]{0} add(%copied, %nothing)
}
""")
    assert found.bytes == number + 0 + 2 * number + number + number


def test_chips_compute_their_part_and_send_as_often_as_a_loop_runs():
    pytest.importorskip("libtpu", reason="the TPU's compiler")
    here = chips.devices("v5e:2x2")
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=here)
    shape = lambda shape, *spec: jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, P(*spec)))

    def layers(x, w):
        rows = NamedSharding(mesh, P("data"))
        layer = lambda x, w: (jnp.tanh(jax.lax.with_sharding_constraint(x @ w, rows)), None)
        return jax.lax.scan(layer, x, w)[0]

    given = shape((1024, 512), "data"), shape((5, 512, 512), None, None, "data")
    found = costs(plan.compiled(jax.jit(layers).lower(*given)).as_text())
    assert found.flops == 5 * (2 * 256 * 512 * 512)
    assert found.sent == {"all-gather": 5 * (2 * 512 * 512)}

    # A product in parts, one for each sequence and head, is a convolution with a window there
    scores = lambda q, k: jnp.einsum("bthd,bshd->bhts", q, k)
    of_heads = plan.compiled(jax.jit(scores).lower(*[shape((8, 64, 6, 32), "data")] * 2))
    assert costs(of_heads.as_text()).flops == 2 * (2 * 64 * 64 * 6 * 32) == of_heads.cost_analysis()["flops"]


GPU = """
%body (p: (s32[], bf16[64,128])) -> (s32[], bf16[64,128]) {
  %p = (s32[], bf16[64,128]{1,0}) parameter(0)
  %x = bf16[64,128]{1,0} get-tuple-element(%p), index=1
  %w = bf16[128,32]{1,0} constant({...})
  %gemm = (bf16[64,32]{1,0}, s8[4096]{0}) custom-call(%x, %w), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  ROOT %out = (s32[], bf16[64,128]{1,0}) tuple(%p)
}

%until (p: (s32[], bf16[64,128])) -> pred[] {
  %p = (s32[], bf16[64,128]{1,0}) parameter(0)
  ROOT %less = pred[] fusion(%p), kind=kLoop, calls=%compared
}

%compared (p: s32[]) -> pred[] {
  %p = s32[] parameter(0)
  ROOT %c = pred[] compare(%p, %p), direction=LT
}

ENTRY %main (a: (s32[], bf16[64,128])) -> (s32[], bf16[64,128]) {
  %a = (s32[], bf16[64,128]{1,0}) parameter(0)
  ROOT %while = (s32[], bf16[64,128]{1,0}) while(%a), condition=%until, body=%body, backend_config={"known_trip_count":{"n":"5"}}
}
"""  # noqa: E501


def test_a_reduce_scatter_sends_what_goes_in():
    program = """
ENTRY %main (a: f32[1024]) -> f32[4] {
  %a = f32[1024]{0} parameter(0)
  ROOT %part = f32[4]{0} reduce-scatter(%a), channel_id=1, dimensions={0}, to_apply=%add
}
"""
    assert costs(program).sent == {"reduce-scatter": 4096}


def test_products_and_loops_as_the_compiler_of_gpus_writes_them():
    assert costs(GPU).flops == 5 * 2 * 64 * 128 * 32
