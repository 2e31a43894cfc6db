"""Reductions and scans along the free axis: tensor_reduce, tensor_tensor_scan, fused ones."""

from typing import Any

import numpy as np

from nki_kernels.simulator import checks
from nki_kernels.simulator.alu import BINARY, BIT_REDUCTIONS, BITWISE, REDUCTIONS, Operator
from nki_kernels.simulator.context import refuse
from nki_kernels.simulator.dtypes import Array, float32, int32, uint32
from nki_kernels.simulator.hardware import Engine
from nki_kernels.simulator.instruction import SBUF, Call, Operand, instruction
from nki_kernels.simulator.isa.elementwise import scalar_step
from nki_kernels.simulator.isa.enums import reduce_cmd as commands
from nki_kernels.simulator.isa.operands import column, native, rows
from nki_kernels.simulator.isa.registers import reduce, started
from nki_kernels.simulator.tensor import NkiTensor

V, G = Engine.vector, Engine.gpsimd
COLUMN = Operand("read", dtypes=frozenset({float32}), number=True, column=True)
RESULT = Operand("write", column=True, optional=True)


def _axes(axis: Any, ndim: int) -> tuple[int, ...]:
    given = tuple(axis) if isinstance(axis, (tuple, list)) else (axis,)
    axes = tuple(sorted(int(a) + ndim if int(a) < 0 else int(a) for a in given))
    if 0 in axes or axes != tuple(range(ndim - len(axes), ndim)):
        refuse("shape", "axis", f"the last free axes of {ndim}, without axis 0", given)
    return axes


def _reduced(call: Call) -> None:
    data, dst = call.arguments["data"], call.arguments["dst"]
    axes = _axes(call.arguments["axis"], data.ndim)
    kept = int(np.prod(data.shape[: data.ndim - len(axes)]))
    if dst.shape[0] != data.shape[0] or dst.size != kept:
        refuse("shape", "dst", f"{kept} elements on {data.shape[0]} partitions", dst)


@instruction(
    V,
    dst=Operand("write"),
    data=Operand("read"),
    operators={"op": REDUCTIONS | BIT_REDUCTIONS},
    checks=[_reduced, checks.bitwise_integers("op", operands=("data", "dst"))],
)
def tensor_reduce(
    dst: NkiTensor,
    op: Operator,
    data: NkiTensor,
    axis: Any,
    negate: bool = False,
    keepdims: bool = False,
) -> None:
    """Reduce the last free axes (`axis`: one or several); `negate` gives minus the result."""
    if negate and op.kind == "bitwise":
        refuse("value", "negate", f"False: {op.name} has no sign", negate)
    groups = dst.free
    values = data.read("data") if op.kind == "bitwise" else data.read32("data")
    result = op.reduce(values.reshape(data.shape[0] * groups, -1)).reshape(dst.shape)
    dst.write(-result if negate else result)


@instruction(
    V,
    dst=Operand("write"),
    data0=Operand("read"),
    data1=Operand("read"),
    initial=Operand("read", number=True, column=True),
    operators={"op0": BINARY - BITWISE, "op1": BINARY - BITWISE},
    checks=[checks.elementwise("data0", "data1", "dst"), checks.not_both_psum("data0", "data1")],
)
def tensor_tensor_scan(
    dst: NkiTensor,
    data0: NkiTensor,
    data1: NkiTensor,
    initial: Any,
    op0: Operator,
    op1: Operator,
    reverse0: bool = False,
    reverse1: bool = False,
) -> None:
    """Along the free axis: `r[i] = (data0[i] op0 r[i-1]) op1 data1[i]`, r[-1] = initial.

    The state is float32 whatever the dtypes. `reverse0`, `reverse1` swap the operands.
    """
    partitions = data0.shape[0]
    start = column(initial, "initial", partitions)
    state = np.broadcast_to(np.asarray(start, np.float32).reshape(-1), (partitions,))
    steps0 = np.ascontiguousarray(rows(data0, "data0").T)
    steps1 = np.ascontiguousarray(rows(data1, "data1").T)
    dst.write(_scan(op0, op1, steps0, steps1, state, reverse0, reverse1).T)


