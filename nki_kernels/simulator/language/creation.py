"""Making tensors: ndarray, zeros, full, identity and constant tiles."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nki_kernels.simulator import context, dtypes
from nki_kernels.simulator.context import refuse
from nki_kernels.simulator.dtypes import Dtype
from nki_kernels.simulator.errors import kernel_line
from nki_kernels.simulator.hardware import PARTITIONS, PSUM_BANK_BYTES, PSUM_BANKS
from nki_kernels.simulator.memory import Buffer, Storage
from nki_kernels.simulator.tensor import NkiTensor
from nki_kernels.simulator.views import reshaped_strides


def dtype_of(value: Any, op: str) -> Dtype:
    """The dtype of an argument; refused if it is none of nl's."""
    found = dtypes.find(value)
    if found is None:
        refuse("dtype", "dtype", "a dtype of nl", repr(value), op)
        raise AssertionError
    return found


def ndarray(
    shape: Sequence[int],
    dtype: Any,
    buffer: Any = Buffer.sbuf,
    name: str = "",
    address: tuple[int, int] | None = None,
) -> NkiTensor:
    """An uninitialised tensor; axis 0 is the partition axis in SBUF and PSUM.

    `address` is noted but places nothing: two tiles at one address do not alias here.
    """
    kind = dtype_of(dtype, "ndarray")
    if not isinstance(dtype, Dtype):
        refuse("raw-dtype", "dtype", f"nl.{kind}", repr(dtype), "ndarray")
    core, session = context.core(), context.current()
    buffer = _buffer(buffer, "ndarray")
    extents = (shape,) if isinstance(shape, int) else tuple(shape)
    if not extents or not all(isinstance(n, (int, np.integer)) and n > 0 for n in extents):
        refuse("shape", "shape", "positive ints", extents, "ndarray")
    count = int(np.prod(extents))
    if buffer is Buffer.shared_hbm and core.shared_used < len(core.shared):
        return _shared(core, extents, kind)
    rows = int(extents[0]) if buffer.on_chip else 1
    if buffer.on_chip:
        _check_tile(session, extents, kind, buffer, name)
    storage = Storage.empty(buffer, rows, count // rows, kind, name, kernel_line())
    storage.loop = core.loop.number if core.loop is not None else None
    if buffer.on_chip:
        session.ledger.allocate(storage, core.index)
    dense = reshaped_strides((count,), (1,), extents)
    assert dense is not None
    tensor = NkiTensor(storage, kind, extents, dense)
    if buffer is Buffer.shared_hbm:
        core.shared.append(tensor)
        core.shared_used += 1
    return tensor


def _shared(core: context.Core, shape: tuple[int, ...], dtype: Dtype) -> NkiTensor:
    """The tensor that the other core has made at this place of the program."""
    tensor: NkiTensor = core.shared[core.shared_used]
    core.shared_used += 1
    if tensor.shape != shape or tensor.dtype != dtype:
        refuse("shape", "shape", f"{tensor!r}, as on the other core", (shape, dtype), "ndarray")
    return tensor


def _check_tile(
    session: context.Session, shape: tuple[int, ...], dtype: Dtype, buffer: Buffer, name: str
) -> None:
    if shape[0] > PARTITIONS:
        refuse("partitions", "shape", f"<= {PARTITIONS} partitions", shape, "ndarray")
    if dtype.itemsize == 8:
        refuse("dtype", "dtype", "a dtype of at most 32 bits on the chip", dtype, "ndarray")
    bytes_ = int(np.prod(shape[1:])) * dtype.itemsize
    sbuf = buffer is Buffer.sbuf
    limit = session.generation.sbuf_nominal if sbuf else PSUM_BANKS * PSUM_BANK_BYTES
    if bytes_ > limit:
        rule = "sbuf-capacity" if sbuf else "psum-capacity"
        got = f"{bytes_} for {shape} {dtype}{' ' + name if name else ''}"
        refuse(rule, "shape", f"<= {limit} bytes per partition", got, "ndarray")


def is_sbuf(buffer: Buffer) -> bool:
    """Whether a buffer is SBUF."""
    return _buffer(buffer, "is_sbuf") is Buffer.sbuf


def is_psum(buffer: Buffer) -> bool:
    """Whether a buffer is PSUM."""
    return _buffer(buffer, "is_psum") is Buffer.psum


def is_hbm(buffer: Buffer) -> bool:
    """Whether a buffer is one of the three kinds of HBM."""
    return not _buffer(buffer, "is_hbm").on_chip


def is_on_chip(buffer: Buffer) -> bool:
    """Whether a buffer is SBUF or PSUM."""
    return _buffer(buffer, "is_on_chip").on_chip


def _buffer(value: Any, op: str) -> Buffer:
    if not isinstance(value, Buffer):
        refuse("enum", "buffer", "nl.sbuf, nl.psum, nl.hbm ...", repr(value), op)
    return value  # type: ignore[no-any-return]


def full(
    shape: Sequence[int],
    fill_value: float,
    dtype: Any,
    buffer: Buffer = Buffer.sbuf,
    name: str = "",
) -> NkiTensor:
    """A tensor of one value; memset on the chip, a constant in HBM."""
    from nki_kernels.simulator.isa import memset

    tensor = ndarray(shape, dtype, buffer=buffer, name=name)
    value = float(fill_value) if tensor.dtype.is_float else int(fill_value)
    if buffer.on_chip:
        memset(tensor, value)
    else:
        tensor.write(
            np.full(tensor.shape, value, np.float32 if tensor.dtype.is_float else np.int64)
        )
    return tensor


def zeros(
    shape: Sequence[int], dtype: Any, buffer: Buffer = Buffer.sbuf, name: str = ""
) -> NkiTensor:
    """A tensor of zeros."""
    return full(shape, 0, dtype, buffer=buffer, name=name)


def ones(
    shape: Sequence[int], dtype: Any, buffer: Buffer = Buffer.sbuf, name: str = ""
) -> NkiTensor:
    """A tensor of ones."""
    return full(shape, 1, dtype, buffer=buffer, name=name)


def zeros_like(
    x: NkiTensor, dtype: Any = None, buffer: Buffer | None = None, name: str = ""
) -> NkiTensor:
    """Zeros of the shape, dtype and buffer of `x`."""
    return zeros(x.shape, dtype or x.dtype, buffer=buffer or x.buffer, name=name)


def empty_like(
    x: NkiTensor, dtype: Any = None, buffer: Buffer | None = None, name: str = ""
) -> NkiTensor:
    """Uninitialised, of the shape, dtype and buffer of `x`."""
    return ndarray(x.shape, dtype or x.dtype, buffer=buffer or x.buffer, name=name)


def shared_constant(constant: Any, dtype: Any = None) -> NkiTensor:
    """A numpy array, or the path of an .npy file, in shared HBM; the same on every core."""
    file = isinstance(constant, (str, Path))
    array = np.asarray(np.load(constant, allow_pickle=False) if file else constant)
    kind = dtype_of(dtype or array.dtype, "shared_constant")
    tensor = ndarray(array.shape, kind, buffer=Buffer.shared_hbm)
    values = dtypes.cast(array, kind)
    if tensor.is_defined() and values.tobytes() != tensor.array().tobytes():  # the other core's
        expected = "the same data on every core"
        refuse("value", "constant", expected, "other data than before", "shared_constant")
    tensor.write(values)
    tensor.storage.is_input = True
    return tensor


def shared_identity_matrix(
    n: int, dtype: Any = dtypes.uint8, dst: NkiTensor | None = None
) -> NkiTensor:
    """The n x n identity as an SBUF tile; uint8 unless asked otherwise.

    It is part of the program: loading it is not part of the kernel's work.
    """
    kind = dtype_of(dtype, "shared_identity_matrix")
    tensor = ndarray((n, n), kind, buffer=Buffer.sbuf) if dst is None else dst
    tensor.write(np.eye(n, dtype=np.float32))
    return tensor
