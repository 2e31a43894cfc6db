"""Random numbers: rng, rand2, dropout, and the state of their generators.

Each compute lane has a XORWOW generator of six words on GpSimd, four of them on VectorE, which take
turns along the free axis. The algorithm is documented, the order of the words and how a seed fills
them are not: a seed repeats a sequence here, but not the device's.
"""

from typing import Any

import numpy as np

from nki_kernels.simulator import checks
from nki_kernels.simulator.context import core, current, refuse
from nki_kernels.simulator.dtypes import (
    ALL,
    FLOATS,
    INTEGERS,
    Array,
    bool_,
    float8_e4m3fn,
    float32,
    int32,
    int64,
    uint32,
)
from nki_kernels.simulator.hardware import PARTITIONS, Engine
from nki_kernels.simulator.instruction import SBUF, Call, Operand, instruction
from nki_kernels.simulator.isa.operands import column, native
from nki_kernels.simulator.tensor import NkiTensor

V, G = Engine.vector, Engine.gpsimd
WORDS = 6  # of a XORWOW generator: five shift words, one counter
GENERATORS = {V: 4, G: 1}  # per lane
WEYL = np.uint32(362437)


def _seeded(engine: Engine, seed: int) -> Array:
    shape = (PARTITIONS, GENERATORS[engine], WORDS)
    words = np.random.SeedSequence([seed, engine.value]).generate_state(int(np.prod(shape)))
    return words.reshape(shape)


def _lanes(engine: Engine, at: NkiTensor) -> Array:
    """The state of the lanes of `at`'s partitions [P, generators, words]; writable."""
    here = core()
    if engine not in here.random:
        here.random[engine] = _seeded(engine, here.index)
    state = here.random[engine]
    return state[at.start_partition : at.start_partition + at.shape[0]]


def bits(engine: Engine, at: NkiTensor) -> Array:
    """32 random bits for each element of `at`, uint32 [P, N]."""
    state = _lanes(engine, at)
    out = np.empty((-(-at.free // GENERATORS[engine]), *state.shape[:2]), np.uint32)
    for step in out:
        mixed = state[..., 0] ^ (state[..., 0] >> 2)
        last = state[..., 4]
        fresh = last ^ (last << 4) ^ mixed ^ (mixed << 1)
        state[..., :4] = state[..., 1:5].copy()
        state[..., 4] = fresh
        state[..., 5] += WEYL
        step[:] = fresh + state[..., 5]
    return out.transpose(1, 0, 2).reshape(at.shape[0], -1)[:, : at.free]


def uniform(engine: Engine, at: NkiTensor) -> Array:
    """Uniform in [0, 1) with 24 bits, float32 [P, N]."""
    return (bits(engine, at) >> 8).astype(np.float32) * np.float32(2**-24)


@instruction(
    *(V, G),
    dst=Operand("write", dtypes=INTEGERS - {int64}),
    engine_since={G: 3},
)
def rng(dst: NkiTensor, engine: Engine = Engine.unknown) -> None:
    """Random bits: the lowest of 32, as many as an element of dst has."""
    unsigned = bits(engine, dst).astype(f"u{dst.itemsize}")
    dst.write(unsigned.view(dst.dtype.dtype))


def _range(call: Call) -> None:
    low, high = call.arguments["min"], call.arguments["max"]
    if not isinstance(low, NkiTensor) and not isinstance(high, NkiTensor) and not low < high:
        refuse("value", "max", f"more than min, {low}", high)


BOUND = Operand("read", dtypes=frozenset({float32}), number=True, column=True)


@instruction(
    V,
    dst=Operand("write", dtypes=frozenset(ALL) - {bool_, int64, float8_e4m3fn}),
    min=BOUND,
    max=BOUND,
    checks=[_range],
    generations=(4,),
)
def rand2(dst: NkiTensor, min: Any, max: Any) -> None:
    """Uniform float32 numbers between `min` and `max`, numbers or (P, 1) tiles, cast to dst."""
    low, high = (column(v, name, dst.shape[0]) for name, v in (("min", min), ("max", max)))
    dst.write(low + (high - low) * uniform(V, dst))


@instruction(
    V,
    src_seeds=Operand("read", dtypes=frozenset({int32, uint32, float32}), column=True),
    checks=[lambda call: _one_seed(call.arguments["src_seeds"])],
)
def set_rng_seed(src_seeds: NkiTensor) -> None:
    """Seed VectorE's generators with the 32 bits of a (1, 1) tile."""
    seed = int(src_seeds.read("src_seeds").reshape(-1).view(np.uint32)[0])
    core().random[V] = _seeded(V, seed)


def _one_seed(seeds: NkiTensor) -> None:
    if seeds.size != 1:
        refuse("shape", "src_seeds", "shape (1, 1)", seeds)


def _state_engine(name: str) -> Any:
    def choose(call: Call) -> Engine:
        many = call.arguments[name].free == GENERATORS[V] * WORDS
        return V if many and current().generation.number >= 4 else G

    return choose


def _state_size(name: str) -> Any:
    def check(call: Call) -> None:
        tensor, words = call.arguments[name], GENERATORS[call.engine] * WORDS
        if tensor.free != words:
            refuse("size-limit", name, f"{words} words per lane of {call.engine.name}", tensor)

    return check


@instruction(
    *(G, V),
    src_seeds=Operand("read", SBUF, frozenset({uint32})),
    checks=[_state_size("src_seeds")],
    choose=_state_engine("src_seeds"),
    generations=(3, 4),
    engine_since={V: 4},
)
def rand_set_state(src_seeds: NkiTensor, engine: Engine = Engine.unknown) -> None:
    """Set the generators of the tile's lanes: 6 words on GpSimd, 24 on VectorE (gen4)."""
    lanes = _lanes(engine, src_seeds)
    lanes[...] = native(src_seeds, "src_seeds").reshape(lanes.shape)


@instruction(
    *(G, V),
    dst=Operand("write", dtypes=frozenset({uint32})),
    checks=[_state_size("dst")],
    choose=_state_engine("dst"),
    generations=(3, 4),
    engine_since={V: 4},
)
def rand_get_state(dst: NkiTensor, engine: Engine = Engine.unknown) -> None:
    """The state of the generators of the tile's lanes: 6 words on GpSimd, 24 on VectorE (gen4)."""
    dst.write(_lanes(engine, dst).reshape(dst.shape[0], -1))


def _probability(call: Call) -> None:
    prob, data = call.arguments["prob"], call.arguments["data"]
    if not isinstance(prob, NkiTensor):
        if not 0 <= prob <= 1:
            refuse("value", "prob", "a probability in 0..1", prob)
    elif not data.dtype.is_float and prob.dtype != float32:
        refuse("dtype", "prob", f"float32 for {data.dtype}", prob)


@instruction(
    V,
    dst=Operand("write"),
    data=Operand("read"),
    prob=Operand("read", dtypes=FLOATS, number=True, column=True),
    checks=[checks.elementwise("data", "dst"), checks.same_dtype("data", "dst"), _probability],
)
def dropout(dst: NkiTensor, data: NkiTensor, prob: Any) -> None:
    """Zero with probability `prob`, a number or (P, 1); the others keep their value."""
    dropped = uniform(V, data) < column(prob, "prob", data.shape[0])
    values = native(data, "data")
    dst.write(np.where(dropped, values.dtype.type(0), values))