def _scan(
    op0: Operator,
    op1: Operator,
    steps0: Array,
    steps1: Array,
    state: Array,
    reverse0: bool,
    reverse1: bool,
) -> Array:
    """The loop over [N, P]; multiply then add, the common case, without temporary arrays."""
    out = np.empty_like(steps0)
    if (op0.name, op1.name) == ("multiply", "add"):
        for first, second, result in zip(steps0, steps1, out, strict=True):
            np.multiply(first, state, out=result)
            np.add(result, second, out=result)
            state = result
        return out
    for first, second, result in zip(steps0, steps1, out, strict=True):
        inner = op0(state, first) if reverse0 else op0(first, state)
        result[:] = op1(second, inner) if reverse1 else op1(inner, second)
        state = result
    return out


def _no_wide_integers(call: Call) -> None:
    for name, tensor in call.tensors():
        if tensor.dtype in (int32, uint32):
            refuse("dtype", name, "no 32-bit integers", tensor)


@instruction(
    V,
    dst=Operand("write"),
    src=Operand("read"),
    imm0=COLUMN,
    imm1=Operand("read", number=True, column=True, optional=True),
    operators={"op0": BINARY - BITWISE, "op1": {*REDUCTIONS, "subtract"}},
    checks=[checks.elementwise("src", "dst"), _no_wide_integers],
)
def tensor_scalar_cumulative(
    dst: NkiTensor,
    src: NkiTensor,
    op0: Operator,
    op1: Operator,
    imm0: Any,
    imm1: Any = None,
    reduce_cmd: commands = commands.reset_reduce,
) -> None:
    """Running `reg = (src op0 imm0) op1 reg`: for subtract that is x - reg.

    `reset_reduce` starts at the operator's neutral element (0 for subtract), `load_reduce` at
    `imm1`, `reduce` goes on from the register.
    """
    values = op0(rows(src, "src"), column(imm0, "imm0", src.shape[0]))
    if reduce_cmd in (commands.idle, commands.reset):
        expected = "reset_reduce, reduce or load_reduce: each element is the register's value"
        refuse("value", "reduce_cmd", expected, reduce_cmd.name)
    initial = None if imm1 is None else column(imm1, "imm1", src.shape[0])
    register = started(V, reduce_cmd, op1, src, initial)
    steps = np.ascontiguousarray(values.T)
    out = np.empty_like(steps)
    current = register[:, 0].copy()
    for step, result in zip(steps, out, strict=True):
        result[:] = op1(step, current)
        current = result
    register[:, 0], register[:, 1] = current, 1
    dst.write(out.T)


@instruction(
    V,
    dst=Operand("write"),
    data=Operand("read"),
    operand0=COLUMN,
    reduce_res=RESULT,
    reduce_init=Operand("read", number=True, column=True, optional=True),
    operators={"op0": BINARY - BITWISE, "reduce_op": REDUCTIONS},
    checks=[checks.elementwise("data", "dst")],
)
def tensor_scalar_reduce(
    dst: NkiTensor,
    data: NkiTensor,
    op0: Operator,
    operand0: Any,
    reduce_op: Operator,
    reduce_res: NkiTensor | None = None,
    reverse0: bool = False,
    reduce_cmd: commands = commands.reset_reduce,
    reduce_init: Any = None,
    reduce_res_negate: bool = False,
) -> None:
    """`data op0 operand0`, and its reduction over the row into `reduce_res` (P, 1)."""
    if reverse0:
        refuse("value", "reverse0", "False: the instruction does not support it", reverse0)
    values = scalar_step(rows(data, "data"), op0, operand0, data, "operand0", reverse=False)
    initial = None if reduce_init is None else column(reduce_init, "reduce_init", data.shape[0])
    dst.write(values)
    reduce(V, reduce_cmd, reduce_op, values, data, reduce_res, initial, negate=reduce_res_negate)


@instruction(
    G,
    dst=Operand("write", SBUF, max_partitions=1),
    data=Operand("read", SBUF),
    operators={"op": REDUCTIONS | BIT_REDUCTIONS | {"average"}},
    checks=[checks.bitwise_integers("op", operands=("data", "dst"))],
)
def tensor_partition_reduce(dst: NkiTensor, op: Operator, data: NkiTensor) -> None:
    """Reduce over the partitions; dst has one. Slow: a matmul with ones is faster."""
    values = native(data, "data") if op.kind == "bitwise" else rows(data, "data")
    if dst.size != values.shape[1]:
        refuse("element-count", "dst", f"{values.shape[1]} elements", dst)
    dst.write(op.reduce(np.ascontiguousarray(values.T)).T)
