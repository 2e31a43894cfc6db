"""What a DMA takes: bytes, how contiguous they are, how many queues share them."""

from dataclasses import dataclass

from nki_kernels.simulator.cost.constants import VALUE
from nki_kernels.simulator.hardware import Generation
from nki_kernels.simulator.ledger import Access, Event
from nki_kernels.simulator.memory import Buffer


@dataclass(frozen=True)
class Transfer:
    """One DMA. `run`: contiguous bytes per descriptor; `efficiency`: share of the full rate."""

    bytes: int
    descriptors: int
    run: int
    efficiency: float
    busy: float  # seconds of all queues together
    latency: float  # seconds more until the data can be used


def transfer(event: Event, generation: Generation) -> Transfer:
    """Cost of a DMA instruction.

    The queues are one pool of the full rate: a transfer of fewer descriptors than queues takes
    longer by itself, but leaves the rest of the rate to others.
    """
    reads = [access for access in event.reads if not access.argument.endswith(".offset")]
    sides = [reads, list(event.writes)]
    moved = max(sum(access.elements * access.itemsize for access in side) for side in sides)
    elements = sum(access.elements for access in reads)
    run = min((contiguous(access) for access in reads + sides[1]), default=1)
    share = 1.0
    if event.op == "dma_transpose" and event.writes[0].itemsize == 2:
        chip = reads[0].buffer is Buffer.sbuf
        share = VALUE["TRANSPOSE_SBUF" if chip else "TRANSPOSE_HBM"]
    elif event.op == "dma_transpose":
        run = 1
    descriptors = max(1, -(-elements // run))
    size = max(1, moved // descriptors)
    efficiency = share
    if share == 1.0:
        efficiency = size / (size + VALUE["DMA_HALF"])
    busy = moved / (generation.dma_rate * efficiency)
    queues = min(VALUE["DMA_QUEUES"], descriptors)
    fixed = VALUE["SEMAPHORE"] + (VALUE["DGE"] if generation.number >= 3 else 0.0)
    alone = busy * (VALUE["DMA_QUEUES"] / queues - 1)
    return Transfer(moved, descriptors, size, efficiency, busy, fixed + alone)


def contiguous(access: Access) -> int:
    """Elements that lie together, innermost first; on the chip at most one partition's."""
    dims = list(zip(access.shape, access.strides, strict=True))
    run = 1
    for extent, stride in reversed(dims[1:] if access.buffer.on_chip else dims):
        if extent == 1:
            continue
        if stride != run:
            break
        run *= extent
    return run
