"""Enumerations of `nki.isa`."""

from enum import Enum, IntEnum, auto

from nki_kernels.simulator.context import current
from nki_kernels.simulator.hardware import Engine

engine = Engine


class reduce_cmd(Enum):
    """What an instruction does with its engine's reduce registers."""

    idle = auto()
    reset = auto()
    reduce = auto()
    reset_reduce = auto()
    load_reduce = auto()


class dge_mode(IntEnum):
    """How DMA descriptors are made; the numbers are those that older kernels give."""

    unknown = 0
    swdge = 1
    hwdge = 2
    none = 3


class oob_mode(Enum):
    """What an indirect DMA does with a row outside."""

    error = auto()
    skip = auto()


class dma_engine(Enum):
    """Which queues `sendrecv` uses."""

    dma = auto()
    gpsimd_dma = auto()


class matmul_perf_mode(Enum):
    """Performance modes of the tensor engine."""

    none = auto()
    double_row = auto()
    double_column = auto()
    double_pixel = auto()
    double_row_gen3 = auto()


class nc_version(IntEnum):
    """Generations of the NeuronCore, in order."""

    gen2 = 2
    gen3 = 3
    gen4 = 4


def get_nc_version() -> nc_version:
    """The generation of the target."""
    return nc_version(current().generation.number)


def get_nc_sub_version() -> int:
    """The silicon's revision within its generation: 0, the first, on every target."""
    return 0
