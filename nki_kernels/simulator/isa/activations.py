"""ScalarE: activation, activation_reduce, activate2; VectorE's exponential of gen4."""

from typing import Any

import numpy as np

from nki_kernels.simulator import checks
from nki_kernels.simulator.alu import FUNCTIONS, OPERATORS, Operator
from nki_kernels.simulator.context import current, refuse
from nki_kernels.simulator.dtypes import ALL, Array, float32, tfloat32
from nki_kernels.simulator.hardware import Engine
from nki_kernels.simulator.instruction import Call, Operand, instruction
from nki_kernels.simulator.isa.enums import reduce_cmd as commands
from nki_kernels.simulator.isa.operands import apply, column, rows
from nki_kernels.simulator.isa.registers import reduce
from nki_kernels.simulator.tensor import NkiTensor

BIAS = Operand(
    *("read",), dtypes=frozenset(ALL) - {tfloat32}, number=True, column=True, optional=True
)
SCALE = Operand("read", dtypes=frozenset({float32}), number=True, column=True)
RESULT = Operand("write", column=True, optional=True)
NUMBER = Operand("read", number=True, column=True)
STEPS = {  # what activate2 can do before its function
    *(("multiply", "add"), ("multiply", "subtract"), ("multiply", "bypass")),
    *(("add", "bypass"), ("subtract", "bypass"), ("bypass", "bypass")),
}


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


def _only_scalar_reduces(call: Call) -> None:
    wanted = call.arguments["reduce_cmd"] is not commands.idle or call.arguments["reduce_res"]
    if call.engine is not Engine.scalar and wanted:
        refuse("engine", "reduce_cmd", "ScalarE, which has the registers", call.engine.name)


@instruction(
    *(Engine.scalar, Engine.gpsimd),
    dst=Operand("write"),
    data=Operand("read"),
    bias=BIAS,
    scale=SCALE,
    reduce_res=RESULT,
    operators={"op": FUNCTIONS, "reduce_op": {"add"}},
    engine_since={Engine.gpsimd: 4},
    checks=[checks.elementwise("data", "dst"), _bias, _only_scalar_reduces],
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
    engine: Engine = Engine.scalar,
) -> None:
    """`op(data * scale + bias)`; with `reduce_cmd` also its row sums in ScalarE's registers.

    `reduce_res` (P, 1) gets the registers. Where it lies inside dst, dst is written first.
    """
    values = _activate(dst, op, data, bias, scale)
    _write(dst, values, data, reduce_op, reduce_res, reduce_cmd, "nl.add")


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


def _write(
    dst: NkiTensor,
    values: Array,
    data: NkiTensor,
    reduce_op: Operator | None,
    reduce_res: NkiTensor | None,
    reduce_cmd: commands,
    expected: str,
) -> None:
    """The values, and their reduction where one is asked for, with `expected` for its operator."""
    if reduce_op is None and reduce_cmd in (commands.reduce, commands.reset_reduce):
        refuse("signature", "reduce_op", f"{expected} for reduce_cmd.{reduce_cmd.name}", None)
    dst.write(values)
    if reduce_cmd is not commands.idle or reduce_res is not None:
        reduce(Engine.scalar, reduce_cmd, reduce_op, values, data, reduce_res)


def _steps(call: Call) -> None:
    pair = tuple(call.arguments[name].name for name in ("op0", "op1"))
    if pair not in STEPS:
        allowed = ", ".join(f"{one} {two}" for one, two in sorted(STEPS))
        refuse("operator", "op1", allowed, " ".join(pair))


@instruction(
    *(Engine.scalar, Engine.gpsimd),
    dst=Operand("write"),
    data=Operand("read"),
    imm0=NUMBER,
    imm1=NUMBER,
    relu_param=NUMBER,
    reduce_res=RESULT,
    operators={
        "op": FUNCTIONS,
        "op0": {first for first, _ in STEPS},
        "op1": {second for _, second in STEPS},
        "reduce_op": {"add", "maximum", "minimum"},
    },
    checks=[checks.elementwise("data", "dst"), _steps, _only_scalar_reduces],
    generations=(4,),
    since="0.4",
)
def activate2(
    dst: NkiTensor,
    op: Operator,
    data: NkiTensor,
    imm0: Any,
    imm1: Any,
    op0: Operator,
    op1: Operator,
    relu_param: Any = 0.0,
    reverse0: bool = False,
    reverse1: bool = False,
    reduce_op: Operator | None = None,
    reduce_res: NkiTensor | None = None,
    reduce_cmd: commands = commands.idle,
    engine: Engine = Engine.scalar,
) -> None:
    """`op((data op0 imm0) op1 imm1)`, numbers or (P, 1) tiles, and its reduction (gen4).

    `relu_param` is prelu's slope below 0.
    """
    partitions, values = data.shape[0], rows(data, "data")
    for name, step, value, reverse in (
        ("imm0", op0, imm0, reverse0),
        ("imm1", op1, imm1, reverse1),
    ):
        if step.name != "bypass":
            values = apply(step, values, column(value, name, partitions), reverse=reverse)
    slope = (column(relu_param, "relu_param", partitions),) if op.name == "prelu" else ()
    values = op(values, *slope)
    _write(dst, values, data, reduce_op, reduce_res, reduce_cmd, "an operator")


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
    reduce_init: Any = 0.0,
) -> None:
    """`exp(src - max_value)`, and its row sums (gen4)."""
    partitions = src.shape[0]
    values = np.exp(rows(src, "src") - column(max_value, "max_value", partitions))
    initial = None if reduce_init is None else column(reduce_init, "reduce_init", partitions)
    dst.write(values)
    if reduce_cmd is not commands.idle or reduce_res is not None:
        reduce(Engine.vector, reduce_cmd, OPERATORS["add"], values, src, reduce_res, initial)
