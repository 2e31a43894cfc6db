"""What forward takes and refuses: padding, caches, positions, labels, logits to keep."""

import copy

import pytest
import torch
from transformers import DynamicCache

from bmojo_neuron import BMojoCache
from tests.model.batches import LENGTHS, MIXED, MODELS, WIDTH, pad_pattern, uncached
from tests.model.conftest import random_ids
from tests.model.states import CLOSE


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("pattern", ["right", "left", "holes"])
def test_a_padded_row_gets_its_solo_logits(kind, pattern, use_cache):
    model, mask = MODELS[kind], pad_pattern(pattern)
    ids = random_ids(len(LENGTHS), WIDTH, seed=5)
    logits = model(ids, attention_mask=mask, use_cache=use_cache).logits
    assert logits.shape == (len(LENGTHS), WIDTH, model.config.vocab_size)
    for row in range(len(LENGTHS)):
        valid = mask[row].bool()
        expected = uncached(model, ids[row : row + 1, valid])[0]
        torch.testing.assert_close(logits[row, valid], expected, **CLOSE)


@pytest.mark.parametrize("full_mask", [False, True], ids=["mask of the piece", "mask of all"])
def test_continuing_in_pieces_equals_one_shot(kind, full_mask):
    model, mask = MODELS[kind], pad_pattern("left")
    ids = random_ids(len(LENGTHS), WIDTH, seed=6)
    expected = uncached(model, ids, attention_mask=mask)
    cache, pieces = None, []
    for start, end in ((0, 3), (3, 4), (4, 21), (21, 30)):
        out = model(
            ids[:, start:end],
            attention_mask=mask[:, 0 if full_mask else start : end],
            past_key_values=cache,
            use_cache=True,
        )
        cache = out.past_key_values
        assert isinstance(cache, BMojoCache)
        assert cache.get_seq_length() == end
        pieces.append(out.logits)
    valid = mask.bool()
    torch.testing.assert_close(torch.cat(pieces, dim=1)[valid], expected[valid], **CLOSE)


def test_a_cache_made_from_a_state_continues_it(model):
    ids = random_ids(1, 25)
    _, state = model.feed(ids[:, :20], model.new_state(1))
    out = model(ids[:, 20:], past_key_values=BMojoCache(state))
    torch.testing.assert_close(out.logits, uncached(model, ids)[:, 20:], **CLOSE)
    assert out.past_key_values.get_seq_length() == 25


def test_a_copied_cache_is_a_branch_of_its_own(model):
    ids = random_ids(1, 20)
    cache = model(ids).past_key_values
    branch = copy.deepcopy(cache)
    token = torch.tensor([[9]])
    first = model(token, past_key_values=cache).logits
    assert branch.get_seq_length() == 20
    torch.testing.assert_close(model(token, past_key_values=branch).logits, first, **CLOSE)


def test_a_cache_made_with_gradients_can_be_copied(model):
    """The copy shares no memory, and gradients flow through it as through the original."""
    ids = random_ids(1, 20)
    with torch.enable_grad():
        cache = model(ids).past_key_values
        branch = copy.deepcopy(cache)
        token = torch.tensor([[9]])
        first = model(token, past_key_values=cache).logits
        second = model(token, past_key_values=branch).logits
        gradients = [
            torch.autograd.grad(logits.sum(), model.model.embed_tokens.weight, retain_graph=True)[0]
            for logits in (first, second)
        ]
    torch.testing.assert_close(second, first, **CLOSE)
    torch.testing.assert_close(*gradients, **CLOSE)
    pointers = {part.data_ptr() for part in cache.state.values()}
    assert pointers.isdisjoint(part.data_ptr() for part in branch.state.values())


def test_no_cache_comes_back_unless_wanted(model):
    ids = random_ids(1, 5)
    assert model(ids, use_cache=False).past_key_values is None
    assert model(ids, labels=ids).past_key_values is None
    assert model(ids).past_key_values is not None


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("keep", [0, 1, 4, torch.tensor([2, 11, 5])], ids=str)
def test_logits_to_keep(keep, use_cache):
    model, ids = MODELS[MIXED], random_ids(2, 20)
    everything = uncached(model, ids)
    kept = everything[:, keep] if isinstance(keep, torch.Tensor) else everything[:, -keep:]
    logits = model(ids, use_cache=use_cache, logits_to_keep=keep).logits
    torch.testing.assert_close(logits, kept, **CLOSE)


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("keep", [0, 1, 3])
@pytest.mark.parametrize("pattern", ["right", "left", "holes"])
def test_logits_at_padding_are_those_of_the_valid_token_before(pattern, keep, use_cache):
    """So the last column, from which `generate` goes on, is the row's last valid token's."""
    model, mask = MODELS[MIXED], pad_pattern(pattern)
    ids = random_ids(len(LENGTHS), WIDTH, seed=5)
    logits = model(ids, attention_mask=mask, use_cache=use_cache, logits_to_keep=keep).logits
    for row in range(len(LENGTHS)):
        solo = uncached(model, ids[row : row + 1, mask[row].bool()])[0]
        before = mask[row].cumsum(0) - 1
        began = before[-keep:] >= 0
        torch.testing.assert_close(logits[row, began], solo[before[-keep:][began]], **CLOSE)


# What is refused


