"""VectorE's selects: select_reduce and range_select, with a row maximum."""

from typing import Any

import numpy as np

from nki_kernels.simulator import checks
from nki_kernels.simulator.alu import COMPARE, Operator
from nki_kernels.simulator.context import refuse
from nki_kernels.simulator.dtypes import (
    ALL,
    FLOATS,
    float32,
    int8,
    int16,
    int32,
    tfloat32,
    uint8,
    uint16,
    uint32,
)
from nki_kernels.simulator.hardware import Engine
from nki_kernels.simulator.instruction import Call, Operand, instruction
from nki_kernels.simulator.isa.enums import reduce_cmd as commands
from nki_kernels.simulator.isa.operands import column, native, rows
from nki_kernels.simulator.isa.registers import reduce
from nki_kernels.simulator.operators import FUNCTIONS
from nki_kernels.simulator.tensor import NkiTensor

FP32_MIN = float(np.finfo(np.float32).min)
MAX: Any = FUNCTIONS["maximum"]
RESULT = Operand("write", dtypes=FLOATS, column=True, optional=True)
BOUND = Operand("read", dtypes=frozenset({float32}), column=True)


@instruction(
    Engine.vector,
    dst=Operand("write"),
    predicate=Operand("read", dtypes=frozenset({int8, uint8, int16, uint16})),
    on_true=Operand("read", dtypes=frozenset(ALL) - {tfloat32, int32, uint32}),
    on_false=Operand("read", number=True, column=True),
    reduce_res=RESULT,
    operators={"reduce_op": {"maximum"}},
    checks=[
        checks.elementwise("on_true", "dst", "predicate"),
        checks.not_both_psum("on_true", "predicate"),
    ],
)
def select_reduce(
    dst: NkiTensor,
    predicate: NkiTensor,
    on_true: NkiTensor,
    on_false: Any,
    reduce_res: NkiTensor | None = None,
    reduce_cmd: commands = commands.idle,
    reduce_op: Operator = MAX,
    reverse_pred: bool = False,
) -> None:
    """on_true where the predicate is not 0, else on_false (a number or (P, 1)); row maximum."""
    chosen = (native(predicate, "predicate") != 0) ^ reverse_pred
    other = column(on_false, "on_false", on_true.shape[0])
    values = np.where(chosen, rows(on_true, "on_true"), other)
    dst.write(values)
    if reduce_cmd is not commands.idle or reduce_res is not None:
        reduce(Engine.vector, reduce_cmd, reduce_op, values, on_true, reduce_res)


RANGE_OPERATORS = COMPARE - {"not_equal"}


def _fp32_min(call: Call) -> None:
    value = call.arguments["on_false_value"]
    if np.float32(value) != np.float32(FP32_MIN):
        refuse("value", "on_false_value", f"{FP32_MIN}, what the hardware fills in", value)


@instruction(
    Engine.vector,
    dst=Operand("write"),
    on_true_tile=Operand("read", dtypes=FLOATS),
    bound0=BOUND,
    bound1=BOUND,
    reduce_res=RESULT,
    generations=(3, 4),
    operators={
        "comp_op0": RANGE_OPERATORS,
        "comp_op1": RANGE_OPERATORS,
        "reduce_op": {"maximum"},
    },
    checks=[checks.elementwise("on_true_tile", "dst"), _fp32_min],
)
def range_select(
    dst: NkiTensor,
    on_true_tile: NkiTensor,
    comp_op0: Operator,
    comp_op1: Operator,
    bound0: NkiTensor,
    bound1: NkiTensor,
    reduce_cmd: commands = commands.reset_reduce,
    reduce_res: NkiTensor | None = None,
    reduce_op: Operator = MAX,
    range_start: float = 0,
    on_false_value: float = FP32_MIN,
) -> None:
    """Keep column i where `(start + i) comp_op0 bound0` and `(start + i) comp_op1 bound1`."""
    partitions = on_true_tile.shape[0]
    index = np.float32(range_start) + np.arange(on_true_tile.free, dtype=np.float32)[None]
    index = np.broadcast_to(index, (partitions, on_true_tile.free))
    first = comp_op0(index, column(bound0, "bound0", partitions)) != 0
    keep = first & (comp_op1(index, column(bound1, "bound1", partitions)) != 0)
    values = np.where(keep, rows(on_true_tile, "on_true_tile"), np.float32(on_false_value))
    dst.write(values)
    if reduce_cmd is not commands.idle or reduce_res is not None:
        reduce(Engine.vector, reduce_cmd, reduce_op, values, on_true_tile, reduce_res)
