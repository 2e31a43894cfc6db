"""Mean and variance: bn_stats of up to 512 columns, bn_aggr of several of them."""

import numpy as np

from nki_kernels.simulator import checks
from nki_kernels.simulator.context import refuse
from nki_kernels.simulator.dtypes import FLOATS
from nki_kernels.simulator.hardware import Engine
from nki_kernels.simulator.instruction import Call, Operand, instruction
from nki_kernels.simulator.isa.operands import rows
from nki_kernels.simulator.tensor import NkiTensor

V = Engine.vector
GROUP = 3  # count, mean, variance * count


@instruction(
    V,
    dst=Operand("write", dtypes=FLOATS, min_free=2 * GROUP, max_free=2 * GROUP),
    data=Operand("read", dtypes=FLOATS, max_free=512),
    checks=[checks.same_partitions("data", "dst")],
)
def bn_stats(dst: NkiTensor, data: NkiTensor) -> None:
    """Count, mean, variance * count of the even columns, then of the odd ones: dst (P, 6)."""
    values = rows(data, "data").astype(np.float64)
    stats = np.zeros((len(values), 2 * GROUP))
    for parity in (0, 1):
        part = values[:, parity::2]
        if part.shape[1]:
            at = parity * GROUP
            stats[:, at] = part.shape[1]
            stats[:, at + 1] = part.mean(axis=1)
            stats[:, at + 2] = part.var(axis=1) * part.shape[1]
    dst.write(stats.astype(np.float32))


def _groups(call: Call) -> None:
    if call.arguments["data"].free % GROUP:
        refuse(
            "shape", "data", "groups of 3: count, mean, variance * count", call.arguments["data"]
        )


@instruction(
    V,
    dst=Operand("write", dtypes=FLOATS, min_free=2, max_free=2),
    data=Operand("read", dtypes=FLOATS),
    checks=[checks.same_partitions("data", "dst"), _groups],
)
def bn_aggr(dst: NkiTensor, data: NkiTensor) -> None:
    """Mean and variance (P, 2) of the union of groups of (count, mean, variance * count)."""
    groups = rows(data, "data").astype(np.float64).reshape(data.shape[0], -1, GROUP)
    count, mean, spread = (groups[:, :, column] for column in range(GROUP))
    total = count.sum(axis=1, keepdims=True)
    centre = (count * mean).sum(axis=1, keepdims=True) / total
    spread = (spread + count * (mean - centre) ** 2).sum(axis=1, keepdims=True) / total
    dst.write(np.concatenate([centre, spread], axis=1).astype(np.float32))
