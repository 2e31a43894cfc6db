"""What users of NKI complain of, each as a small kernel: ours refuses it and says where.

The lines that are at fault carry the mark `# here`.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nki_kernels.simulator import NkiValidationError, jit, session
from nki_kernels.simulator import isa as nisa
from nki_kernels.simulator import language as nl

X = np.arange(128 * 64, dtype=np.float32).reshape(128, 64)
TABLE = np.arange(32, dtype=np.float32).reshape(8, 4)


def marked(kernel: Callable[..., Any]) -> str:
    """file:line of the kernel's mark."""
    lines, first = inspect.getsourcelines(kernel)
    (offset,) = [at for at, line in enumerate(lines) if line.rstrip().endswith("# here")]
    return f"{__file__}:{first + offset}"


def refused(kernel: Callable[..., Any], *inputs: Any, grid: int = 1, **options: Any) -> str:
    """The rule that refuses the kernel at its mark."""
    with (
        session(**({"target": "trn2"} | options)),
        pytest.raises(NkiValidationError) as caught,
    ):
        jit(kernel)[grid](*inputs) if grid > 1 else jit(kernel)(*inputs)
    assert caught.value.line == marked(kernel)
    return caught.value.rule


# Kernels that return zeros, silently.


def forgets_to_store(x: Any) -> Any:
    out = nl.ndarray(x.shape, x.dtype, buffer=nl.shared_hbm)  # here
    tile = nl.load(x)
    nisa.tensor_scalar(tile, tile, op0=nl.multiply, operand0=2.0)
    return out


def stores_one_tile_of_two(x: Any) -> Any:
    out = nl.ndarray((256, 64), x.dtype, buffer=nl.shared_hbm)  # here
    nisa.dma_copy(out[0:128], nl.load(x))
    return out


def forgets_to_return(x: Any) -> None:
    out = nl.ndarray(x.shape, x.dtype, buffer=nl.shared_hbm)  # here
    nisa.dma_copy(out, nl.load(x))


def writes_into_its_argument(x: Any, out: Any) -> None:
    nisa.dma_copy(out, nl.load(x))  # here


def reads_what_nobody_loaded(x: Any) -> Any:
    out = nl.ndarray(x.shape, x.dtype, buffer=nl.shared_hbm)
    tile = nl.ndarray(x.shape, x.dtype)
    nisa.tensor_scalar(tile, tile, op0=nl.multiply, operand0=2.0)  # here
    nisa.dma_copy(out, tile)
    return out


def one_core_writes_its_half_only(x: Any) -> Any:
    out = nl.ndarray(x.shape, x.dtype, buffer=nl.shared_hbm)  # here
    if nl.program_id(0) == 0:
        nisa.dma_copy(out[0:64], nl.load(x[0:64]))
    return out


