"""The formula of each instruction, in cycles of its engine. N: elements per partition.

An instruction without a formula of its own is costed as N and named in the report.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from nki_kernels.simulator.cost.constants import VALUE, Status
from nki_kernels.simulator.hardware import Engine, Generation
from nki_kernels.simulator.ledger import Access, Event
from nki_kernels.simulator.memory import Buffer

MIN_II, GPSIMD_START = VALUE["MIN_II"], VALUE["GPSIMD_START"]
NARROW = ("bfloat16", "float16")
Formula = Callable[[Event, Generation], float]


@dataclass(frozen=True)
class Cost:
    """A formula, as text and as code, and where it comes from."""

    text: str
    status: Status
    formula: Formula


def cycles(event: Event, generation: Generation) -> float:
    """Cycles for which the instruction occupies its engine."""
    found = FORMULAS.get(event.op, UNKNOWN).formula(event, generation)
    start = event.engine is Engine.gpsimd and event.op not in ON_GPSIMD
    return found + GPSIMD_START if start else found


def operand(event: Event, name: str) -> Access:
    """The operand of that name."""
    return next(a for a in event.reads + event.writes if a.argument == name)


def unit_stride(access: Access) -> bool:
    """Whether elements lie densely along the innermost free dimension."""
    free = zip(access.shape[1:], access.strides[1:], strict=True)
    inner = [stride for extent, stride in free if extent > 1]
    return not inner or inner[-1] == 1


def _tiles(event: Event) -> list[Access]:
    """The operands that are more than a (P, 1) column, or all if there are none."""
    found = event.reads + event.writes
    return [access for access in found if access.free > 1] or list(found)


def _narrow(event: Event) -> bool:
    return all(access.dtype in NARROW for access in _tiles(event))


def _in_psum(event: Event, *names: str) -> int:
    return sum(operand(event, name).buffer is Buffer.psum for name in names)


def _linear(event: Event, generation: Generation) -> float:
    """N; VectorE of gen3 on is faster on 16-bit tiles (copies, tensor_scalar)."""
    return max(MIN_II, event.free)


def _copy(event: Event, generation: Generation) -> float:
    tiles = _tiles(event)
    rate = 1.0
    if event.engine is Engine.vector and generation.number >= 3 and _narrow(event):
        psum = sum(access.buffer is Buffer.psum for access in tiles)
        dense = all(unit_stride(access) for access in tiles)
        if psum == 0:
            rate = VALUE["FAST_COPY"] if dense else VALUE["FAST_COPY_PSUM"]
        elif psum == 1 and dense:
            rate = VALUE["FAST_COPY_PSUM"]
    return max(MIN_II, event.free / rate)


def _memset(event: Event, generation: Generation) -> float:
    halved = operand(event, "dst").itemsize == 2 and event.attributes["value"] == 0
    return max(MIN_II, event.free / (2 if halved else 1))


def _two_inputs(first: str, second: str) -> Formula:
    def formula(event: Event, generation: Generation) -> float:
        if _in_psum(event, first, second) == 1:
            return max(MIN_II, event.free)
        passes = 1.0 if _fast_pair(event) else 2.0
        sbuf = all(operand(event, name).buffer is Buffer.sbuf for name in (first, second))
        if generation.number >= 3 and sbuf and _narrow(event):
            passes /= VALUE["FAST_TENSOR"]
        return max(MIN_II, passes * event.free)

    return formula


def _fast_pair(event: Event) -> bool:
    """The one case of two SBUF inputs in one pass: all bfloat16, dense, + - or x."""
    used = {event.attributes.get(name) for name in ("op", "op0", "op1")} - {None}
    return (
        used <= {"add", "subtract", "multiply"}
        and all(a.dtype == "bfloat16" and a.buffer is Buffer.sbuf for a in _tiles(event))
        and all(unit_stride(access) for access in _tiles(event))
    )


def _scalar_tensor_tensor(event: Event, generation: Generation) -> float:
    return max(MIN_II, (1 if _fast_pair(event) else 2) * event.free)


def _scan(event: Event, generation: Generation) -> float:
    return max(MIN_II, 2 * event.free)


def _predicated(event: Event, generation: Generation) -> float:
    passes = 1 if _in_psum(event, "src", "predicate") == 1 else 2
    return max(MIN_II, passes * event.free)


def _select(event: Event, generation: Generation) -> float:
    passes = 1 if _in_psum(event, "on_true", "predicate") == 1 else 2
    return max(MIN_II, passes * event.free) + _result(event)


def _result(event: Event) -> float:
    """Reading the reduce registers."""
    return MIN_II if any(access.argument == "reduce_res" for access in event.writes) else 0.0


def _activation(event: Event, generation: Generation) -> float:
    narrow = generation.number >= 4 and all(access.itemsize <= 2 for access in _tiles(event))
    rate = VALUE["SCALAR_NARROW"] if narrow else 1.0
    return max(MIN_II, event.free / rate) + _result(event)


def _with_result(event: Event, generation: Generation) -> float:
    return max(MIN_II, event.free) + _result(event)


def _reduce(event: Event, generation: Generation) -> float:
    halved = event.attributes["op"] in ("add", "maximum") and all(
        access.dtype == "bfloat16" for access in event.reads
    )
    return max(MIN_II, operand(event, "data").free / (2 if halved else 1))


def _matmul(event: Event, generation: Generation) -> float:
    stationary, moving = operand(event, "stationary"), operand(event, "moving")
    passes = 1.0
    if moving.dtype == "float32" and not event.attributes["is_transpose"]:
        hints = ("is_stationary_onezero", "is_moving_onezero")
        hinted = any(event.attributes[name] for name in hints)
        passes = VALUE["ONEZERO_PASSES"] if hinted else VALUE["FP32_PASSES"]
    return passes * max(min(VALUE["LOAD_STATIONARY"], stationary.free), moving.free)


def _transpose(event: Event, generation: Generation) -> float:
    data = operand(event, "data")
    if event.engine is Engine.tensor:
        return max(data.shape[0], min(VALUE["LOAD_STATIONARY"], data.free))
    return max(MIN_II, data.free)


def _per_element(count: float) -> Formula:
    return lambda event, generation: max(MIN_II, count * event.free)


def _gpsimd(count: float) -> Formula:
    return lambda event, generation: GPSIMD_START + count * event.free


def _topk(event: Event, generation: Generation) -> float:
    return 4 * float(event.attributes["n"]) + event.writes[0].free


def _exponential(event: Event, generation: Generation) -> float:
    return max(MIN_II, math.ceil(event.free / VALUE["EXPONENTIAL"])) + _result(event)


def _sync(event: Event, generation: Generation) -> float:
    return 0.0


O, D, I = Status.OLD, Status.DOCUMENTED, Status.INFERRED  # noqa: E741
N = "max(MIN_II, N)"
LINEAR = Cost(N, O, _linear)
COPY = Cost(f"{N}; VectorE, 16-bit, from gen3: N/4 in SBUF, N/2 otherwise", O, _copy)
UNKNOWN = Cost(N, I, _linear)
SYNC = Cost("0 (REGISTER seconds each)", I, _sync)
FORMULAS = {
    "tensor_copy": COPY,
    "tensor_scalar": COPY,
    "memset": Cost(f"{N}; N/2 for 16-bit zeros", O, _memset),
    "tensor_tensor": Cost(
        "N with one input in PSUM or all bfloat16 in SBUF, dense, + - x; else 2N; gen3: half if"
        " all are 16-bit in SBUF",
        *(O, _two_inputs("data1", "data2")),
    ),
    "scalar_tensor_tensor": Cost("2N; N if all bfloat16, dense, + - x", O, _scalar_tensor_tensor),
    "tensor_tensor_scan": Cost("max(MIN_II, 2N)", O, _scan),
    "tensor_scalar_cumulative": Cost(N, I, _linear),
    "tensor_reduce": Cost(f"{N}; N/2 for bfloat16 add and maximum", O, _reduce),
    "tensor_scalar_reduce": Cost("N + MIN_II", O, _with_result),
    "tensor_partition_reduce": Cost("GPSIMD_START + 16 N", I, _gpsimd(VALUE["PARTITION_REDUCE"])),
    "tensor_copy_predicated": Cost("N with one input in PSUM, else 2N", O, _predicated),
    "select_reduce": Cost("N with one input in PSUM, else 2N; + MIN_II for a result", I, _select),
    "range_select": Cost(f"{N} + MIN_II for a result", O, _with_result),
    "reciprocal": Cost("max(MIN_II, 8N)", D, _per_element(VALUE["RECIPROCAL"])),
    "activation": Cost(f"{N} + MIN_II for a result; gen4: N/2 for 16/8-bit", O, _activation),
    "activation_reduce": Cost(f"{N} + MIN_II; gen4: N/2 for 16/8-bit", O, _activation),
    "exponential": Cost("max(MIN_II, N/4) + MIN_II for a result", D, _exponential),
    "nc_matmul": Cost("max(min(64, M), N); x4 for float32, x2 with a 0/1 hint", O, _matmul),
    "nc_transpose": Cost("TensorE max(P, min(64, N)); VectorE max(MIN_II, N)", O, _transpose),
    "nc_stream_shuffle": LINEAR,
    "max8": LINEAR,
    "nc_find_index8": LINEAR,
    "nc_match_replace8": LINEAR,
    "bn_stats": LINEAR,
    "bn_aggr": Cost("max(MIN_II, 13/3 N)", O, _per_element(VALUE["BN_AGGR"])),
    "iota": Cost("GPSIMD_START + N", O, _gpsimd(1)),
    "affine_select": Cost("GPSIMD_START + N", O, _gpsimd(1)),
    "nc_n_gather": Cost("GPSIMD_START + N", I, _gpsimd(1)),
    "topk": Cost("4n + K", D, _topk),
    **dict.fromkeys(("register_move", "register_load", "register_store"), SYNC),
    **dict.fromkeys(("scalar_load", "scalar_store", "core_barrier"), SYNC),
}
ON_GPSIMD = {"tensor_partition_reduce", "iota", "affine_select", "nc_n_gather", "topk"}
