"""What goes into a kernel and comes out: arrays inside objects, and tensors of torch."""

from dataclasses import FrozenInstanceError, dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from nki_kernels.simulator import NkiValidationError, jit, session
from nki_kernels.simulator import isa as nisa
from nki_kernels.simulator import language as nl
from nki_kernels.simulator.nki_typing import mutable_tensor

X = np.random.default_rng(5).standard_normal((4, 6)).astype(np.float32)


def doubled(x: Any) -> Any:
    """`2 x` in a new output."""
    tile, out = nl.load(x), nl.ndarray(x.shape, x.dtype, buffer=nl.shared_hbm)
    nisa.tensor_scalar(tile, tile, op0=nl.multiply, operand0=2.0)
    nisa.dma_copy(out, tile)
    return out


@dataclass(frozen=True)
class Weights:
    gate: Any
    scale: float = 2.0


@dataclass(slots=True)
class Slotted:
    inner: Any


class Config(nl.NKIObject):
    weights = None
    width = 6


@pytest.mark.parametrize(
    ("argument", "get"),
    [
        (Weights(X), lambda a: a.gate),
        (Slotted([X]), lambda a: a.inner[0]),
        (Config(weights=X), lambda a: a.weights),
        ((Config(weights={"a": Weights(X)}),), lambda a: a[0].weights["a"].gate),
    ],
    ids=["frozen dataclass", "slots", "NKIObject", "nested"],
)
def test_an_array_in_an_object_is_a_tensor_in_the_kernel(argument: Any, get: Any) -> None:
    found = jit(lambda a: doubled(get(a)))(argument)
    np.testing.assert_array_equal(found, X.astype(np.float64) * 2)
    assert get(argument) is X


def test_an_object_that_a_kernel_returns_holds_arrays() -> None:
    def kernel(w: Weights) -> Any:
        return Weights(doubled(w.gate), w.scale + 1), Config(weights=doubled(w.gate), width=3)

    weights, config = jit(kernel)(Weights(X))
    assert (type(weights), weights.scale, type(config), config.width) == (Weights, 3, Config, 3)
    for found in (weights.gate, config.weights):
        assert type(found) is np.ndarray
        np.testing.assert_array_equal(found, X.astype(np.float64) * 2)
    with pytest.raises(FrozenInstanceError):
        weights.gate = X


def test_an_object_without_arrays_is_handed_on_as_it_is() -> None:
    config = Config(width=4)
    assert jit(lambda c: (c is config, c))(config) == (True, config)


def test_a_field_of_an_object_is_named_and_may_be_declared_mutable() -> None:
    @dataclass
    class Cache:
        keys: mutable_tensor
        values: Any

    def kernel(cache: Any, to: str) -> None:
        nisa.dma_copy(getattr(cache, to), nl.full((4, 6), 7.0, nl.float32))

    cache = Cache(X.copy(), X.copy())
    with session(target="trn2", strict=True):
        jit(kernel)(cache, "keys")
        with pytest.raises(NkiValidationError, match=r"'cache\.values'") as caught:
            jit(kernel)(cache, "values")
    assert caught.value.rule == "undeclared-write"
    np.testing.assert_array_equal(cache.keys, np.full((4, 6), 7.0))
    np.testing.assert_array_equal(cache.values, X)
    with pytest.raises(NkiValidationError, match=r"cache\.values.*float64"):
        jit(kernel)(Cache(X, X.astype(np.float64)), "keys")


TORCH = ["float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int32", "uint8", "bool"]


@pytest.mark.parametrize("name", TORCH)
def test_a_torch_tensor_goes_in_and_comes_out_bit_for_bit(name: str) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.tensor([[0.0, 1.0, -1.5, 3.0], [2.0, 0.25, 5.0, 1.0]]).abs()
    tensor = tensor.to(getattr(torch, name))

    def kernel(x: Any) -> Any:
        out = nl.ndarray(x.shape, x.dtype, buffer=nl.shared_hbm)
        nisa.dma_copy(out, x)
        return {"out": out, "dtype": x.dtype}

    found = jit(kernel)(tensor)
    assert found["dtype"] == getattr(nl, "bool_" if name == "bool" else name)
    assert (found["out"].dtype, found["out"].shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(found["out"].view(torch.uint8), tensor.view(torch.uint8))
    assert found["out"].data_ptr() != tensor.data_ptr()


def test_arithmetic_on_a_torch_bfloat16_is_rounded_once() -> None:
    torch = pytest.importorskip("torch")
    x = torch.tensor(X).to(torch.bfloat16).requires_grad_()

    def kernel(x: Any, y: Any) -> Any:
        tile = nl.add(nl.load(x), nl.load(y))
        out = nl.ndarray(x.shape, x.dtype, buffer=nl.shared_hbm)
        nl.store(out, tile)
        return out

    found = jit(kernel)(x, x.detach() * 3)
    wide = X.astype(ml_dtypes.bfloat16).astype(np.float64)
    triple = (3 * wide).astype(ml_dtypes.bfloat16).astype(np.float64)
    assert found.dtype == torch.bfloat16
    expected = (wide + triple).astype(ml_dtypes.bfloat16).astype(np.float64)
    np.testing.assert_array_equal(found.double().numpy(), expected)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_a_torch_tensor_is_changed_in_place_also_where_it_is_a_view(name: str) -> None:
    torch = pytest.importorskip("torch")
    whole = torch.arange(24.0).reshape(4, 6).to(getattr(torch, name))
    want = whole.clone()
    want[:, ::2] = 7

    def kernel(x: mutable_tensor) -> None:
        nisa.dma_copy(x, nl.full((4, 3), 7.0, x.dtype))

    with session(target="trn2", strict=True):
        jit(kernel)(whole[:, ::2])
        assert torch.equal(whole, want)
        jit(kernel)(contiguous := torch.zeros(4, 3, dtype=whole.dtype))
    assert torch.equal(contiguous, torch.full((4, 3), 7.0, dtype=whole.dtype))


def test_what_torch_or_the_simulator_cannot_hold_is_refused() -> None:
    torch = pytest.importorskip("torch")

    def cast(x: Any) -> Any:
        tile = nl.load(x, dtype=nl.float8_e4m3)
        out = nl.ndarray(x.shape, nl.float8_e4m3, buffer=nl.shared_hbm)
        nisa.dma_copy(out, tile)
        return out

    assert jit(cast)(X).dtype == ml_dtypes.float8_e4m3
    for tensor, rule, message in [
        (torch.zeros(2, 2), "dtype", "a dtype that torch has"),
        (torch.zeros(2, 2, dtype=torch.complex64), "argument-dtype", "torch.complex64"),
        (torch.zeros(2, 2, device="meta"), "buffer", r"tensor.cpu\(\), got meta"),
    ]:
        with pytest.raises(NkiValidationError, match=message) as caught:
            jit(cast)(tensor)
        assert caught.value.rule == rule
