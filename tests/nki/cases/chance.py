"""Random instructions where the outcome is certain: a given state, equal bounds, sure odds.

Their distributions are in `test_random`.
"""

from typing import Any

import numpy as np

from nki_kernels.simulator import isa as nisa
from nki_kernels.simulator import language as nl
from tests.nki.cases.base import RNG, case, normal, whole
from tests.nki.harness import Out

LANES, N = 4, 9
WORDS = {"gpsimd": 6, "vector": 24}
BYTES4 = 2**32


def xorwow(state: Any, count: int) -> tuple[list[int], list[int]]:
    """Marsaglia's generator on Python ints: what it gives, and its state afterwards."""
    x, y, z, w, v, d = map(int, state)
    out = []
    for _ in range(count):
        t = x ^ (x >> 2)
        x, y, z, w, v = y, z, w, v, (v ^ (v << 4) ^ t ^ (t << 1)) % BYTES4
        d = (d + 362437) % BYTES4
        out.append((v + d) % BYTES4)
    return out, [x, y, z, w, v, d]


def drawn(seeds: Any) -> tuple[Any, Any]:
    """The bits of each lane's generators, which take turns, and their state."""
    bits, states = np.empty((LANES, N)), np.empty(seeds.shape)
    for lane, words in enumerate(seeds):
        made = [xorwow(one, -(-N // (len(words) // 6))) for one in words.reshape(-1, 6)]
        bits[lane] = [made[i % len(made)][0][i // len(made)] for i in range(N)]
        states[lane] = np.concatenate([state for _, state in made])
    return bits, states


def given_state(name: str, engine: str) -> Any:
    on = getattr(nisa.engine, engine)
    return case(
        f"{name}-on-{engine}",
        {"seeds": RNG.integers(0, BYTES4, (LANES, WORDS[engine])).astype(np.uint32)},
        {
            "bits": Out((LANES, N), nl.uint32),
            "state": Out((LANES, WORDS[engine]), nl.uint32),
        },
        lambda t: [
            nisa.rand_set_state(t.seeds, engine=on),
            nisa.rng(t.bits, engine=on),
            nisa.rand_get_state(t.state, engine=on),
        ],
        drawn,
        target="trn3",
    )


CASES = [
    *(
        given_state(name, engine)
        for name in ("rand_set_state", "rng", "rand_get_state")
        for engine in WORDS
    ),
    *(
        case(
            f"rand2-between-equal-{kind}",
            {"c": normal(8, 1, scale=1e6)},
            Out((8, 5)),
            call,
            expected,
            target="trn3",
            exact=True,
        )
        for kind, call, expected in [
            ("tiles", lambda t: nisa.rand2(t.dst, t.c, t.c), lambda c: np.repeat(c, 5, 1)),
            (
                "numbers",
                lambda t: nisa.rand2(t.dst, 2.0, 2.0 + 2.0**-30),
                lambda c: np.full((8, 5), 2.0),
            ),
        ]
    ),
    *(
        case(
            f"dropout-of-{data.dtype}-{kind}",
            {"a": data, "p": np.arange(8, dtype=np.float32).reshape(8, 1) % 2},
            Out((8, 5), dtype),
            lambda t, kind=kind: nisa.dropout(t.dst, t.a, t.p if kind == "tile" else kind),
            lambda a, p, kind=kind: a * (1 - (p if kind == "tile" else kind)),
            exact=True,
        )
        for data, dtype in [
            (normal(8, 5, scale=1e30), nl.float32),
            (whole(8, 5, low=2**30, high=2**31 - 1), nl.int32),
        ]
        for kind in ("tile", 0.0, 1.0)
    ),
    case(
        "set_rng_seed-repeats-the-sequence",
        {"s": np.array([[42]], np.int32)},
        {"dst": Out((LANES, N), nl.uint32)},
        lambda t: repeated(t),
        lambda s: np.zeros((LANES, N)),
    ),
]


def repeated(t: Any) -> None:
    one, two = (nl.ndarray((LANES, N), nl.uint32) for _ in range(2))
    for made in (one, two):
        nisa.set_rng_seed(t.s)
        nisa.rng(made)
    nisa.tensor_tensor(t.dst, one, two, nl.bitwise_xor)
