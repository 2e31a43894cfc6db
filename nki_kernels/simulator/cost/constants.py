"""The numbers of the cost model, each with its source and how far it can be trusted.

Clocks and the DMA rate stand in `hardware.GENERATIONS` (documented).
"""

from dataclasses import dataclass
from enum import Enum


class Status(Enum):
    """Where a number or a formula comes from."""

    DOCUMENTED = "documented"
    OLD = "old documentation"  # SDK 2.26, the last with cycle formulas
    INFERRED = "inferred"  # ours; no figure of the vendor


@dataclass(frozen=True)
class Constant:
    """One number of the model. `generations`: for which it is used."""

    name: str
    value: float
    unit: str
    generations: tuple[int, ...]
    status: Status
    source: str

    def __float__(self) -> float:
        return self.value


D, O, I = Status.DOCUMENTED, Status.OLD, Status.INFERRED  # noqa: E741
EVERY, FROM_3 = (2, 3, 4), (3, 4)

TABLE = (
    Constant("MIN_II", 64, "cycles", EVERY, O, "nki.isa: least interval between instructions"),
    Constant("GPSIMD_START", 150, "cycles", EVERY, O, "nki.isa.iota, affine_select"),
    Constant(
        *("DEPENDENT", 100, "cycles", EVERY, I),
        "performance guide: dependent small instructions cost about 100 cycles more; 95 fits v2",
    ),
    Constant("FP32_PASSES", 4, "x", EVERY, O, "nki.isa.nc_matmul: float32 takes four passes"),
    Constant("ONEZERO_PASSES", 2, "x", EVERY, O, "nki.isa.nc_matmul: float32 with a 0/1 hint"),
    Constant("LOAD_STATIONARY", 64, "cycles", EVERY, O, "nki.isa.nc_matmul: min(64, M)"),
    Constant("RECIPROCAL", 8, "cycles/element", EVERY, D, "nki.isa.reciprocal (0.6)"),
    Constant("BN_AGGR", 13 / 3, "cycles/element", EVERY, O, "nki.isa.bn_aggr"),
    Constant("EXPONENTIAL", 4, "elements/cycle", (4,), D, "nki.isa.exponential: 4x ScalarE"),
    Constant("FAST_COPY", 4, "elements/cycle", FROM_3, D, "trn2 guide: VectorE on 16-bit SBUF"),
    Constant("FAST_COPY_PSUM", 2, "elements/cycle", FROM_3, D, "trn2 guide: one side in PSUM"),
    Constant("FAST_TENSOR", 2, "x", FROM_3, D, "trn2 guide: tensor_tensor, all 16-bit in SBUF"),
    Constant("SCALAR_NARROW", 2, "elements/cycle", (4,), D, "trn3 guide: ScalarE, 16/8-bit"),
    Constant("PARTITION_REDUCE", 16, "cycles/element", EVERY, I, "16 partitions per GpSimd core"),
    Constant("REGISTER", 50e-9, "s", EVERY, I, "an instruction of the sync engine"),
    Constant("SEMAPHORE", 1.3e-6, "s", EVERY, D, "DMA guide: semaphore to start, across engines"),
    Constant("DGE", 0.6e-6, "s", FROM_3, D, "trn2 guide: descriptor generation per DMA"),
    Constant("DMA_QUEUES", 16, "queues", EVERY, D, "DMA guide: engines per core"),
    Constant(
        *("DMA_HALF", 256, "bytes", EVERY, I),
        "run at which half the rate is reached: the DMA guide's curve in words (below 256 B mostly"
        " overhead, 2 KiB near the peak, 4 KiB saturated)",
    ),
    Constant("TRANSPOSE_HBM", 0.9, "of the rate", EVERY, D, "dma_transpose, 2 bytes, from HBM"),
    Constant("TRANSPOSE_SBUF", 0.5, "of the rate", EVERY, D, "dma_transpose, 2 bytes, in SBUF"),
)
VALUE = {constant.name: constant.value for constant in TABLE}
