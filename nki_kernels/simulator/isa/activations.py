"""ScalarE: activation, activation_reduce; VectorE's exponential of gen4."""

from typing import Any

import numpy as np

from nki_kernels.simulator import checks
from nki_kernels.simulator.alu import FUNCTIONS, OPERATORS, Operator
from nki_kernels.simulator.context import current, refuse
from nki_kernels.simulator.dtypes import ALL, float32, tfloat32
from nki_kernels.simulator.hardware import Engine
from nki_kernels.simulator.instruction import Call, Operand, instruction
from nki_kernels.simulator.isa.enums import reduce_cmd as commands
from nki_kernels.simulator.isa.operands import column, rows
from nki_kernels.simulator.isa.registers import reduce
from nki_kernels.simulator.tensor import NkiTensor

BIAS = Operand(
    *("read",), dtypes=frozenset(ALL) - {tfloat32}, number=True, column=True, optional=True
)
SCALE = Operand("read", dtypes=frozenset({float32}), number=True, column=True)
RESULT = Operand("write", column=True, optional=True)


def _bias(call: Call) -> None:
    bias, old = call.arguments["bias"], current().generation.number < 3
    if old and isinstance(bias, (int, float)) and bias != 0:
        refuse("generation", "bias", "a (P, 1) tile before gen3", bias)
    if old and bias is not None and call.arguments["op"].name == "reciprocal":
        refuse("generation", "bias", "None for reciprocal before gen3", bias)


def _activate(dst: NkiTensor, op: Operator, data: NkiTensor, bias: Any, scale: Any) -> Any:
    partitions = data.shape[0]
    values = rows(data, "data") * column(scale, "scale", partitions)
    if bias is not None:
        values = values + column(bias, "bias", partitions)
    return op(values)


@instruction(
    Engine.scalar,
    dst=Operand("write"),
    data=Operand("read"),
    bias=BIAS,
    scale=SCALE,
    reduce_res=RESULT,
    operators={"op": FUNCTIONS, "reduce_op": {"add"}},
    checks=[checks.elementwise("data", "dst"), _bias],
)
def activation(
    dst: NkiTensor,
    op: Operator,
    data: NkiTensor,
    bias: Any = None,
    scale: Any = 1.0,
    reduce_op: Operator | None = None,
    reduce_res: NkiTensor | None = None,
    reduce_cmd: commands = commands.idle,
) -> None:
    """`op(data * scale + bias)`; with `reduce_cmd` also its row sums in ScalarE's registers.

    `reduce_res` (P, 1) gets the registers. Where it lies inside dst, dst is written first.
    """
    values = _activate(dst, op, data, bias, scale)
    if reduce_op is None and reduce_cmd in (commands.reduce, commands.reset_reduce):
        refuse("signature", "reduce_op", f"nl.add for reduce_cmd.{reduce_cmd.name}", None)
    dst.write(values)
    if reduce_cmd is not commands.idle or reduce_res is not None:
        reduce(Engine.scalar, reduce_cmd, reduce_op, values, data, reduce_res)


@instruction(
    Engine.scalar,
    dst=Operand("write"),
    data=Operand("read"),
    bias=BIAS,
    scale=SCALE,
    reduce_res=Operand("write", column=True),
    operators={"op": FUNCTIONS, "reduce_op": {"add"}},
    checks=[checks.elementwise("data", "dst"), _bias],
)
def activation_reduce(
    dst: NkiTensor,
    op: Operator,
    data: NkiTensor,
    reduce_op: Operator,
    reduce_res: NkiTensor,
    bias: Any = None,
    scale: Any = 1.0,
) -> None:
    """`activation` with `reduce_cmd.reset_reduce`."""
    values = _activate(dst, op, data, bias, scale)
    dst.write(values)
    reduce(Engine.scalar, commands.reset_reduce, reduce_op, values, data, reduce_res)


@instruction(
    Engine.vector,
    dst=Operand("write"),
    src=Operand("read"),
    max_value=Operand("read", number=True, column=True),
    reduce_res=RESULT,
    reduce_init=Operand("read", number=True, column=True, optional=True),
    generations=(4,),
    checks=[checks.elementwise("src", "dst")],
)
def exponential(
    dst: NkiTensor,
    src: NkiTensor,
    max_value: Any = 0.0,
    reduce_res: NkiTensor | None = None,
    reduce_cmd: commands = commands.idle,
    reduce_init: Any = None,
) -> None:
    """`exp(src - max_value)`, and its row sums (gen4)."""
    partitions = src.shape[0]
    values = np.exp(rows(src, "src") - column(max_value, "max_value", partitions))
    initial = None if reduce_init is None else column(reduce_init, "reduce_init", partitions)
    dst.write(values)
    if reduce_cmd is not commands.idle or reduce_res is not None:
        reduce(Engine.vector, reduce_cmd, OPERATORS["add"], values, src, reduce_res, initial)
