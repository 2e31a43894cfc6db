"""`nki.isa`: one module per family of instructions; their table is `instruction.INSTRUCTIONS`."""

from nki_kernels.simulator.errors import NkiValidationError
from nki_kernels.simulator.handles import NkiInstruction, dependency
from nki_kernels.simulator.hardware import Engine
from nki_kernels.simulator.isa import not_simulated
from nki_kernels.simulator.isa.activations import (
    activate2,
    activation,
    activation_reduce,
    exponential,
)
from nki_kernels.simulator.isa.copies import (
    memset,
    nc_stream_shuffle,
    tensor_copy,
    tensor_copy_predicated,
)
from nki_kernels.simulator.isa.dma import dma_copy, dma_transpose
from nki_kernels.simulator.isa.dma_sum import dma_compute
from nki_kernels.simulator.isa.elementwise import (
    reciprocal,
    scalar_tensor_tensor,
    tensor_scalar,
    tensor_tensor,
)
from nki_kernels.simulator.isa.enums import (
    dge_mode,
    dma_engine,
    engine,
    get_nc_sub_version,
    get_nc_version,
    matmul_perf_mode,
    nc_version,
    oob_mode,
    reduce_cmd,
)
from nki_kernels.simulator.isa.groups import (
    local_gather,
    nonzero_with_count,
    sequence_bounds,
    topk,
)
from nki_kernels.simulator.isa.matmul import nc_matmul, nc_transpose
from nki_kernels.simulator.isa.mx import nc_matmul_mx, quantize_mx
from nki_kernels.simulator.isa.patterns import affine_select, iota, nc_n_gather
from nki_kernels.simulator.isa.random import (
    dropout,
    rand2,
    rand_get_state,
    rand_set_state,
    rng,
    set_rng_seed,
)
from nki_kernels.simulator.isa.reductions import (
    tensor_partition_reduce,
    tensor_reduce,
    tensor_scalar_cumulative,
    tensor_scalar_reduce,
    tensor_tensor_scan,
)
from nki_kernels.simulator.isa.runtime import (
    core_barrier,
    register_alloc,
    register_load,
    register_move,
    register_store,
    scalar_load,
    scalar_store,
    sendrecv,
)
from nki_kernels.simulator.isa.search import max8, nc_find_index8, nc_match_replace8
from nki_kernels.simulator.isa.selection import range_select, select_reduce
from nki_kernels.simulator.isa.statistics import bn_aggr, bn_stats
from nki_kernels.simulator.scalars import VirtualRegister

tensor_engine, vector_engine = Engine.tensor, Engine.vector
scalar_engine, gpsimd_engine = Engine.scalar, Engine.gpsimd
sync_engine, unknown_engine = Engine.sync, Engine.unknown

globals().update(
    {name: not_simulated.refusing(name, why) for name, why in not_simulated.REASONS.items()}
)

__all__ = ["NkiInstruction", "VirtualRegister", "dependency"]
__all__ += ["activate2", "activation", "activation_reduce", "affine_select"]
__all__ += ["bn_aggr", "bn_stats", "core_barrier", "dge_mode", "dma_compute", "dma_copy"]
__all__ += ["dma_engine", "dma_transpose", "dropout", "engine", "exponential", "get_nc_version"]
__all__ += ["gpsimd_engine", "iota", "local_gather", "matmul_perf_mode", "max8", "memset"]
__all__ += ["nc_find_index8", "nc_match_replace8", "nc_matmul", "nc_matmul_mx", "nc_n_gather"]
__all__ += ["nc_stream_shuffle", "nc_transpose", "nc_version", "nonzero_with_count", "oob_mode"]
__all__ += ["quantize_mx", "rand2", "rand_get_state", "rand_set_state", "range_select"]
__all__ += ["reciprocal", "reduce_cmd", "register_alloc", "register_load", "register_move"]
__all__ += ["register_store", "rng", "scalar_engine", "scalar_load", "scalar_store"]
__all__ += ["scalar_tensor_tensor", "select_reduce", "sendrecv", "sequence_bounds", "set_rng_seed"]
__all__ += ["sync_engine", "tensor_copy", "tensor_copy_predicated", "tensor_engine"]
__all__ += ["tensor_partition_reduce", "tensor_reduce", "tensor_scalar"]
__all__ += ["tensor_scalar_cumulative", "tensor_scalar_reduce", "tensor_tensor"]
__all__ += ["tensor_tensor_scan", "topk", "unknown_engine", "vector_engine"]
__all__ += ["NkiInstruction", "NkiValidationError", "get_nc_sub_version"]
