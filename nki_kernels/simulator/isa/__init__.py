"""`nki.isa`: one module per family of instructions; their table is `instruction.INSTRUCTIONS`."""

from nki_kernels.simulator.hardware import Engine
from nki_kernels.simulator.isa import not_simulated
from nki_kernels.simulator.isa.activations import activation, activation_reduce, exponential
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

__all__ = ["VirtualRegister", "activation", "activation_reduce", "affine_select", "bn_aggr"]
__all__ += ["bn_stats", "core_barrier", "dge_mode", "dma_compute", "dma_copy", "dma_engine"]
__all__ += ["dma_transpose", "dropout", "engine", "exponential", "get_nc_version", "gpsimd_engine"]
__all__ += ["iota", "local_gather", "matmul_perf_mode", "max8", "memset", "nc_find_index8"]
__all__ += ["nc_match_replace8", "nc_matmul", "nc_n_gather", "nc_stream_shuffle", "nc_transpose"]
__all__ += ["nc_version", "nonzero_with_count", "oob_mode", "rand2", "rand_get_state"]
__all__ += ["rand_set_state", "range_select", "reciprocal", "reduce_cmd", "register_alloc"]
__all__ += ["register_load", "register_move", "register_store", "rng", "scalar_engine"]
__all__ += ["scalar_load", "scalar_store", "scalar_tensor_tensor", "select_reduce", "sendrecv"]
__all__ += ["sequence_bounds", "set_rng_seed", "sync_engine", "tensor_copy"]
__all__ += ["tensor_copy_predicated", "tensor_engine", "tensor_partition_reduce", "tensor_reduce"]
__all__ += ["tensor_scalar", "tensor_scalar_cumulative", "tensor_scalar_reduce", "tensor_tensor"]
__all__ += ["tensor_tensor_scan", "topk", "unknown_engine", "vector_engine"]
