"""`nl`: convenience functions, run-time scalars, constants, and classes of kernels."""

from dataclasses import FrozenInstanceError, dataclass, field
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

from nki_kernels.simulator import NkiValidationError, jit, session
from nki_kernels.simulator import isa as nisa
from nki_kernels.simulator import language as nl

RNG = np.random.default_rng(3)
X, Y = (RNG.standard_normal((16, 24)).astype(np.float32) for _ in range(2))
SQUARE = RNG.standard_normal((16, 16)).astype(np.float32)


def evaluate(call: Any, *arrays: Any, **options: Any) -> Any:
    """The tile that `call` makes of the loaded arrays."""

    def kernel(*inputs: Any) -> Any:
        tile = call(*(nl.load(x) for x in inputs))
        out = nl.ndarray(tile.shape, tile.dtype, buffer=nl.shared_hbm)
        nl.store(out, tile)
        return out

    with session(**({"target": "trn2", "strict": True} | options)):
        return jit(kernel)(*arrays)


WRAPPERS: dict[str, tuple[Any, tuple[Any, ...], Any]] = {
    "add": (nl.add, (X, Y), X + Y),
    "number on the left": (lambda x: nl.subtract(2.0, x), (X,), 2 - X),
    "column on the right": (lambda x, y: nl.multiply(x, y[:, 0:1]), (X, Y), X * Y[:, :1]),
    "column on the left": (lambda x, y: nl.subtract(y[:, 0:1], x), (X, Y), Y[:, :1] - X),
    "exp": (nl.exp, (X,), np.exp(X)),
    "negative": (nl.negative, (X,), -X),
    "reciprocal": (nl.reciprocal, (X,), 1 / X),
    "sum": (lambda x: nl.sum(x, axis=1), (X,), X.sum(1, keepdims=True)),
    "max": (lambda x: nl.max(x, axis=1, keepdims=True), (X,), X.max(1, keepdims=True)),
    "min": (lambda x: nl.min(x, axis=[1]), (X,), X.min(1, keepdims=True)),
    "mean": (lambda x: nl.mean(x, axis=1), (X,), X.mean(1, keepdims=True)),
    "matmul": (lambda x, y: nl.matmul(x, y, transpose_x=True), (X, Y), X.T @ Y),
    "matmul with a transpose": (nl.matmul, (SQUARE, X), SQUARE @ X),
    "a broadcast that is wider and cast": (
        lambda x: nl.broadcast_to(x=x[0:1, 0:1], shape=(4, 24), dtype=nl.bfloat16),
        (X,),
        np.full((4, 24), X[0, 0].astype(ml_dtypes.bfloat16), np.float32),
    ),
    "a buffer and a name by place": (
        lambda x: nl.add(nl.full((16, 24), 2.0, nl.float32, nl.sbuf, "two"), x),
        (X,),
        X + 2,
    ),
    "a tile in PSUM by place": (
        lambda x: nl.copy(nl.ones((16, 24), nl.float32, nl.psum)),
        (X,),
        np.ones((16, 24)),
    ),
    "operands by name": (lambda x, y: nl.subtract(y=y, x=x), (X, Y), X - Y),
    "a dtype by place": (lambda x: nl.copy(nl.square(x, nl.float32), nl.float32), (X,), X * X),
    "transpose": (nl.transpose, (X,), X.T),
    "where": (
        lambda x, y: nl.where(nl.greater(x, y), x, -1.0),
        (X, Y),
        np.where(X > Y, X, -1),
    ),
    "broadcast of a row": (
        lambda x: nl.add(nl.broadcast_to(x[0:1], (4, 24)), 0.0),
        (X,),
        np.broadcast_to(X[:1], (4, 24)),
    ),
    "operator names of reductions": (
        lambda x: reduced(x),
        (X,),
        X.max(1, keepdims=True),
    ),
}


def reduced(x: Any) -> Any:
    tile = nl.ndarray((x.shape[0], 1), x.dtype)
    nisa.tensor_reduce(tile, nl.max, x, axis=1)
    return tile


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_convenience_function_gives_what_numpy_gives(name: str) -> None:
    call, arrays, expected = WRAPPERS[name]
    np.testing.assert_allclose(evaluate(call, *arrays), expected, rtol=2e-5, atol=1e-5)


def test_the_identity_is_uint8_unless_asked() -> None:
    found = evaluate(lambda: nl.shared_identity_matrix(8))
    np.testing.assert_array_equal(found, np.eye(8))
    assert found.dtype == np.uint8
    assert evaluate(lambda: nl.shared_identity_matrix(8, dtype=nl.float32)).dtype == np.float32


def test_a_constant_is_read_from_a_file_without_pickle(tmp_path: Any) -> None:
    np.save(tmp_path / "x.npy", X)
    np.testing.assert_array_equal(evaluate(lambda: nl.shared_constant(str(tmp_path / "x.npy"))), X)


