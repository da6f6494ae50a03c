"""What a program sends, read from its HLO: loops, groups of devices, kinds, and a real program."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from xgen_jax.parallel.collectives import collectives, replica_groups, shape_bytes
from xgen_jax.parallel.mesh import MeshConfig, make_mesh

# A loop of 5 in a loop of 3, as the compilers write them: the number known, and in the condition.
LOOPS = """
HloModule program

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%inner_body (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %p = (s32[]{:T(128)}, /*index=1*/f32[8,16]{1,0:T(8,128)}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,16]{1,0} get-tuple-element(%p), index=1
  %sum = f32[8,16]{1,0} all-reduce(%x), replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %out = (s32[], f32[8,16]{1,0}) tuple(%i, %sum)
}

%inner_condition (p: (s32[], f32[8,16])) -> pred[] {
  %p = (s32[], f32[8,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %five = s32[]{:T(128)} constant(5)
  ROOT %less = pred[] compare(%i, %five), direction=LT
}

%outer_body (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %p = (s32[], f32[8,16]{1,0}) parameter(0)
  ROOT %inner = (s32[], f32[8,16]{1,0}) while(%p), condition=%inner_condition, body=%inner_body
}

%all-reduce-scatter.1 (x: bf16[64]) -> bf16[16] {
  %x = bf16[64]{0} parameter(0)
  %whole = bf16[64]{0} all-reduce(%x), replica_groups=[1,4]<=[4], to_apply=%add
  %zero = s32[] constant(0)
  ROOT %part = bf16[16]{0} dynamic-slice(%whole, %zero), dynamic_slice_sizes={16}
}

%small (x: bf16[64]) -> bf16[64] {
  ROOT %x = bf16[64]{0} parameter(0)
}

%large (x: bf16[64]) -> bf16[64] {
  %x = bf16[64]{0} parameter(0)
  ROOT %y = bf16[64]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
}

ENTRY %main (x: f32[8,16], y: bf16[64]) -> f32[8,16] {
  %x = f32[8,16]{1,0} parameter(0)
  %y = bf16[64]{0} parameter(1)
  %count = s32[] constant(0)
  %start = (s32[], f32[8,16]{1,0}) tuple(%count, %x)
  %outer = (s32[], f32[8,16]{1,0}) while(%start), condition=%any, body=%outer_body, BACKEND
  %scattered = bf16[16]{0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1
  %begun = (bf16[16]{0}, bf16[64]{0}) all-gather-start(%scattered), replica_groups={}
  %gathered = bf16[64]{0} all-gather-done(%begun)
  %which = pred[] constant(true)
  %chosen = bf16[64]{0} conditional(%which, %y, %y), BRANCHES
  %alone = bf16[64]{0} all-gather(%y), replica_groups={{0},{1},{2},{3}}, dimensions={0}
  ROOT %result = f32[8,16]{1,0} get-tuple-element(%outer), index=1
}
"""
BRANCHES = "true_computation=%small, false_computation=%large"
LISTED = "branch_computations={%small, %large}"
KNOWN = 'backend_config={"known_trip_count":{"n":"3"},"dynamic_variables":[]}'


@pytest.mark.parametrize("branches", [BRANCHES, LISTED])
def test_operations_in_loops_count_as_often_as_they_run(branches):
    program = LOOPS.replace("BACKEND", KNOWN).replace("BRANCHES", branches)
    found = collectives(program, [0, 0, 1, 1])
    assert found.endless == 0
    assert found.table() == {
        # 64 bytes a row of 16 values, 8 rows; between two devices of a domain, 15 times.
        "all-reduce": {"count": 15, "link_bytes": 15 * 512, "network_bytes": 0},
        # Over all four devices: 32 bytes to the other domain, then as much of it as one's own to
        # the neighbour; the other way round, sums of 64 bytes, and half of that to the others.
        "all-gather": {"count": 1, "link_bytes": 64, "network_bytes": 32},
        "reduce-scatter": {"count": 1, "link_bytes": 64, "network_bytes": 32},
        "collective-permute": {"count": 1, "link_bytes": 128, "network_bytes": 0},
    }


def test_a_loop_of_unknown_length_counts_once_and_is_reported():
    program = LOOPS.replace("BACKEND", "metadata={}").replace("BRANCHES", LISTED)
    found = collectives(program, [0] * 4)
    assert found.endless == 1
    assert found.count["all-reduce"] == 5
    assert found.network_bytes.total() == 0


SLICES = """
ENTRY %main (x: bf16[1024,8,128]) -> token[] {
  %x = bf16[1024,8,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %after = token[] after-all()
  %send = (bf16[1024,8,128]{2,1,0}, u32[], token[]) send(%x, %after), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{TARGET}x{0:3}",_xla_megascale_transfer_type="KIND",is_spmd_generated="true"}
  ROOT %done = token[] send-done(%send), channel_id=2, is_host_transfer=true
}
"""  # noqa: E501  (as the compiler writes it)


@pytest.mark.parametrize(
    ("target", "kind", "sent"),
    [
        ("1,2", "ALL_REDUCE", 2 * 2**20),
        ("1:4", "ALL_REDUCE", 3 * 2**20),
        ("1,2,5:6", "ALL_GATHER", 6 * 2**20),
        ("1,2", "ONE_TO_ONE", 2 * 2**20),
        ("1,2", "REDUCE_SCATTER", 2**20),
    ],
)
def test_what_goes_to_other_slices_through_the_host_is_network_traffic(target, kind, sent):
    program = SLICES.replace("TARGET", target).replace("KIND", kind)
    name = {"ONE_TO_ONE": "collective-permute"}.get(kind, kind.lower().replace("_", "-"))
    expected = {name: {"count": 1, "link_bytes": 0, "network_bytes": sent}}
    assert collectives(program, [0, 0, 1, 1]).table() == expected


@pytest.mark.parametrize(
    ("attributes", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}, dimensions={0}", [(0, 1), (2, 3)]),
        ("channel_id=1, replica_groups=[2,2]<=[4], use_global_device_ids=true", [(0, 1), (2, 3)]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), to_apply=%add", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}, dimensions={0}", [(0, 1), (2, 3)]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, dimensions={0}", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}", [(0, 1), (2, 3)]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [(0, 1, 2, 3)]),
        ("source_target_pairs={{0,1},{1,2},{3,3}}", [(0, 1), (1, 2), (3, 3)]),
        ("replica_groups={}, dimensions={0}", [(0, 1, 2, 3)]),
    ],
)
def test_groups_of_devices_are_read_in_every_form(attributes, groups):
    assert sorted(map(tuple, map(sorted, replica_groups(attributes, 4)))) == sorted(groups)


def test_bytes_of_shapes():
    assert shape_bytes("f32[2,3]{1,0:T(8,128)S(1)}") == 24
    assert shape_bytes("(bf16[5], /*index=1*/pred[3]{0}, token[], s32[])") == 17
    assert shape_bytes("u4[7,2]") == 7
    assert shape_bytes("f8e4m3fn[4]") == 4


def test_a_scan_over_sharded_layers_gathers_each_of_them_in_both_directions():
    mesh, depth, width = make_mesh(MeshConfig(), jax.devices()[:8]), 6, 128

    def loss(layers, x):
        def layer(x, kernel):
            return jax.numpy.tanh(x @ kernel), None

        return jax.lax.scan(layer, x, layers)[0].sum()

    def shape(dims, *spec):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(dims, np.float32, sharding=sharding)

    layers = shape((depth, width, width), None, "fsdp")
    gradient = jax.jit(jax.grad(loss), out_shardings=layers.sharding)
    compiled = gradient.lower(layers, shape((64, width), "fsdp")).compile()
    found = collectives(compiled.as_text(), [0] * 8)
    kernel = 4 * width**2
    assert found.endless == 0
    # Once forward and once backward; 7 of 8 parts come from others.
    assert found.link_bytes["all-gather"] == 2 * depth * kernel * 7 / 8
    # The gradient of each kernel is summed over the batch, whole or in parts.
    summed = found.link_bytes["all-reduce"] + found.link_bytes["reduce-scatter"]
    assert depth * kernel * 7 / 8 <= summed <= 2.1 * depth * kernel * 7 / 8
    assert found.network_bytes.total() == 0
    # On two hosts of four: as many bytes in all, of the gathers one in seven between them.
    hosts = collectives(compiled.as_text(), [0] * 4 + [1] * 4)
    assert hosts.sent == found.sent
    assert hosts.network_bytes["all-gather"] == found.link_bytes["all-gather"] / 7
