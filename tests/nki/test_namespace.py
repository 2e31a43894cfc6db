"""All documented names of `nki.language`: each is there and gives what float64 numpy gives.

Loops over run-time values and tile grids have tests of their own.
"""

import inspect
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from nki_kernels.simulator import NkiValidationError, jit, session
from nki_kernels.simulator import isa as nisa
from nki_kernels.simulator import language as nl
from tests.nki.test_language import WRAPPERS, evaluate

RNG = np.random.default_rng(11)
P, N = 8, 24
X, Y = (RNG.standard_normal((P, N)).astype(np.float32) for _ in range(2))
CUBE = (100 + RNG.standard_normal((P, 4, 6))).astype(np.float32)
POSITIVE = (np.abs(X) + 0.1).astype(np.float32)
COLUMN = RNG.standard_normal((P, 1)).astype(np.float32)
ROW = RNG.standard_normal((1, N)).astype(np.float32)
INTS, OTHERS = (RNG.integers(-(2**31), 2**31, (P, N), np.int32) for _ in range(2))
BITS = RNG.integers(0, 2, (P, N)).astype(np.float32)

DOCUMENTED = {
    "creation": "ndarray zeros ones full zeros_like empty_like shared_constant"
    " shared_identity_matrix rand random_seed",
    "tensors": "NkiTensor load load_transpose2d store copy matmul transpose",
    "mathematics": "abs abs_max abs_min add arctan ceil cos divide exp floor fmod log maximum"
    " minimum mod multiply negative power reciprocal rsqrt sign sin sqrt square subtract tan tanh"
    " trunc",
    "activations": "relu sigmoid silu silu_dx gelu gelu_dx gelu_apprx_sigmoid"
    " gelu_apprx_sigmoid_dx gelu_apprx_tanh mish softplus softmax erf erf_dx",
    "normalisation": "dropout rms_norm",
    "reductions": "all max mean min prod sum var",
    "comparisons": "equal not_equal less less_equal greater greater_equal",
    "logic": "logical_and logical_or logical_xor logical_not",
    "bits": "bitwise_and bitwise_or bitwise_xor invert left_shift right_shift",
    "shapes": "broadcast_to ds expand_dims where gather_flattened",
    "iterators": "affine_range dynamic_range sequential_range static_range range fori_loop"
    " while_loop",
    "grids": "tiles blocks alloc_tiles alloc_blocks",
    "buffers": "psum sbuf hbm private_hbm shared_hbm is_psum is_sbuf is_hbm is_on_chip"
    " MemoryRegion",
    "others": "device_print no_reorder program_id num_programs program_ndim NKIObject tile_size",
    "dtypes": "DType bool_ int8 int16 int32 uint8 uint16 uint32 float16 float32 bfloat16 tfloat32"
    " float8_e4m3 float8_e5m2 float8_e4m3fn float8_e8m0fnu float8_e5m2_x4 float8_e4m3fn_x4"
    " float4_e2m1fn_x4",
    "operator constants": "average bypass prelu",
}
NAMES = {name for names in DOCUMENTED.values() for name in names.split()}


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def normal(x: Any) -> Any:
    return np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


ERF = np.vectorize(math.erf, otypes=[np.float64])

