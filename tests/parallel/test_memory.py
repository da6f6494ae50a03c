"""Bytes of compiled programs, and the longest chunk within a budget."""

import types

import jax
import numpy as np
import pytest

from xgen_jax.parallel.memory import format_gb, largest_chunk, program_bytes, tree_bytes

MATRIX = jax.ShapeDtypeStruct((256, 256), np.float32)
SIZE = 4 * 256 * 256


@pytest.mark.parametrize("budget", [0, 9, 10, 11, 34, 35, 1000])
@pytest.mark.parametrize("most", [1, 2, 7, 100])
def test_largest_chunk_within_a_budget_takes_few_measurements(most, budget):
    measured = []

    def measure(n):
        measured.append(n)
        return 5 + 5 * n

    assert largest_chunk(measure, most, budget) == min(most, max(0, budget // 5 - 1))
    assert len(measured) == len(set(measured)) <= 2 * np.log2(most) + 2


def test_program_bytes_count_a_donated_argument_once():
    def update(x, y):
        return x + y

    plain = program_bytes(jax.jit(update).lower(MATRIX, MATRIX).compile())
    donated = program_bytes(jax.jit(update, donate_argnums=0).lower(MATRIX, MATRIX).compile())
    assert plain == 3 * SIZE
    assert donated == 2 * SIZE


def test_program_bytes_include_temporaries():
    program = jax.jit(lambda x: jax.numpy.tanh(x @ x) @ x).lower(MATRIX).compile()
    assert program_bytes(program) >= 3 * SIZE


class TPU:
    platform = "tpu"


# As libtpu 0.0.52 reports a scan over ten layers, whose inputs are on the host or are not.
@pytest.mark.parametrize(
    "peak,temporaries,host,needed",
    [
        (882_908_160, 805_388_288, 0, 882_908_160),
        (748_690_432, 268_730_368, 671_088_640, 346_326_016),
    ],
)
def test_program_bytes_leave_the_memory_of_the_host_out(peak, temporaries, host, needed):
    report = types.SimpleNamespace(
        argument_size_in_bytes=72_351_744,
        output_size_in_bytes=5_243_904,
        alias_size_in_bytes=0,
        temp_size_in_bytes=temporaries,
        host_temp_size_in_bytes=host,
        peak_memory_in_bytes=peak,
    )
    compiled = types.SimpleNamespace(
        memory_analysis=lambda: report,
        output_shardings=[types.SimpleNamespace(device_set=[TPU()])],
    )
    assert program_bytes(compiled) == needed


def test_tree_bytes_and_their_text():
    tree = {"a": MATRIX, "b": [np.zeros(3, np.float16)]}
    assert tree_bytes(tree) == SIZE + 6
    assert format_gb(3.14159e9) == "3.14 GB"