def test_registers_count_a_loop_of_the_parser() -> None:
    def kernel(n: Any) -> Any:
        out = nl.ndarray((1, 1), nl.int32, buffer=nl.shared_hbm)
        total = nl.zeros((1, 1), nl.int32)
        left, count = nl.load(n), nisa.register_alloc()
        nisa.register_load(count, left)
        while count:
            nisa.tensor_scalar(total, total, op0=nl.add, operand0=3.0)
            nisa.tensor_scalar(left, left, op0=nl.subtract, operand0=1.0)
            nisa.register_load(count, left)
        for _ in nl.dynamic_range(nisa.register_alloc(2)):
            nisa.tensor_scalar(total, total, op0=nl.add, operand0=100.0)
        nisa.dma_copy(out, total)
        return out

    number = np.array([[4]], np.int32)
    with session(target="trn2", nki="0.6", strict=True):
        assert jit(kernel)(number).item() == 212
    with (
        session(target="trn2", nki="0.7", strict=True),
        pytest.raises(NkiValidationError, match="control flow"),
    ):
        jit(kernel)(number)


def test_run_time_scalars_wrap_and_are_stored() -> None:
    def kernel(x: Any) -> Any:
        out = nl.ndarray((1, 1), nl.int32, buffer=nl.shared_hbm)
        value = nisa.scalar_load(x)
        nisa.scalar_store(out, (value + 1) * 2 - 3)
        return out

    with session(target="trn2", strict=True):
        assert jit(kernel)(np.array([[20]], np.int32)).item() == 39
        assert jit(kernel)(np.array([[2**31 - 1]], np.int32)).item() == -3


def test_a_run_time_scalar_is_taken_from_a_number_too() -> None:
    def kernel(x: Any) -> Any:
        out = nl.ndarray((1, 1), nl.int32, buffer=nl.shared_hbm)
        nisa.scalar_store(out, 2 * (100 - nisa.scalar_load(x)) + 1)
        return out

    with session(target="trn2", strict=True):
        assert jit(kernel)(np.array([[20]], np.int32)).item() == 161


def test_tensors_in_a_dict_or_a_named_tuple_come_back_as_arrays() -> None:
    class Pair(NamedTuple):
        first: Any
        second: Any

    def kernel(x: Any) -> Any:
        out = nl.ndarray(x.shape, x.dtype, buffer=nl.shared_hbm)
        nisa.dma_copy(out, x)
        return {"pair": Pair(out, 3)}

    x = np.arange(8, dtype=np.float32).reshape(4, 2)
    with session(target="trn2", strict=True):
        found = jit(kernel)(x)["pair"]
    assert type(found.first) is np.ndarray
    np.testing.assert_array_equal(found.first, x)
    assert found.second == 3


def test_a_fori_loop_goes_over_lower_to_upper_by_step() -> None:
    def kernel(x: Any) -> Any:
        out = nl.ndarray((1, 1), nl.int32, buffer=nl.shared_hbm)
        seen = [nisa.scalar_load(x)]

        def body(i: Any) -> None:
            seen[0] = seen[0] * 10 + i

        nl.fori_loop(2, 9, body, step=3)
        nisa.scalar_store(out, seen[0])
        return out

    with session(target="trn2", strict=True):
        assert jit(kernel)(np.array([[1]], np.int32)).item() == 1258


def test_bare_attributes_of_an_nki_object_are_fields() -> None:
    class Plain(nl.NKIObject):
        tile = None
        width: int = 4
        items = []  # noqa: RUF012

    @dataclass
    class Decorated(nl.NKIObject):
        name: str
        tile = None

    one, two = Plain(tile=3), Plain()
    assert (one.tile, one.width, two.tile) == (3, 4, None)
    one.items.append(1)
    assert two.items == []
    assert Decorated("a", tile=5).tile == 5


def test_a_dataclass_of_the_kernels_own_makes_its_constructor() -> None:
    @dataclass(frozen=True)
    class Frozen(nl.NKIObject):
        width: int = 4
        limit = None

    @dataclass
    class Listed(nl.NKIObject):
        width: int = 4
        tiles: list[Any] = field(default_factory=list)
        name: str = "a"

    assert (Frozen(5).width, Frozen().limit) == (5, None)
    with pytest.raises(FrozenInstanceError):
        Frozen().width = 1  # type: ignore[misc]
    one, two = Listed(2, name="b"), Listed()
    one.tiles.append(1)
    assert (one.width, one.name, two.tiles) == (2, "b", [])


def test_a_constructor_of_the_kernels_own_is_kept() -> None:
    class Base(nl.NKIObject):
        width = 0

        def __init__(self, width: int) -> None:
            self.width = 2 * width

    class Child(Base):
        extra = 1

        def __init__(self, width: int) -> None:
            super().__init__(width)
            self.extra = 3

    assert (Base(2).width, Child(4).width, Child(4).extra) == (4, 8, 3)


class Pair(NamedTuple):
    left: Any
    rest: Any