UNARY: dict[str, Any] = {
    "abs": np.abs,
    "arctan": np.arctan,
    "ceil": np.ceil,
    "copy": lambda x: x,
    "cos": np.cos,
    "exp": np.exp,
    "floor": np.floor,
    "negative": lambda x: -x,
    "reciprocal": lambda x: 1 / x,
    "sign": np.sign,
    "sin": np.sin,
    "square": lambda x: x * x,
    "tan": np.tan,
    "tanh": np.tanh,
    "trunc": np.trunc,
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": sigmoid,
    "silu": lambda x: x * sigmoid(x),
    "silu_dx": lambda x: sigmoid(x) + x * sigmoid(x) * sigmoid(-x),
    "gelu": lambda x: x * (1 + ERF(x / math.sqrt(2))) / 2,
    "gelu_dx": lambda x: (1 + ERF(x / math.sqrt(2))) / 2 + x * normal(x),
    "gelu_apprx_sigmoid": lambda x: x * sigmoid(1.702 * x),
    "gelu_apprx_sigmoid_dx": lambda x: (
        sigmoid(1.702 * x) + 1.702 * x * sigmoid(1.702 * x) * sigmoid(-1.702 * x)
    ),
    "gelu_apprx_tanh": lambda x: x * sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)),
    "mish": lambda x: x * np.tanh(np.log(1 + np.exp(x))),
    "softplus": lambda x: np.log(1 + np.exp(x)),
    "erf": ERF,
    "erf_dx": lambda x: 2 / math.sqrt(math.pi) * np.exp(-x * x),
    "logical_not": lambda x: x == 0,
}
ABOVE_ZERO = {"log": np.log, "sqrt": np.sqrt, "rsqrt": lambda x: x**-0.5}
BINARY: dict[str, Any] = {
    "abs_max": lambda x, y: np.where(abs(x) > abs(y), x, y),
    "abs_min": lambda x, y: np.where(abs(x) < abs(y), x, y),
    "add": lambda x, y: x + y,
    "divide": lambda x, y: x / y,
    "fmod": np.fmod,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "mod": lambda x, y: x - np.floor(x / y) * y,
    "multiply": lambda x, y: x * y,
    "subtract": lambda x, y: x - y,
    "equal": lambda x, y: x == y,
    "not_equal": lambda x, y: x != y,
    "less": lambda x, y: x < y,
    "less_equal": lambda x, y: x <= y,
    "greater": lambda x, y: x > y,
    "greater_equal": lambda x, y: x >= y,
    "logical_and": lambda x, y: (x != 0) & (y != 0),
    "logical_or": lambda x, y: (x != 0) | (y != 0),
    "logical_xor": lambda x, y: (x != 0) != (y != 0),
}
WHOLE: dict[str, Any] = {
    "bitwise_and": lambda x, y: x & y,
    "bitwise_or": lambda x, y: x | y,
    "bitwise_xor": lambda x, y: x ^ y,
    "left_shift": lambda x, y: x << y,
    "right_shift": lambda x, y: x >> y,
    "invert": lambda x: ~x,
    "copy": lambda x: x,
}


def softmax(x: Any, axes: Any) -> Any:
    weights = np.exp(x - x.max(axes, keepdims=True))
    return weights / weights.sum(axes, keepdims=True)


def rms_norm(x: Any, w: Any, axes: Any, n: int, epsilon: float = 1e-6) -> Any:
    return x / np.sqrt((x * x).sum(axes, keepdims=True) / n + epsilon) * w


PLACES = RNG.integers(0, N, (P, 10)).astype(np.uint32)
COMPOSED: dict[str, tuple[Any, tuple[Any, ...], Any]] = {  # call, arrays, float64 statement
    "softmax": (nl.softmax, (X,), lambda x: softmax(x, 1)),
    "softmax of large numbers": (nl.softmax, (1000 * X,), lambda x: softmax(x, 1)),
    "softmax over two axes": (
        lambda x: nl.softmax(x, axis=(1, 2)),
        (CUBE,),
        lambda x: softmax(x, (1, 2)),
    ),
    "softmax of the last axis": (
        lambda x: nl.softmax(x, axis=2),
        (CUBE,),
        lambda x: softmax(x, 2),
    ),
    "rms_norm": (
        lambda x, w: nl.rms_norm(x, w, axis=1, n=N),
        (X, Y),
        lambda x, w: rms_norm(x, w, 1, N),
    ),
    "rms_norm with a row of weights": (
        lambda x, w: nl.rms_norm(x, w, 1, N, epsilon=0.5),
        (X, ROW),
        lambda x, w: rms_norm(x, w, 1, N, 0.5),
    ),
    "rms_norm with a column, a count and a dtype": (
        lambda x, w: nl.rms_norm(x, w, 1, 7, compute_dtype=nl.float32),
        (1e6 * X, COLUMN),
        lambda x, w: rms_norm(x, w, 1, 7),
    ),
    "var": (lambda x: nl.var(x, axis=1), (X,), lambda x: x.var(1, keepdims=True)),
    "var far from zero keeps its axes": (
        lambda x: nl.var(x, axis=2),
        (CUBE,),
        lambda x: x.var(2, keepdims=True),
    ),
    "var over two axes": (
        lambda x: nl.var(x, axis=[1, 2], keepdims=True),
        (CUBE,),
        lambda x: x.var((1, 2), keepdims=True),
    ),
    "all": (
        lambda x: nl.all(x, axis=1),
        (np.where(np.arange(P)[:, None] % 2, BITS, X).astype(np.float32),),
        lambda x: x.all(1, keepdims=True),
    ),
    "all of large and negative integers": (
        lambda x: nl.all(x, axis=1),
        (np.concatenate([INTS[:4], INTS[4:] * BITS[4:].astype(np.int32)]),),
        lambda x: x.all(1, keepdims=True),
    ),
    "gather_flattened": (
        nl.gather_flattened,
        (X, PLACES),
        lambda x, i: np.take_along_axis(x, i.astype(np.int64), 1),
    ),
    "gather_flattened of a cube by int32": (
        lambda x, i: nl.gather_flattened(x, i, dtype=nl.float32),
        (CUBE, PLACES.astype(np.int32)),
        lambda x, i: np.take_along_axis(x.reshape(P, -1), i.astype(np.int64), 1),
    ),
    "dropout of all": (lambda x: nl.dropout(x, 1.0), (X,), np.zeros_like),
    "dropout of none": (lambda x: nl.dropout(x, rate=0.0, dtype=nl.float32), (X,), lambda x: x),
    "dropout by row": (
        nl.dropout,
        (X, (np.arange(P) % 2).astype(np.float32)[:, None]),
        lambda x, rate: np.where(rate, 0, x),
    ),
    "power": (nl.power, (POSITIVE, Y), lambda x, y: x**y),
    "expand_dims": (lambda x: nl.expand_dims(x, 1), (X,), lambda x: x[:, None]),
    "where a negative integer is not 0": (
        nl.where,
        (-(BITS.astype(np.int32)), X, Y),
        lambda c, x, y: np.where(c != 0, x, y),
    ),
    "transpose": (lambda x: nl.copy(nl.transpose(x)), (X,), lambda x: x.T),
    "prod": (lambda x: nl.prod(x, axis=1), (POSITIVE,), lambda x: x.prod(1, keepdims=True)),
    "zeros_like": (nl.zeros_like, (X,), np.zeros_like),
}
for _name, _of in UNARY.items():
    COMPOSED[f"{_name} alone"] = (getattr(nl, _name), (X,), _of)
