"""Element-wise arithmetic: tensor_tensor, tensor_scalar, scalar_tensor_tensor, reciprocal."""

from typing import Any

from nki_kernels.simulator import checks
from nki_kernels.simulator.alu import BINARY, BITWISE, Operator
from nki_kernels.simulator.context import current, refuse
from nki_kernels.simulator.dtypes import INTEGERS, float32, int32, uint32
from nki_kernels.simulator.hardware import Engine
from nki_kernels.simulator.instruction import Call, Check, Operand, instruction
from nki_kernels.simulator.isa.operands import (
    apply,
    column,
    computes_integers,
    integer_operand,
    native,
    rows,
)
from nki_kernels.simulator.memory import Buffer
from nki_kernels.simulator.tensor import NkiTensor

V, S, G = Engine.vector, Engine.scalar, Engine.gpsimd
COLUMN = Operand(
    "read", dtypes=frozenset({float32}) | INTEGERS, number=True, column=True, optional=True
)


def _tensor_engine(call: Call) -> Engine:
    tensors = [tensor for _, tensor in call.tensors()]
    reachable = all(tensor.buffer is Buffer.sbuf for tensor in tensors)
    whole = all(tensor.dtype in (int32, uint32) for tensor in tensors)
    bits = getattr(getattr(call.arguments["op"], "operator", None), "kind", "") == "bitwise"
    return G if reachable and whole and not bits else V


@instruction(
    *(V, G),
    dst=Operand("write"),
    data1=Operand("read"),
    data2=Operand("read"),
    operators={"op": BINARY},
    checks=[
        checks.elementwise("data1", "data2", "dst"),
        checks.not_both_psum("data1", "data2"),
        checks.bitwise_integers("op", operands=("data1", "data2", "dst")),
    ],
    choose=_tensor_engine,
)
def tensor_tensor(
    dst: NkiTensor,
    data1: NkiTensor,
    data2: NkiTensor,
    op: Operator,
    engine: Engine = Engine.unknown,
) -> None:
    """`data1 op data2`. Broadcasting only through views. 32-bit integers go to GpSimd."""
    read = native if computes_integers(engine, op, data1, data2) else rows
    dst.write(op(read(data1, "data1"), read(data2, "data2")))


def _scalar_columns(*pairs: tuple[str, str | None]) -> Check:
    """Operands of arithmetic are float32 tiles, or None or 0 for a unary operator."""

    def check(call: Call) -> None:
        for operand, operator in pairs:
            value = call.arguments[operand]
            op = call.arguments[operator] if operator else None
            if op is None:
                if operator and value is not None:
                    refuse("signature", operand, f"{operator} with it", repr(value))
            elif op.arity == 1:
                if isinstance(value, NkiTensor) or value not in (None, 0):
                    refuse("value", operand, f"None or 0 for unary {op.name}", repr(value))
            elif value is None:
                refuse("signature", operand, f"a number or a tile for {op.name}", None)
            elif isinstance(value, NkiTensor) and op.kind != "bitwise" and value.dtype != float32:
                refuse("dtype", operand, "float32", value)

    return check


SCALAR_OPERATORS = BINARY | {"invert", "logical_not", "rsqrt", "abs", "square", "relu"}
LATE_OPERATORS = {"square", "relu", "abs_max", "abs_min"}


def _engine_operators(call: Call) -> None:
    op0, op1 = call.arguments["op0"], call.arguments["op1"]
    if op0.name in LATE_OPERATORS and current().generation.number < 4:
        refuse("generation", "op0", f"gen4 for {op0.name}", current().generation.name)
    used = tuple(op.name for op in (op0, op1) if op is not None)
    if call.engine is S and used not in (("multiply", "add"), ("multiply",), ("add",)):
        refuse("operator", "op0", "multiply, add or multiply then add on ScalarE", used)
    if call.engine is G and "rsqrt" not in used:
        refuse("operator", "op0", "rsqrt on GpSimd", used)


def _scalar_engine(call: Call) -> Engine:
    op = getattr(call.arguments["op0"], "operator", None)
    return G if op is not None and op.name == "rsqrt" else V


def scalar_step(
    values: Any, op: Operator, operand: Any, like: NkiTensor, argument: str, *, reverse: bool
) -> Any:
    """One step of tensor_scalar: `values op operand`, native integers for bitwise operators."""
    if op.arity == 1:
        return op(values)
    if op.kind == "bitwise":
        return apply(op, values, integer_operand(operand, like, argument), reverse=reverse)
    return apply(op, values, column(operand, argument, like.shape[0]), reverse=reverse)


@instruction(
    *(V, S, G),
    dst=Operand("write"),
    data=Operand("read"),
    operand0=COLUMN,
    operand1=COLUMN,
    operators={"op0": SCALAR_OPERATORS, "op1": SCALAR_OPERATORS},
    engine_since={S: 3},
    checks=[
        checks.elementwise("data", "dst"),
        checks.bitwise_integers("op0", "op1", operands=("data", "dst")),
        _scalar_columns(("operand0", "op0"), ("operand1", "op1")),
        _engine_operators,
    ],
    choose=_scalar_engine,
)
def tensor_scalar(
    dst: NkiTensor,
    data: NkiTensor,
    op0: Operator,
    operand0: Any,
    reverse0: bool = False,
    op1: Operator | None = None,
    operand1: Any = None,
    reverse1: bool = False,
    engine: Engine = Engine.unknown,
) -> None:
    """`(data op0 operand0) op1 operand1`; operands are numbers or (P, 1) tiles."""
    values = native(data, "data") if op0.kind == "bitwise" else rows(data, "data")
    values = scalar_step(values, op0, operand0, data, "operand0", reverse=reverse0)
    if op1 is not None:
        values = scalar_step(values, op1, operand1, data, "operand1", reverse=reverse1)
    dst.write(values)


@instruction(
    V,
    dst=Operand("write"),
    data=Operand("read"),
    operand0=Operand("read", number=True, column=True),
    operand1=Operand("read"),
    operators={"op0": BINARY - BITWISE, "op1": BINARY - BITWISE},
    checks=[
        checks.elementwise("data", "operand1", "dst"),
        checks.not_both_psum("data", "operand1"),
    ],
)
def scalar_tensor_tensor(
    dst: NkiTensor,
    data: NkiTensor,
    op0: Operator,
    operand0: Any,
    op1: Operator,
    operand1: NkiTensor,
    reverse0: bool = False,
    reverse1: bool = False,
) -> None:
    """`(data op0 operand0) op1 operand1`: operand0 a number or (P, 1) of any dtype."""
    scalar = column(operand0, "operand0", data.shape[0])
    values = apply(op0, rows(data, "data"), scalar, reverse=reverse0)
    dst.write(apply(op1, values, rows(operand1, "operand1"), reverse=reverse1))


@instruction(
    V, dst=Operand("write"), data=Operand("read"), checks=[checks.elementwise("data", "dst")]
)
def reciprocal(dst: NkiTensor, data: NkiTensor) -> None:
    """`1 / data`, precise."""
    dst.write(1 / rows(data, "data"))
