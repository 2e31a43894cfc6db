"""Facts of the three generations, each with its source.

[D] documented, [O] only in the old (2.26) documentation, [I] inferred.
"""

from dataclasses import dataclass
from enum import Enum

from nki_kernels.simulator.memory import Buffer

PARTITIONS = 128  # [D]
PSUM_BANKS = 8  # [D]
PSUM_BANK_BYTES = 2048  # per partition [D]
KIB = 1024


class Engine(Enum):
    """The engines of a NeuronCore (`nisa.engine`)."""

    unknown = 0
    tensor = 1
    vector = 2
    scalar = 3
    gpsimd = 4
    dma = 5
    sync = 6


REACH = {  # who may touch what [D]
    Engine.tensor: {Buffer.sbuf, Buffer.psum},
    Engine.vector: {Buffer.sbuf, Buffer.psum},
    Engine.scalar: {Buffer.sbuf, Buffer.psum},
    Engine.gpsimd: {Buffer.sbuf},
    Engine.sync: {Buffer.sbuf, Buffer.hbm, Buffer.shared_hbm, Buffer.private_hbm},
    Engine.dma: {Buffer.sbuf, Buffer.hbm, Buffer.shared_hbm, Buffer.private_hbm},
}


@dataclass(frozen=True)
class Generation:
    """One generation. Clocks in Hz, sizes in bytes, rates in bytes per second."""

    number: int  # 2, 3, 4
    name: str  # trn1, trn2, trn3
    sbuf_nominal: int  # per partition [D]
    sbuf_usable: int  # per partition
    clock: dict[Engine, float]  # [D]
    dma_rate: float  # all 16 queues of a core [D]
    moving_max: int  # columns of nc_matmul's moving operand (fp32 result) [D]
    logical_cores: tuple[int, ...]  # physical cores that a logical core may have [D]


def _clock(tensor: float, vector: float, scalar: float, gpsimd: float) -> dict[Engine, float]:
    return {
        Engine.tensor: tensor * 1e9,
        Engine.vector: vector * 1e9,
        Engine.scalar: scalar * 1e9,
        Engine.gpsimd: gpsimd * 1e9,
    }


# How much of the nominal SBUF is usable is not published as a number; 16 KiB per partition are
# held back on gen3 and gen4, whose sizes are called nominal [I]: refused in strict sessions only.
GENERATIONS = {
    2: Generation(2, "trn1", 192 * KIB, 192 * KIB, _clock(2.8, 1.12, 1.4, 1.4), 272e9, 512, (1,)),
    3: Generation(3, "trn2", 224 * KIB, 208 * KIB, _clock(2.4, 0.96, 1.2, 1.2), 368e9, 512, (1, 2)),
    4: Generation(4, "trn3", 256 * KIB, 240 * KIB, _clock(2.4, 1.2, 1.2, 1.2), 528e9, 4096, (1, 2)),
}
TARGETS = {"trn1": 2, "inf2": 2, "gen2": 2, "trn2": 3, "gen3": 3, "trn3": 4, "gen4": 4}