for _name, _of in ABOVE_ZERO.items():
    COMPOSED[f"{_name} alone"] = (getattr(nl, _name), (POSITIVE,), _of)
for _name, _of in BINARY.items():
    COMPOSED[f"{_name} of two"] = (getattr(nl, _name), (X, np.where(BITS, X, Y)), _of)


@pytest.mark.parametrize("name", COMPOSED)
def test_a_documented_function_gives_what_float64_gives(name: str) -> None:
    call, arrays, statement = COMPOSED[name]
    target = "trn3" if name.startswith("abs_m") else "trn1"
    found = evaluate(call, *arrays, target=target).astype(np.float64)
    expected = np.asarray(statement(*(array.astype(np.float64) for array in arrays)), np.float64)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", WHOLE)
def test_32_bit_integers_stay_exact(name: str) -> None:
    arrays = (INTS, np.abs(OTHERS) % 31 if "shift" in name else OTHERS)
    arrays = arrays[: len(inspect.signature(WHOLE[name]).parameters)]
    np.testing.assert_array_equal(evaluate(getattr(nl, name), *arrays), WHOLE[name](*arrays))


@pytest.mark.parametrize("axis", [0, (0, 1), 1])
@pytest.mark.parametrize("name", ["softmax", "var", "all", "mean", "sum"])
def test_a_reduction_takes_only_the_last_free_axes(name: str, axis: Any) -> None:
    with pytest.raises(NkiValidationError, match="without axis 0"):
        evaluate(lambda x: getattr(nl, name)(x, axis=axis), CUBE)


RESULTS: dict[str, tuple[Any, Any]] = {
    "softmax": (lambda x: nl.softmax(x, dtype=nl.bfloat16), lambda x: softmax(x, 1)),
    "rms_norm": (
        lambda x: nl.rms_norm(x, x, 1, N, dtype=nl.bfloat16),
        lambda x: rms_norm(x, x, 1, N),
    ),
    "var": (lambda x: nl.var(x, 1, nl.bfloat16), lambda x: x.var(1, keepdims=True)),
    "all": (lambda x: nl.all(x, 1, nl.bfloat16), lambda x: x.all(1, keepdims=True)),
    "dropout": (lambda x: nl.dropout(x, 0.0, dtype=nl.bfloat16), lambda x: x),
    "transpose": (lambda x: nl.transpose(x, dtype=nl.bfloat16), lambda x: x.T),
    "copy": (lambda x: nl.copy(x, dtype=nl.bfloat16), lambda x: x),
    "gather_flattened": (
        lambda x: nl.gather_flattened(x, nl.full((P, N), 3, nl.uint32), dtype=nl.bfloat16),
        lambda x: np.broadcast_to(x[:, 3:4], x.shape),
    ),
}