@pytest.mark.parametrize(
    ("kernel", "inputs", "grid", "rule"),
    [
        (forgets_to_store, (X,), 1, "output-unwritten"),
        (stores_one_tile_of_two, (X,), 1, "read-undefined"),
        (forgets_to_return, (X,), 1, "no-output"),
        (writes_into_its_argument, (X, np.zeros_like(X)), 1, "undeclared-write"),
        (reads_what_nobody_loaded, (X,), 1, "read-undefined"),
        (one_core_writes_its_half_only, (X,), 2, "read-undefined"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_kernel_that_would_return_zeros_is_refused(
    kernel: Any, inputs: Any, grid: int, rule: str
) -> None:
    assert refused(kernel, *inputs, grid=grid, strict=True) == rule


def test_an_output_that_nobody_wrote_is_refused_even_where_a_session_is_not_strict() -> None:
    assert refused(forgets_to_store, X) == "output-unwritten"


def test_a_kernel_of_the_old_compiler_is_refused_by_name() -> None:
    def kernel(x: Any) -> Any:
        rows = nl.arange(128)  # here
        return rows

    assert refused(kernel, X) == "nki-version"


# Kernels that pass alone and go out of bounds inside a model.


def row_at(table: Any, index: Any) -> Any:
    out = nl.ndarray((1, 4), table.dtype, buffer=nl.shared_hbm)
    at = nl.load(index)
    nisa.dma_copy(out, table.ap([[4, 1], [1, 4]], scalar_offset=at))  # here
    return out


def rows_at(table: Any, index: Any) -> Any:
    out = nl.ndarray((2, 4), table.dtype, buffer=nl.shared_hbm)
    at = nl.load(index)
    rows = nl.ndarray((2, 4), table.dtype)
    nisa.dma_copy(rows, table.ap([[4, 2], [1, 4]], vector_offset=at))  # here
    nisa.dma_copy(out, rows)
    return out


def row_into(table: Any, index: Any) -> Any:
    out = nl.ndarray((2, 4), table.dtype, buffer=nl.shared_hbm)
    at = nl.load(index)
    nisa.dma_copy(out, nl.load(table[0:2]))
    nisa.dma_copy(out.ap([[4, 2], [1, 4]], vector_offset=at), nl.load(table[0:2]))  # here
    return out


def walks_by_a_loop(table: Any, count: Any) -> Any:
    out = nl.ndarray((1, 4), table.dtype, buffer=nl.shared_hbm)

    def body(i: Any) -> None:
        nisa.dma_copy(out, table.ap([[4, 1], [1, 4]], scalar_offset=i))  # here

    nl.fori_loop(0, nisa.scalar_load(count), body)
    return out


@pytest.mark.parametrize(
    ("kernel", "alone", "rows", "in_a_model"),
    [
        (row_at, [[7]], [7], [[8]]),
        (row_at, [[0]], [0], [[-1]]),
        (rows_at, [[0], [7]], [0, 7], [[0], [8]]),
        (rows_at, [[0], [7]], [0, 7], [[-1], [0]]),
        (row_into, [[1], [0]], [1, 0], [[0], [2]]),
        (walks_by_a_loop, [[8]], [7], [[9]]),
    ],
    ids=["scalar", "scalar-negative", "gather", "gather-negative", "scatter", "loop"],
)
def test_a_run_time_index_outside_is_refused_where_it_is_used(
    kernel: Any, alone: Any, rows: list[int], in_a_model: Any
) -> None:
    with session(target="trn2", strict=True):
        found = jit(kernel)(TABLE, np.array(alone, np.int32))
    np.testing.assert_array_equal(found, TABLE[rows])
    assert refused(kernel, TABLE, np.array(in_a_model, np.int32)) == "dma-bounds"


# Kernels that simulate elsewhere and fail on a device.


def starts_at_partition_40(x: Any) -> None:
    tile = nl.load(x)
    nisa.tensor_scalar(tile[40:72], tile[40:72], op0=nl.add, operand0=1.0)  # here


def moves_out_of_psum_by_dma(x: Any) -> None:
    tile = nl.load(x)
    result = nl.ndarray((64, 64), nl.float32, buffer=nl.psum)
    nisa.nc_matmul(result, stationary=tile, moving=tile)
    out = nl.ndarray((64, 64), nl.float32, buffer=nl.shared_hbm)
    nisa.dma_copy(out, result)  # here


def fills_sbuf_twice(x: Any) -> None:
    one = nl.ndarray((128, 32 * 1024), nl.float32)  # here
    other = nl.ndarray((128, 30 * 1024), nl.float32)
    nisa.memset(one, 0.0)
    nisa.memset(other, 0.0)
    nisa.tensor_copy(one[:, 0:64], other[:, 0:64])


def spans_two_banks(x: Any) -> None:
    tile = nl.load(x)
    wide = nl.ndarray((64, 768), nl.float32, buffer=nl.psum)
    nisa.nc_matmul(wide[:, 480:544], stationary=tile, moving=tile)  # here


def accumulates_onto_a_copy(x: Any) -> None:
    tile = nl.load(x)
    total = nl.ndarray((64, 64), nl.float32, buffer=nl.psum)
    nisa.memset(total, 0.0)
    nisa.nc_matmul(total, stationary=tile, moving=tile, accumulate=True)  # here


def rounds_silently_on_gen2(x: Any) -> None:
    tile = nl.load(x)
    result = nl.ndarray((64, 64), nl.bfloat16, buffer=nl.psum)
    nisa.nc_matmul(result, stationary=tile, moving=tile)  # here


def dma_of_another_shape(x: Any) -> None:
    tile = nl.ndarray((128, 32), nl.float32)
    nisa.dma_copy(tile, x)  # here


@pytest.mark.parametrize(
    ("kernel", "rule"),
    [
        (starts_at_partition_40, "partition-start"),
        (moves_out_of_psum_by_dma, "buffer"),
        (fills_sbuf_twice, "sbuf-capacity"),
        (spans_two_banks, "psum-bank"),
        (accumulates_onto_a_copy, "accumulate-foreign"),
        (rounds_silently_on_gen2, "dtype"),
        (dma_of_another_shape, "element-count"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_the_device_cannot_do_is_refused(kernel: Any, rule: str) -> None:
    target = "trn1" if kernel is rounds_silently_on_gen2 else "trn2"
    assert refused(kernel, X, target=target, strict=rule == "accumulate-foreign") == rule


def test_a_loop_that_counts_to_a_run_time_value_is_refused() -> None:
    def kernel(n: Any) -> None:
        for _ in range(nisa.scalar_load(n)):  # here
            pass

    assert refused(kernel, np.array([[3]], np.int32)) == "tensor-value"


# Loops at run time inside one another.


def loop_in_a_loop(x: Any) -> None:
    def inner(j: Any) -> None:
        pass

    def outer(i: Any) -> None:
        nl.fori_loop(0, 2, inner)  # here

    nl.fori_loop(0, 2, outer)


def loop_in_a_dynamic_range(x: Any) -> None:
    def inner(j: Any) -> None:
        pass

    for _ in nl.dynamic_range(2):
        nl.fori_loop(0, 2, inner)  # here


@pytest.mark.parametrize(
    ("kernel", "nki"), [(loop_in_a_loop, "0.7"), (loop_in_a_dynamic_range, "0.6")]
)
def test_run_time_loops_inside_one_another_are_refused(kernel: Any, nki: str) -> None:
    assert refused(kernel, X, nki=nki) == "nested-loop"


def test_run_time_loops_one_after_another_run() -> None:
    def kernel(x: Any) -> None:
        seen: list[int] = []
        for _ in nl.dynamic_range(4):
            seen.append(1)
            if len(seen) == 2:
                break
        nl.fori_loop(0, 2, lambda i: seen.append(2))
        nl.fori_loop(0, 1, lambda i: seen.append(3))
        assert seen == [1, 1, 2, 2, 3]

    with session(target="trn2", nki="0.7", frontend="parser"), pytest.warns(match="python-lambda"):
        jit(kernel)(X)
