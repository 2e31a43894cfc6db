"""Attention and the gated delta rule, source unchanged, against numpy in float64."""

from typing import Any

import numpy as np
import pytest

from nki_kernels.simulator import Session
from tests.nki.kernels.attention import attention_constant_maximum, attention_prefill
from tests.nki.kernels.delta_rule import gated_delta_rule
from tests.nki.numerics import BOTH, FP32, check, normal, wide


def attention(q: Any, k: Any, v: Any, keep: Any, sink: Any = None) -> Any:
    """q [H, L, d], k, v [G, M, d], keep [L, M], sink [H]: a logit more without a value."""
    q, k, v = wide(q, k, v)
    k, v = (np.repeat(x, len(q) // len(k), axis=0) for x in (k, v))
    logits = np.where(keep, q @ k.swapaxes(1, 2) / np.sqrt(q.shape[2]), -np.inf)
    if sink is not None:
        column = np.broadcast_to(sink.astype(np.float64)[:, None, None], (*logits.shape[:2], 1))
        logits = np.concatenate([logits, column], axis=2)
    weights = np.exp(logits - logits.max(2, keepdims=True))
    weights /= weights.sum(2, keepdims=True)
    return weights[:, :, : v.shape[1]] @ v


def visible(L: int, causal: bool, window: int, before: int = 0) -> Any:
    """[L, before + L]: which keys a query sees; `before` of them stand in front of the first."""
    ahead = np.arange(before + L)[None] - before - np.arange(L)[:, None]
    return ((ahead <= 0) | (not causal)) & ((ahead > -window) | (window == 0))


@BOTH
@pytest.mark.parametrize("with_sink", [False, True])
@pytest.mark.parametrize(
    ("causal", "window"), [(True, 0), (True, 100), (False, 0)], ids=["causal", "window", "full"]
)
@pytest.mark.parametrize(("L", "d"), [(256, 64), (600, 40)])
def test_attention_prefill(
    strict: Session, L: int, d: int, causal: bool, window: int, with_sink: bool, dtype: Any
) -> None:
    q = normal(2, L, d, dtype=dtype, scale=1.5)
    k, v = (normal(1, L, d, dtype=dtype, scale=1.5, seed=seed) for seed in (1, 2))
    sink = normal(2, 1, scale=5) if with_sink else None
    found = attention_prefill(q, k, v, causal=causal, window=window, sink=sink)
    keep = visible(L, causal, window)
    check(found, attention(q, k, v, keep, sink[:, 0] if with_sink else None), dtype, roundings=2)


@BOTH
@pytest.mark.parametrize("window", [0, 70])
@pytest.mark.parametrize("used", [0, 1, 600])
def test_attention_with_a_cache_of_a_run_time_length(
    strict: Session, used: int, window: int, dtype: Any
) -> None:
    L, M, d = 150, 640, 32
    q = normal(4, L, d, dtype=dtype)
    k, v = (normal(2, L, d, dtype=dtype, seed=seed) for seed in (1, 2))
    k_cache, v_cache = (normal(2, M, d, dtype=dtype, scale=9, seed=seed) for seed in (3, 4))
    length = np.array([[used]], np.int32)
    found = attention_prefill[2](
        q, k, v, window=window, k_cache=k_cache, v_cache=v_cache, used=length
    )
    keys, values = (
        np.concatenate([old[:, :used], new], axis=1) for old, new in ((k_cache, k), (v_cache, v))
    )
    expected = attention(q, keys, values, visible(L, True, window, used))
    check(found, expected, dtype, roundings=2)


@BOTH
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("L", "d"), [(128, 64), (700, 48)])
def test_attention_with_a_constant_maximum(
    strict: Session, L: int, d: int, causal: bool, dtype: Any
) -> None:
    q = normal(2, L, d, dtype=dtype)
    k, v = (normal(1, L, d, dtype=dtype, seed=seed) for seed in (1, 2))
    norms = [float(np.linalg.norm(x.astype(np.float64), axis=2).max()) for x in (q, k)]
    bound = norms[0] * norms[1] / np.sqrt(d)
    found = attention_constant_maximum(q, k, v, maximum=bound, causal=causal)
    check(found, attention(q, k, v, visible(L, causal, 0)), dtype, roundings=2)


def delta_rule(q: Any, k: Any, v: Any, g: Any, beta: Any, state: Any) -> Any:
    q, k, v, g, beta, state = wide(q, k, v, g, beta, state)
    q, k = (x / np.sqrt((x**2).sum(2, keepdims=True) + 1e-6) for x in (q, k))
    out = np.zeros_like(v)
    for t in range(len(q)):
        state = np.exp(g[t])[:, None, None] * state
        u = beta[t][:, None] * (v[t] - np.einsum("hkv,hk->hv", state, k[t]))
        state = state + k[t][:, :, None] * u[:, None]
        out[t] = np.einsum("hkv,hk->hv", state, q[t]) * q.shape[2] ** -0.5
    return out, state


@BOTH
@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("decay", [0.05, 3.0], ids=["slow", "fast"])
@pytest.mark.parametrize(("L", "K", "V"), [(128, 64, 64), (150, 32, 48), (3, 128, 16)])
def test_gated_delta_rule(
    strict: Session, L: int, K: int, V: int, decay: float, cores: int, dtype: Any
) -> None:
    H, rng = 2, np.random.default_rng(5)
    q, v = normal(L, H, K, dtype=dtype), normal(L, H, V, dtype=dtype, seed=1)
    k = (normal(L, H, K, seed=2) + 0.5).astype(dtype)  # not orthogonal: the inverse matters
    g = (-decay * rng.uniform(0, 1, (L, H))).astype(np.float32)
    beta = rng.uniform(0.1, 1, (L, H)).astype(dtype)
    initial = normal(H, K, V)
    found, final = gated_delta_rule[cores](q, k, v, g, beta, initial)
    expected, last = delta_rule(q, k, v, g, beta, initial)
    # a chunk sums up to 64 log decays in float32: an ulp of 96 is 32 roundings of the scale
    exponent = 64 if decay > 1 else 1
    check(found, expected, dtype, roundings=exponent if dtype == FP32 else 1)
    check(final, last, FP32, roundings=exponent)