def test_containers_of_arrays_go_in_and_come_out() -> None:
    def kernel(pair: Pair) -> Any:
        copies = []
        for x in (pair.left, *pair.rest["more"]):
            copies.append(nl.ndarray(x.shape, x.dtype, buffer=nl.shared_hbm))
            nisa.dma_copy(copies[-1], x)
        return Pair(copies[0], {"more": copies[1:]})

    found = jit(kernel)(Pair(X, {"more": [Y]}))
    assert isinstance(found, Pair)
    np.testing.assert_array_equal(found.left, X)
    np.testing.assert_array_equal(found.rest["more"][0], Y)
    assert isinstance(found.rest["more"][0], np.ndarray)


def test_generations_are_ordered() -> None:
    def kernel() -> Any:
        version = nisa.get_nc_version()
        return version >= nisa.nc_version.gen3, version < nisa.nc_version.gen4, version

    for target, late, early in [("trn1", False, True), ("trn2", True, True), ("trn3", True, False)]:
        with session(target=target):
            assert jit(kernel)()[:2] == (late, early)


def test_names_of_nki_isa_that_are_no_instructions() -> None:
    def kernel(x: Any) -> Any:
        handle = nisa.dma_copy(nl.ndarray(x.shape, x.dtype), x, name="first")
        refused = None
        try:
            nisa.dma_copy(nl.ndarray((1, 1), x.dtype), x)
        except nisa.NkiValidationError as error:
            refused = error.rule
        return nisa.get_nc_sub_version(), isinstance(handle, nisa.NkiInstruction), refused

    assert nisa.NkiValidationError is NkiValidationError
    for target in ("trn1", "trn2", "trn3"):
        with session(target=target):
            assert jit(kernel)(X) == (0, True, "element-count")


def test_a_priority_is_taken_by_every_dma_of_gen4() -> None:
    def kernel(x: Any, priority: Any) -> Any:
        tile, turned = nl.ndarray((16, 24), x.dtype), nl.ndarray((24, 16), x.dtype)
        nisa.dma_copy(tile, x, priority)
        nisa.dma_transpose(turned, x, (1, 0), priority)
        out = nl.ndarray((24, 16), x.dtype, buffer=nl.shared_hbm)
        nisa.dma_copy(out, turned)
        return out

    for priority in (None, 0, 3):
        with session(target="trn3", strict=True):
            np.testing.assert_array_equal(jit(kernel)(X, priority), X.T)
    for wrong in (-1, 4, 1.5, True):
        with session(target="trn3"), pytest.raises(NkiValidationError, match=r"0\.\.3") as caught:
            jit(kernel)(X, wrong)
        assert (caught.value.rule, caught.value.argument) == ("value", "priority")
    with session(target="trn2"), pytest.raises(NkiValidationError) as caught:
        jit(lambda x: nisa.dma_transpose(nl.ndarray((24, 16), x.dtype), x, priority=0))(X)
    assert (caught.value.rule, caught.value.argument) == ("generation", "priority")


def test_a_mode_by_its_number_is_the_mode() -> None:
    def kernel(x: Any) -> None:
        nisa.dma_copy(nl.ndarray(x.shape, x.dtype), x, dge_mode=nisa.dge_mode.none)
        nisa.dma_copy(nl.ndarray(x.shape, x.dtype), x, dge_mode=3)

    with session() as run, pytest.warns(match="enum-number"):
        jit(kernel)(X)
    by_name, by_number = run.ledger.events
    assert by_number.attributes["dge_mode"] is by_name.attributes["dge_mode"]


def test_a_dtype_of_older_kernels_does_not_change_what_dst_gets() -> None:
    def kernel(x: Any) -> Any:
        tile = nl.ndarray(x.shape, nl.float32)
        nisa.tensor_copy(tile, nl.load(x), dtype=nl.bfloat16)
        out = nl.ndarray(x.shape, nl.float32, buffer=nl.shared_hbm)
        nl.store(out, tile)
        return out

    with session(), pytest.warns(match="old-argument"):
        np.testing.assert_array_equal(jit(kernel)(X), X)


@pytest.mark.parametrize(
    "call",
    [lambda x: nl.add(x), lambda x: nl.exp(x, nl.float32, x), lambda x: nl.add(x, y=x, mask=x)],
    ids=["one operand", "three", "an unknown name"],
)
def test_wrong_operands_of_a_convenience_function_are_refused(call: Any) -> None:
    with pytest.raises(NkiValidationError, match=r"nl\.(add|exp)\(x, .*dtype=None\)") as caught:
        evaluate(call, X)
    assert caught.value.rule == "signature"


def test_sizes_follow_the_target() -> None:
    def kernel() -> tuple[int, int, int]:
        assert nl.tile_size.psum_bank_fmax_bytes == 4 * nl.tile_size.psum_bank_fmax == 2048
        assert nl.tile_size.sbuf_fmax * 4 == nl.tile_size.sbuf_fmax_bytes
        assert nl.tile_size.sbuf_size_bytes == 128 * nl.tile_size.sbuf_fmax_bytes
        return nl.tile_size.pmax, nl.tile_size.gemm_moving_fmax, nl.tile_size.sbuf_fmax_bytes

    for target, moving, sbuf in [("trn1", 512, 192), ("trn2", 512, 208), ("trn3", 4096, 240)]:
        with session(target=target):
            assert jit(kernel)() == (128, moving, sbuf * 1024)
