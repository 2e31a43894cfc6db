"""`nki.language`: tensors, dtypes, buffers, operators, loops and convenience functions."""

from typing import Any

from nki_kernels.simulator.context import refuse
from nki_kernels.simulator.dtypes import Dtype as DType
from nki_kernels.simulator.dtypes import (
    bfloat16,
    bool_,
    float4_e2m1fn_x4,
    float8_e4m3,
    float8_e4m3fn,
    float8_e4m3fn_x4,
    float8_e5m2,
    float8_e5m2_x4,
    float8_e8m0fnu,
    float16,
    float32,
    int8,
    int16,
    int32,
    int64,
    tfloat32,
    uint8,
    uint16,
    uint32,
)
from nki_kernels.simulator.errors import NkiNameError
from nki_kernels.simulator.isa.enums import get_nc_version, nc_version
from nki_kernels.simulator.language.composites import (
    all,
    dropout,
    gather_flattened,
    rand,
    random_seed,
    rms_norm,
    softmax,
    var,
)
from nki_kernels.simulator.language.control import (
    NKIObject,
    affine_range,
    dynamic_range,
    fori_loop,
    no_reorder,
    num_programs,
    program_id,
    program_ndim,
    sequential_range,
    static_range,
    tile_size,
    while_loop,
)
from nki_kernels.simulator.language.creation import (
    empty_like,
    full,
    is_hbm,
    is_on_chip,
    is_psum,
    is_sbuf,
    ndarray,
    ones,
    shared_constant,
    shared_identity_matrix,
    zeros,
    zeros_like,
)
from nki_kernels.simulator.language.grids import (
    NkiBlockGrid,
    NkiGrid,
    NkiTileGrid,
    alloc_blocks,
    alloc_tiles,
    blocks,
    tiles,
)
from nki_kernels.simulator.language.wrappers import (
    broadcast_to,
    device_print,
    expand_dims,
    load,
    load_transpose2d,
    matmul,
    max,
    mean,
    min,
    prod,
    store,
    sum,
    transpose,
    where,
)
from nki_kernels.simulator.memory import Buffer
from nki_kernels.simulator.operators import FUNCTIONS
from nki_kernels.simulator.scalars import NkiScalar, VirtualRegister
from nki_kernels.simulator.tensor import NkiTensor
from nki_kernels.simulator.views import ds

sbuf, psum, hbm = Buffer.sbuf, Buffer.psum, Buffer.hbm
shared_hbm, private_hbm = Buffer.shared_hbm, Buffer.private_hbm
MemoryRegion, tensor = Buffer, NkiTensor
range = affine_range
globals().update(FUNCTIONS)  # nl.add, nl.exp ...: the operators of `alu`

REMOVED = {
    "mgrid": "slices or .ap()",
    "arange": "slices or .ap()",
    "par_dim": "axis 0 of the shape",
    "load_sbuf": "nisa.dma_copy",
    "spmd_dim": "kernel[2]",
    "nc": "kernel[2]",
}


def __getattr__(name: str) -> Any:
    """Names of NKI 0.1 are refused with what replaced them."""
    if name in REMOVED:
        got = "a name that NKI 0.2 removed"
        refuse("nki-version", "", REMOVED[name], got, f"nl.{name}", kind=NkiNameError)
    raise AttributeError(f"module 'nki.language' has no attribute {name!r}")


__all__ = ["DType", "MemoryRegion", "NKIObject", "NkiBlockGrid", "NkiGrid", "NkiNameError"]
__all__ += [
    "NkiScalar",
    "NkiTensor",
    "NkiTileGrid",
    "alloc_blocks",
    "alloc_tiles",
    "blocks",
    "tiles",
]
__all__ += ["VirtualRegister", "affine_range", "bfloat16", "bool_", "broadcast_to", "device_print"]
__all__ += ["ds", "dynamic_range", "empty_like", "expand_dims", "float16", "float32"]
__all__ += ["float4_e2m1fn_x4", "float8_e4m3", "float8_e4m3fn", "float8_e4m3fn_x4", "float8_e5m2"]
__all__ += ["float8_e5m2_x4", "float8_e8m0fnu", "fori_loop", "full", "get_nc_version", "hbm"]
__all__ += ["int8", "int16", "int32", "int64", "load", "load_transpose2d", "matmul", "max", "mean"]
__all__ += ["min", "nc_version", "ndarray", "no_reorder", "num_programs", "ones", "private_hbm"]
__all__ += ["prod", "program_id", "program_ndim", "psum", "sbuf", "sequential_range"]
__all__ += ["shared_constant", "shared_hbm", "shared_identity_matrix", "static_range", "store"]
__all__ += ["sum", "tensor", "tfloat32", "tile_size", "transpose", "uint8", "uint16", "uint32"]
__all__ += ["where", "while_loop", "zeros", "zeros_like"]
__all__ += ["all", "dropout", "gather_flattened", "is_hbm", "is_on_chip", "is_psum", "is_sbuf"]
__all__ += ["rand", "random_seed", "range", "rms_norm", "softmax", "var"]
