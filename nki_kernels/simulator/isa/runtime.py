"""Values at run time and cores in lock step: registers, scalar_load/store, barrier, sendrecv."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nki_kernels.simulator import checks, context
from nki_kernels.simulator.context import refuse
from nki_kernels.simulator.dtypes import INTEGERS, int32, int64
from nki_kernels.simulator.hardware import Engine
from nki_kernels.simulator.instruction import HBM, SBUF, Call, Check, Operand, instruction
from nki_kernels.simulator.isa.enums import dma_engine as dma_engines
from nki_kernels.simulator.scalars import NkiScalar, VirtualRegister
from nki_kernels.simulator.tensor import NkiTensor

SCALAR = Operand("read", HBM | SBUF, column=True)
TARGET = Operand("write", HBM | SBUF, column=True)


def _one_element(name: str) -> Check:
    def check(call: Call) -> None:
        tensor = call.arguments[name]
        if tensor.size != 1:
            refuse("shape", name, "one element, shape [1] or [1, 1]", tensor)

    return check


def _register(name: str) -> Check:
    def check(call: Call) -> None:
        value = call.arguments[name]
        if not isinstance(value, VirtualRegister):
            refuse("dtype", name, "a register of register_alloc", repr(value))

    return check


def register_alloc(x: Any = None) -> VirtualRegister:
    """A new register, with an int, another register's value or a tensor's one element."""
    register = VirtualRegister(0)
    if isinstance(x, NkiTensor):
        register_load(register, x)
    elif x is not None:
        register_move(register, x)
    return register


@instruction(Engine.sync, checks=[_register("dst")])
def register_move(dst: VirtualRegister, src: Any) -> None:
    """Set a register to an int or to another register's value."""
    if not isinstance(src, (int, VirtualRegister)):
        refuse("dtype", "src", "an int or a register", repr(src))
    dst.value = src.value if isinstance(src, VirtualRegister) else int(src)


@instruction(Engine.sync, src=SCALAR, checks=[_register("dst"), _one_element("src")])
def register_load(dst: VirtualRegister, src: NkiTensor) -> None:
    """Set a register to a tensor's one element."""
    dst.value = int(src.read("src").reshape(-1)[0])


@instruction(Engine.sync, dst=TARGET, checks=[_register("src"), _one_element("dst")])
def register_store(dst: NkiTensor, src: VirtualRegister) -> None:
    """Write a register into a tensor of one element."""
    dst.write(np.full(dst.shape, src.value, np.int64))


@instruction(
    Engine.sync,
    src=Operand("read", HBM | SBUF, frozenset({int32, int64}), column=True),
    checks=[_one_element("src")],
    since="0.7",
)
def scalar_load(src: NkiTensor) -> NkiScalar:
    """The one element of an int32 or int64 tensor as a run-time scalar."""
    return NkiScalar(int(src.read("src").reshape(-1)[0]), 8 * src.itemsize)


def _same_width(call: Call) -> None:
    dst, value = call.arguments["dst"], call.arguments["value"]
    if not isinstance(value, NkiScalar) or value.bits != 8 * dst.itemsize:
        refuse("dtype", "value", f"an NkiScalar of {8 * dst.itemsize} bits", repr(value))


@instruction(
    Engine.sync,
    dst=Operand("write", HBM | SBUF, INTEGERS, column=True),
    checks=[_one_element("dst"), _same_width],
    since="0.7",
)
def scalar_store(dst: NkiTensor, value: NkiScalar) -> None:
    """Write a run-time scalar into a tensor of one element of its width."""
    dst.write(np.full(dst.shape, value.value, np.int64))


def _meet(op: str) -> None:
    wait = context.core().wait
    if wait is None:
        refuse("core-barrier", "", "a launch on two cores: kernel[2](...)", "one core")
        return
    wait()
    context.set_op(op)


@instruction(Engine.sync, data=Operand("read", HBM | SBUF, optional=True), generations=(3, 4))
def core_barrier(
    data: NkiTensor | None, cores: Sequence[int] = (0, 1), engine: Engine = Engine.unknown
) -> None:
    """Wait until all cores are here; what they wrote into `data` is visible then."""
    if sorted(cores) != list(range(context.core().count)):
        refuse("core-barrier", "cores", f"all {context.core().count} cores of the launch", cores)
    _meet("core_barrier")


@instruction(
    Engine.dma,
    src=Operand("read", SBUF),
    dst=Operand("write", SBUF),
    checks=[checks.same_dtype("src", "dst"), checks.elementwise("src", "dst")],
    generations=(3, 4),
)
def sendrecv(
    src: NkiTensor,
    dst: NkiTensor,
    send_to_rank: int,
    recv_from_rank: int,
    pipe_id: int,
    dma_engine: dma_engines = dma_engines.dma,
) -> None:
    """Send `src` to one core and receive another's into `dst`. Both cores meet here."""
    core = context.core()
    for name, rank in (("send_to_rank", send_to_rank), ("recv_from_rank", recv_from_rank)):
        if not 0 <= rank < core.count:
            refuse("value", name, f"a core below {core.count}", rank)
    core.mail[pipe_id, core.index, send_to_rank] = src.read("src").copy()
    _meet("sendrecv")
    received = core.mail.get((pipe_id, recv_from_rank, core.index))
    if received is None:
        refuse("core-barrier", "recv_from_rank", "a core that sends here", recv_from_rank)
    else:
        dst.write(received)
    _meet("sendrecv")
