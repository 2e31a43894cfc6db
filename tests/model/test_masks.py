"""Masks and caches: what a mask says must agree with what the state has counted."""

import pytest
import torch

from bmojo_neuron import BMojoCache
from tests.model.batches import MIXED, MODELS, uncached
from tests.model.conftest import random_ids
from tests.model.states import CLOSE

IDS = random_ids(2, 12)


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def mask(*rows: str) -> torch.Tensor:
    return torch.tensor([[int(c) for c in row] for row in rows])


def read(model, ids, given=None) -> BMojoCache:
    return model(ids, attention_mask=given, use_cache=True).past_key_values


def test_a_mask_cannot_hide_what_the_cache_holds(model):
    cache = read(model, IDS[:, :8])
    hiding = mask("001111111111", "111111111111")
    with pytest.raises(
        ValueError, match=r"expected \[8, 8\] valid tokens .* got \[6, 8\] \(rows \[0\]\)"
    ):
        model(IDS[:, 8:], attention_mask=hiding, past_key_values=cache)
    assert cache.get_seq_length() == 8  # refused before anything happened
    out = model(IDS[:, 8:], attention_mask=torch.ones_like(hiding), past_key_values=cache)
    torch.testing.assert_close(out.logits, uncached(model, IDS)[:, 8:], **CLOSE)


def test_a_mask_cannot_show_what_the_cache_left_out():
    model = MODELS[MIXED]
    cache = read(model, IDS[:, :4], mask("0011", "1111"))
    with pytest.raises(ValueError, match=r"expected \[2, 4\] valid tokens .* got \[4, 4\]"):
        model(IDS[:, 4:], attention_mask=torch.ones(2, 12), past_key_values=cache)


@pytest.mark.parametrize("width", [8, 3, 11, 13])
def test_a_mask_of_another_width_is_refused(width):
    """Above all that of the call before: it would drop the new tokens."""
    model = MODELS[MIXED]
    cache = read(model, IDS[:, :8])
    with pytest.raises(ValueError, match=rf"expected \(2, 4\) or \(2, 12\).*got \(2, {width}\)"):
        model(IDS[:, 8:], attention_mask=torch.ones(2, width), past_key_values=cache)


def test_a_mask_longer_than_the_tokens_is_refused_without_a_cache():
    with pytest.raises(ValueError, match=r"attention_mask: expected \(2, 12\).*got \(2, 20\)"):
        MODELS[MIXED](IDS, attention_mask=torch.ones(2, 20))


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize(
    "segments",
    [torch.tensor([[1] * 6 + [2] * 6] * 2), torch.full((2, 12), -1e9), torch.full((2, 12), 0.5)],
    ids=["segments", "additive", "fractions"],
)
def test_a_mask_that_means_something_else_is_refused(segments, use_cache):
    with pytest.raises(ValueError, match=r"attention_mask: expected 0 .* and 1 .*other values"):
        MODELS[MIXED](IDS, attention_mask=segments, use_cache=use_cache)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32])
def test_zeros_and_ones_of_any_dtype_are_a_mask(dtype):
    model, given = MODELS[MIXED], mask("000011111111", "111111111111")
    expected = uncached(model, IDS, attention_mask=given)
    assert torch.equal(uncached(model, IDS, attention_mask=given.to(dtype)), expected)


@pytest.mark.parametrize("name", ["seq_idx", "cu_seq_lens_q"])
def test_packed_sequences_are_refused(name):
    model = MODELS[MIXED]
    with pytest.raises(ValueError, match=f"{name}: packed sequences are not supported"):
        model(IDS, **{name: torch.tensor([0, 6, 12])})
    restarting = torch.arange(6).repeat(2).expand(2, -1)
    with pytest.raises(ValueError, match=r"position_ids: .*packed sequences become rows"):
        model(IDS, position_ids=restarting)


def test_both_names_of_a_cache_are_one_thing(model):
    expected = uncached(model, IDS)[:, 8:]
    for name in ("cache", "past_key_values"):
        out = model(IDS[:, 8:], **{name: read(model, IDS[:, :8])})
        torch.testing.assert_close(out.logits, expected, **CLOSE)
    cache = read(model, IDS[:, :8])
    with pytest.raises(ValueError, match="cache, past_key_values: expected one of them"):
        model(IDS[:, 8:], cache=cache, past_key_values=cache)


def test_a_cache_that_holds_tokens_is_not_empty():
    model = MODELS[MIXED]
    assert not BMojoCache()
    assert len(read(model, IDS)) == model.config.num_hidden_layers