@pytest.mark.parametrize("name", RESULTS)
def test_the_dtype_asked_for_is_the_results_rounded_once(name: str) -> None:
    call, statement = RESULTS[name]
    found = evaluate(call, X)
    expected = np.asarray(statement(X.astype(np.float64)), np.float64)
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_allclose(found.astype(np.float64), expected, rtol=2**-8, atol=1e-6)


def test_a_transposed_load_takes_a_dtype() -> None:
    def kernel(x: Any) -> Any:
        out = nl.ndarray((N, P), nl.bfloat16, buffer=nl.shared_hbm)
        nl.store(out, nl.load_transpose2d(x, dtype=nl.bfloat16))
        return out

    np.testing.assert_array_equal(jit(kernel)(X), X.T.astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("target", ["trn1", "trn2", "trn3"])
@pytest.mark.parametrize("place", [nl.sbuf, nl.psum, nl.shared_hbm], ids=repr)
def test_random_numbers_are_uniform_and_repeat_with_their_seed(place: Any, target: str) -> None:
    def kernel() -> Any:
        shape = (300, 40) if place == nl.shared_hbm else (128, 40)
        outs = []
        for seed in (42, 42, 43):
            nl.random_seed(nl.full((1, 1), seed, dtype=nl.int32))
            made = nl.rand(shape, nl.float32, buffer=place, name="noise")
            assert (made.buffer, made.name) == (place, "noise")
            out = nl.ndarray(shape, nl.float32, buffer=nl.shared_hbm)
            nisa.dma_copy(out, made if place != nl.psum else nl.copy(made))
            outs.append(out)
        return tuple(outs)

    with session(target=target, strict=True):
        one, two, other = jit(kernel)()
    np.testing.assert_array_equal(one, two)
    assert 0 <= one.min() < 0.001
    assert 0.999 < one.max() < 1
    assert abs(one.mean() - 0.5) < 0.02
    assert len(np.unique(one)) > 0.99 * one.size
    assert (one != other).mean() > 0.99


def test_dropout_zeroes_as_often_as_it_is_told() -> None:
    found = evaluate(lambda x: nl.dropout(x, 0.25), np.ones((128, 200), np.float32))
    assert set(np.unique(found)) == {0, 1}
    assert abs((found == 0).mean() - 0.25) < 0.01


def test_a_constant_lies_in_shared_hbm_and_is_the_same_on_both_cores() -> None:
    def kernel(differ: bool) -> Any:
        core = nl.program_id()
        constant = nl.shared_constant(X + core if differ else X)
        assert constant.buffer is nl.shared_hbm
        out = nl.ndarray((2 * P, N), nl.float32, buffer=nl.shared_hbm)
        nisa.dma_copy(out[core * P : (core + 1) * P], constant)
        nisa.core_barrier(out, (0, 1))
        return out

    with session(target="trn2", strict=True):
        np.testing.assert_array_equal(jit(kernel)[2](False), np.concatenate([X, X]))
        with pytest.raises(NkiValidationError, match="the same data on every core"):
            jit(kernel)[2](True)


def test_a_constant_is_not_written() -> None:
    def kernel() -> None:
        nisa.dma_copy(nl.shared_constant(X), nl.zeros((P, N), nl.float32))

    with session(strict=True), pytest.raises(NkiValidationError) as caught:
        jit(kernel)()
    assert caught.value.rule == "undeclared-write"


def test_the_launch_grid_has_one_axis_which_is_the_default() -> None:
    def kernel() -> Any:
        ids = nl.program_id(), nl.program_id(0), nl.program_id(axis=0)
        return ids, nl.num_programs(), nl.num_programs(0), nl.num_programs(axes=(0,))

    assert jit(kernel)() == ((0, 0, 0), 1, 1, 1)
    assert jit(kernel)[2]() == ((0, 0, 0), 2, 2, 2)
    for call in (lambda: nl.program_id(1), lambda: nl.num_programs(axes=2)):
        with pytest.raises(NkiValidationError, match="one dimension"):
            jit(call)()


def test_no_reorder_is_a_block_of_every_front_end() -> None:
    def kernel(x: Any) -> Any:
        with nl.no_reorder():
            tile = nl.load(x)
            out = nl.ndarray(x.shape, x.dtype, buffer=nl.shared_hbm)
        nisa.dma_copy(out, tile)
        return out

    for version in ("0.6", "0.7"):
        with session(target="trn2", nki=version, strict=True):
            np.testing.assert_array_equal(jit(kernel)(X), X)


def test_buffers_and_dtypes_are_told_apart() -> None:
    regions = [nl.sbuf, nl.psum, nl.hbm, nl.shared_hbm, nl.private_hbm]
    assert [nl.is_sbuf(b) for b in regions] == [True, False, False, False, False]
    assert [nl.is_psum(b) for b in regions] == [False, True, False, False, False]
    assert [nl.is_hbm(b) for b in regions] == [False, False, True, True, True]
    assert [nl.is_on_chip(b) for b in regions] == [True, True, False, False, False]
    with pytest.raises(NkiValidationError, match=r"is_sbuf\(buffer\).*'sbuf'"):
        nl.is_sbuf("sbuf")
    for name in DOCUMENTED["dtypes"].split()[1:]:
        assert isinstance(getattr(nl, name), nl.DType), name
    assert not isinstance("float32", nl.DType)


def test_a_tensor_is_printed_with_its_prefix(capsys: pytest.CaptureFixture[str]) -> None:
    jit(lambda: nl.device_print("seen", nl.full((1, 2), 5, nl.int32)))()
    assert capsys.readouterr().out == "seen [[5 5]]\n"


def test_ranges_are_those_of_python() -> None:
    for kind in (nl.range, nl.affine_range, nl.sequential_range, nl.static_range):
        assert list(kind(2, 9, 3)) == [2, 5, 8]


@pytest.mark.parametrize("name", DOCUMENTED["operator constants"].split())
def test_an_operator_constant_is_given_not_called(name: str) -> None:
    with pytest.raises(NkiValidationError, match=rf"op=nl\.{name}.*a call") as caught:
        evaluate(lambda x: getattr(nl, name)(x), X)
    assert caught.value.rule == "signature"


def test_operator_constants_do_their_work_in_an_instruction() -> None:
    def kernel(x: Any) -> Any:
        tile = nl.load(x)
        mean, sloped = nl.zeros((1, N), x.dtype), nl.empty_like(tile)
        nisa.tensor_partition_reduce(mean, nl.average, tile)
        nisa.activate2(
            sloped, nl.prelu, tile, imm0=2.0, imm1=0.0, op0=nl.multiply, op1=nl.bypass,
            relu_param=0.25,
        )  # fmt: skip
        outs = []
        for made in (mean, sloped):
            outs.append(nl.ndarray(made.shape, x.dtype, buffer=nl.shared_hbm))
            nisa.dma_copy(outs[-1], made)
        return tuple(outs)

    with session(target="trn3", strict=True):
        mean, sloped = jit(kernel)(X)
    wide = X.astype(np.float64)
    np.testing.assert_allclose(mean, wide.mean(0, keepdims=True), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sloped, np.where(wide > 0, 2 * wide, 0.5 * wide), rtol=1e-6)


ELSEWHERE = {  # in test_language, _grids, _loops, _tensor and _install; others above
    *("ndarray", "full", "shared_identity_matrix", "NkiTensor", "store", "empty_like", "ds"),
    *("device_print", "program_ndim", "NKIObject", "tile_size", "load_transpose2d"),
    *("shared_constant", "rand", "random_seed", "no_reorder", "program_id", "num_programs"),
    *(DOCUMENTED["buffers"] + " " + DOCUMENTED["operator constants"]).split(),
    *DOCUMENTED["dtypes"].split(),
    *(DOCUMENTED["iterators"] + " " + DOCUMENTED["grids"]).split(),
}


def test_no_documented_name_is_missing_or_untested() -> None:
    missing = {name for name in NAMES if not hasattr(nl, name)}
    assert missing == set()
    tested = {name.split()[0] for name in (*COMPOSED, *WHOLE, *WRAPPERS)}
    tested |= {"load", "ones", "zeros", "broadcast_to"}  # inside those
    assert NAMES - ELSEWHERE - tested == set()
    assert set(nl.__all__) >= NAMES - set(nl.FUNCTIONS)
