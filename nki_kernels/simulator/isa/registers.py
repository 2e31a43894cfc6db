"""The reduce registers: one float32 per partition and engine, kept between instructions.

`idle` leaves them as they are (the device promises nothing); `reset` empties them; `reset_reduce`
starts from this instruction; `reduce` continues; `load_reduce` starts from a given value.
"""

from typing import Any

import numpy as np

from nki_kernels.simulator.alu import Operator
from nki_kernels.simulator.context import core, refuse
from nki_kernels.simulator.dtypes import Array
from nki_kernels.simulator.hardware import PARTITIONS, Engine
from nki_kernels.simulator.isa.enums import reduce_cmd
from nki_kernels.simulator.tensor import NkiTensor

IDENTITY = {"add": 0.0, "multiply": 1.0, "maximum": -np.inf, "minimum": np.inf, "subtract": 0.0}


def started(
    engine: Engine, command: reduce_cmd, op: Operator | None, at: NkiTensor, initial: Any = None
) -> Array:
    """Registers of `at`'s partitions [P, 2] (value, whether defined) as the command leaves them
    before this instruction's values are added; writable."""
    registers = core().registers
    state = registers.get(engine)
    if state is None:
        state = registers[engine] = np.zeros((PARTITIONS, 2), np.float32)
    here = state[at.start_partition : at.start_partition + at.shape[0]]
    if command in (reduce_cmd.reset, reduce_cmd.reset_reduce):
        here[:, 0] = IDENTITY[op.name if op is not None else "add"]
    elif command is reduce_cmd.load_reduce:
        if initial is None:
            refuse("value", "reduce_cmd", "an initial value for load_reduce", "none")
        here[:, 0] = np.asarray(initial).reshape(-1)
    elif not here[:, 1].all() and command is reduce_cmd.reduce:
        refuse("accumulate-undefined", "reduce_cmd", "reset_reduce first", command.name)
    return here


def reduce(
    engine: Engine,
    command: reduce_cmd,
    op: Operator | None,
    values: Array,
    at: NkiTensor,
    into: NkiTensor | None,
    initial: Any = None,
    *,
    negate: bool = False,
) -> None:
    """Reduce `values` [P, N] into the registers of `at`'s partitions; copy them to `into`."""
    here = started(engine, command, op, at, initial)
    if command not in (reduce_cmd.idle, reduce_cmd.reset):
        assert op is not None
        here[:, 0] = op(here[:, 0], op.reduce(values)[:, 0])
    if command is not reduce_cmd.idle:
        here[:, 1] = 1
    if into is None:
        return
    if not here[:, 1].all():
        refuse("accumulate-undefined", "reduce_cmd", "registers that were started", command.name)
    into.write(-here[:, :1] if negate else here[:, :1])
