"""Random numbers: their distribution, their state, and that a seed repeats them."""

from typing import Any

import numpy as np
import pytest

from nki_kernels.simulator import NkiValidationError
from nki_kernels.simulator import isa as nisa
from nki_kernels.simulator import language as nl
from tests.nki.cases.base import BF16
from tests.nki.harness import Out, run

SEED = np.array([[42]], np.int32)


@pytest.mark.parametrize(("engine", "words"), [("gpsimd", 6), ("vector", 24)])
def test_a_state_that_was_read_repeats_what_came_after_it(engine: str, words: int) -> None:
    seeds = np.random.default_rng(1).integers(0, 2**32, (32, words)).astype(np.uint32)
    on = getattr(nisa.engine, engine)

    def call(t: Any) -> None:
        nisa.rand_set_state(t.seeds, engine=on)
        nisa.rng(t.bits, engine=on)
        nisa.rand_get_state(t.state, engine=on)
        nisa.rng(t.more, engine=on)
        nisa.rand_set_state(t.state, engine=on)
        nisa.rng(t.again, engine=on)

    tile = Out((32, 8), nl.uint32)
    outputs = {"bits": tile, "state": Out((32, words), nl.uint32), "more": tile, "again": tile}
    found = run({"seeds": seeds}, outputs, call, target="trn3")
    np.testing.assert_array_equal(found["more"], found["again"])
    assert (found["more"] != found["bits"]).any()


def test_rng_gives_the_lowest_bits_of_an_element() -> None:
    kinds = {"wide": nl.uint32, "short": nl.int16, "byte": nl.uint8}

    def call(t: Any) -> None:
        for name in kinds:
            nisa.set_rng_seed(t.seed)
            nisa.rng(getattr(t, name))

    outputs = {name: Out((64, 40), dtype) for name, dtype in kinds.items()}
    found = run({"seed": SEED}, outputs, call)
    np.testing.assert_array_equal(found["short"], found["wide"].astype(np.uint16).view(np.int16))
    np.testing.assert_array_equal(found["byte"], found["wide"].astype(np.uint8))
    ones = np.unpackbits(found["wide"].view(np.uint8)).mean()
    assert abs(ones - 0.5) < 0.01


def test_a_seed_repeats_the_sequence_and_another_does_not() -> None:
    def call(t: Any) -> None:
        for seed, dst in ((t.seed, t.a), (t.seed, t.b), (t.other, t.c)):
            nisa.set_rng_seed(seed)
            nisa.rng(dst)

    tile = Out((4, 8), nl.uint32)
    found = run({"seed": SEED, "other": SEED + 1}, dict.fromkeys("abc", tile), call)
    np.testing.assert_array_equal(found["a"], found["b"])
    assert (found["a"] != found["c"]).any()


def test_rand2_is_uniform_between_its_bounds() -> None:
    low = np.linspace(-3, 3, 128, dtype=np.float32)[:, None]

    def call(t: Any) -> None:
        nisa.rand2(t.dst, 2.0, 6.0)
        nisa.rand2(t.rows, t.low, 10.0)

    tile = Out((128, 500))
    found = run({"low": low}, {"dst": tile, "rows": tile}, call, target="trn3")
    dst, rows = found["dst"], found["rows"]
    assert dst.min() >= 2
    assert dst.max() <= 6
    assert abs(dst.mean() - 4) < 0.02
    assert abs(dst.var() - 16 / 12) < 0.02
    assert (rows >= low).all()
    np.testing.assert_allclose(rows.mean(1), (low[:, 0] + 10) / 2, atol=0.7)


@pytest.mark.parametrize("dtype", [np.float32, BF16, np.int32])
def test_dropout_zeroes_with_its_probability_and_keeps_the_rest(dtype: Any) -> None:
    data = np.full((64, 500), 7, dtype)
    prob = np.linspace(0, 1, 64, dtype=np.float32)[:, None]

    def call(t: Any) -> None:
        nisa.dropout(t.rows, t.data, t.prob)
        nisa.dropout(t.most, t.data, 0.75)
        nisa.dropout(t.none, t.data, 0.0)
        nisa.dropout(t.all, t.data, 1.0)

    kind = nl.int32 if dtype is np.int32 else nl.bfloat16 if dtype is BF16 else nl.float32
    outputs = dict.fromkeys(("rows", "most", "none", "all"), Out((64, 500), kind))
    found = {
        name: value.astype(np.float32)
        for name, value in run({"data": data, "prob": prob}, outputs, call).items()
    }
    for values in found.values():
        assert set(np.unique(values)) <= {0, 7}
    np.testing.assert_allclose((found["rows"] == 0).mean(1), prob[:, 0], atol=0.1)
    assert abs((found["most"] == 0).mean() - 0.75) < 0.02
    assert (found["none"] == 7).all()
    assert (found["all"] == 0).all()


def test_the_vector_engine_has_no_open_state_before_gen4() -> None:
    with pytest.raises(NkiValidationError, match="6 words"):
        run({}, {"s": Out((8, 24), nl.uint32)}, lambda t: nisa.rand_get_state(t.s))