def test_a_foreign_cache_is_refused():
    with pytest.raises(ValueError, match=r"past_key_values: expected a BMojoCache.*DynamicCache"):
        MODELS[MIXED](random_ids(1, 11), past_key_values=DynamicCache())


@pytest.mark.parametrize(
    ("ids", "kwargs", "message"),
    [
        (torch.zeros(5, dtype=torch.long), {}, r"input_ids: expected \(batch >= 1, tokens"),
        (torch.zeros(1, 0, dtype=torch.long), {}, r"input_ids: .*got shape \(1, 0\)"),
        (random_ids(2, 5), {"attention_mask": torch.ones(2, 4)}, r"attention_mask: .*got \(2, 4\)"),
        (random_ids(2, 5), {"attention_mask": torch.ones(1, 5)}, r"attention_mask: .*got \(1, 5\)"),
        (random_ids(2, 5), {"attention_mask": torch.ones(2, 1, 5, 5)}, "attention_mask: "),
        (random_ids(2, 5), {"labels": random_ids(2, 4)}, r"labels: .*\(2, 5\).*\(2, 4\)"),
        (random_ids(2, 5), {"shift_labels": random_ids(1, 10)}, r"shift_labels: .*\(1, 10\)"),
        (random_ids(2, 5), {"labels": random_ids(2, 5), "logits_to_keep": 1}, "logits_to_keep: "),
        (random_ids(2, 5), {"output_attentions": True}, "output_attentions"),
        (random_ids(2, 5), {"position_ids": torch.tensor([[0, 1, 0, 1, 2]] * 2)}, "position_ids: "),
        (random_ids(2, 5), {"inputs_embeds": torch.ones(2, 5, 32)}, "inputs_embeds: .*got both"),
        (random_ids(2, 5), {"no_such_argument": 1}, "no_such_argument"),
        (random_ids(2, 5), {"output_hidden_states": [0, -1]}, r"output_hidden_states: .*\[0, -1\]"),
        (random_ids(2, 5), {"cache_position": torch.arange(1, 6)}, "cache_position: .*from 0 on"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_bad_input_is_refused_by_name(ids, kwargs, message):
    with pytest.raises(ValueError, match=message):
        MODELS[MIXED](ids, **kwargs)


def test_positions_that_say_what_the_mask_says_are_accepted():
    model, mask = MODELS[MIXED], pad_pattern("left")
    ids = random_ids(len(LENGTHS), WIDTH)
    positions = mask.cumsum(1) - 1
    expected = model(ids, attention_mask=mask, use_cache=False).logits
    given = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    assert torch.equal(given, expected)
    cache = model(ids[:, :28], attention_mask=mask[:, :28]).past_key_values
    out = model(ids[:, 28:], past_key_values=cache, position_ids=positions[:, 28:])
    torch.testing.assert_close(out.logits, expected[:, 28:], **CLOSE)
    with pytest.raises(ValueError, match="position_ids: "):
        model(ids[:, :1], past_key_values=cache, position_ids=positions[:, 28:29])


def test_a_cache_of_another_batch_size_is_refused():
    model = MODELS[MIXED]
    cache = model(random_ids(3, 5)).past_key_values
    with pytest.raises(ValueError, match=r"ids: expected \(3, T >= 1\).*\(2, 1\)"):
        model(random_ids(2, 1), past_key_values=cache)


@pytest.mark.parametrize(
    ("ids", "lengths", "message"),
    [
        (random_ids(3, 4), None, r"ids: expected \(2, T >= 1\).*\(3, 4\)"),
        (random_ids(2, 0), None, r"ids: expected \(2, T >= 1\).*\(2, 0\)"),
        (random_ids(2, 4), [4], "lengths: expected 2 values between 0 and 4"),
        (random_ids(2, 4), [4, 5], r"lengths: .*\[4, 5\]"),
        (random_ids(2, 4), [-1, 4], r"lengths: .*\[-1, 4\]"),
        (random_ids(2, 4)[0], None, "ids: expected"),
    ],
)
def test_feed_refuses_shapes_that_do_not_fit(ids, lengths, message):
    model = MODELS[MIXED]
    with pytest.raises(ValueError, match=message):
        model.feed(ids, model.new_state(2), lengths=lengths)


@pytest.mark.parametrize("kind", [MIXED, "hybrid"])
def test_feed_refuses_more_tokens_than_its_counter_can_count(kind):
    model = MODELS[kind]
    state = model.new_state(2)
    state["n"][1] += 2**31 - 4
    with pytest.raises(
        ValueError, match=r"ids: .*at most 2147483647 .*got 2147483648; .*new state"
    ):
        model.feed(random_ids(2, 4), state)
    if kind == MIXED:  # full attention has no room for so many keys
        logits, state = model.feed(random_ids(2, 4), state, lengths=[4, 3])
        assert torch.isfinite(logits).all()
        assert state["n"].tolist() == [4, 2**31 - 1]


def test_the_columns_of_a_cache_may_be_named():
    model, ids = MODELS[MIXED], random_ids(1, 9)
    cache = model(ids[:, :6], cache_position=torch.arange(6)).past_key_values
    out = model(ids[:, 6:], past_key_values=cache, cache_position=torch.arange(6, 9))
    torch.testing.assert_close(out.logits, uncached(model, ids)[:, 6:], **CLOSE)
