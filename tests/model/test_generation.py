"""transformers' own generation loop: greedy, sampling, beams, padded batches, continued caches."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from bmojo_neuron import BMojoCache, BMojoForCausalLM
from bmojo_neuron.huggingface.cache import CACHE_FIELD
from bmojo_neuron.model import default_model_path
from bmojo_neuron.state import state_bytes
from tests.model.batches import LENGTHS, MIXED, MODELS, WIDTH, pad_pattern, uncached
from tests.model.conftest import random_ids, tiny_model
from tests.model.states import CLOSE

GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 2}


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def greedy_by_hand(model: BMojoForCausalLM, ids: torch.Tensor, count: int) -> torch.Tensor:
    for _ in range(count):
        ids = torch.cat([ids, uncached(model, ids)[:, -1:].argmax(-1)], dim=1)
    return ids


def test_greedy_generation_equals_full_forwards(kind):
    """30 tokens, over three windows and selection boundaries, from a prompt across one."""
    model, ids = MODELS[kind], random_ids(1, 11)
    expected = greedy_by_hand(model, ids, 30)
    assert torch.equal(model.generate(ids, max_new_tokens=30, **GREEDY), expected)


@pytest.mark.parametrize("kind", [MIXED, "hybrid"])
def test_generation_without_a_cache(kind):
    model, ids = MODELS[kind], random_ids(2, 11)
    out = model.generate(ids, max_new_tokens=12, use_cache=False, **GREEDY)
    assert torch.equal(out, greedy_by_hand(model, ids, 12))


def assert_rows_equal_solo(model: BMojoForCausalLM, pattern: str, **options) -> None:
    mask, ids = pad_pattern(pattern), random_ids(len(LENGTHS), WIDTH, seed=8)
    out = model.generate(ids, attention_mask=mask, max_new_tokens=14, **GREEDY, **options)
    for row in range(len(LENGTHS)):
        alone = ids[row : row + 1, mask[row].bool()]
        solo = model.generate(alone, max_new_tokens=14, **GREEDY)
        assert torch.equal(out[row, WIDTH:], solo[0, alone.shape[1] :])


def test_left_padded_generation_equals_solo(kind):
    assert_rows_equal_solo(MODELS[kind], "left")


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"logits_to_keep": 0}], ids=str)
@pytest.mark.parametrize("pattern", ["right", "holes"])
@pytest.mark.parametrize("kind", [MIXED, "hybrid"])
def test_generation_from_padding_anywhere_equals_solo(kind, pattern, options):
    """The last column of a row may be padding: the row goes on from its last valid token."""
    assert_rows_equal_solo(MODELS[kind], pattern, **options)


def test_given_positions_are_checked():
    model, mask = MODELS[MIXED], pad_pattern("left")
    ids = random_ids(len(LENGTHS), WIDTH, seed=8)
    options = {"attention_mask": mask, "max_new_tokens": 3, **GREEDY}
    out = model.generate(ids, position_ids=mask.cumsum(1) - 1, **options)
    assert torch.equal(out, model.generate(ids, **options))
    with pytest.raises(ValueError, match="position_ids: expected the count of valid tokens"):
        model.generate(ids, position_ids=mask.cumsum(1), **options)


@pytest.mark.parametrize("name", sorted({"cache", CACHE_FIELD}))
def test_generation_continues_a_cache(model, name):
    ids = random_ids(1, 40)
    expected = model.generate(ids, max_new_tokens=10, **GREEDY)
    cache = model(ids[:, :23]).past_key_values
    out = model.generate(ids, **{name: cache}, max_new_tokens=10, **GREEDY)
    assert torch.equal(out, expected)
    assert cache.get_seq_length() == 49  # the last token was not fed


def test_a_generated_state_does_not_grow():
    model = MODELS[MIXED]
    options = {"return_dict_in_generate": True, **GREEDY}
    short = model.generate(random_ids(1, 5), max_new_tokens=2, **options).past_key_values
    long = model.generate(random_ids(1, 90), max_new_tokens=30, **options).past_key_values
    assert state_bytes(short.state) == state_bytes(long.state)


def test_sampling_is_reproducible():
    model, ids = MODELS[MIXED], random_ids(2, 9)

    def sample(seed: int) -> torch.Tensor:
        set_seed(seed)
        return model.generate(ids, max_new_tokens=20, do_sample=True, eos_token_id=None)

    assert torch.equal(sample(3), sample(3))
    assert not torch.equal(sample(3), sample(4))


def test_several_return_sequences():
    model, ids = MODELS[MIXED], random_ids(2, 9)
    set_seed(0)
    out = model.generate(
        ids, max_new_tokens=12, do_sample=True, num_return_sequences=3, eos_token_id=None
    )
    assert out.shape == (6, 21)
    assert torch.equal(out[:, :9], ids.repeat_interleave(3, dim=0))
    assert len({tuple(row.tolist()) for row in out[:3]}) > 1


@pytest.mark.parametrize("kind", [MIXED, "hybrid", "sliding_attention"])
def test_beam_search_moves_the_state_with_its_beams(kind):
    model, ids = MODELS[kind], random_ids(2, 11)
    options = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 15, **GREEDY}
    out = model.generate(ids, **options)
    assert torch.equal(out, model.generate(ids, use_cache=False, **options))
    assert len({tuple(row.tolist()) for row in out[:3]}) == 3


def test_generation_stops_at_the_end_token():
    model, ids = MODELS[MIXED], random_ids(1, 11)
    third = int(greedy_by_hand(model, ids, 3)[0, -1])
    out = model.generate(ids, max_new_tokens=20, **(GREEDY | {"eos_token_id": third}))
    assert out[0, -1] == third
    assert out.shape[1] <= 14


# What is refused


def test_assisted_generation_is_refused():
    model, ids = MODELS[MIXED], random_ids(1, 11)
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful"):
        model.generate(ids, assistant_model=tiny_model("mamba2"), max_new_tokens=4, **GREEDY)
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful"):
        model.generate(ids, prompt_lookup_num_tokens=3, max_new_tokens=4, **GREEDY)


def test_a_cache_cannot_be_cropped():
    cache = MODELS[MIXED](random_ids(1, 11)).past_key_values
    assert not cache.is_croppable
    with pytest.raises(ValueError, match=r"crop: .*cannot be rewound.*copy_state"):
        cache.crop(3)


@pytest.mark.parametrize("implementation", ["static", "offloaded", "quantized"])
def test_other_caches_are_refused(implementation):
    model, ids = MODELS[MIXED], random_ids(1, 11)
    with pytest.raises(ValueError, match=f"cache_implementation: .*BMojoCache.*{implementation}"):
        model.generate(ids, cache_implementation=implementation, max_new_tokens=2, **GREEDY)


@pytest.mark.parametrize("how", [{"num_beams": 3}, {"do_sample": True, "num_return_sequences": 3}])
def test_a_cache_of_fewer_rows_than_sequences_is_refused_with_the_way_out(how):
    model, ids = MODELS[MIXED], random_ids(2, 11)
    cache = model(ids[:, :8]).past_key_values
    options = GREEDY | {"cache": cache, "max_new_tokens": 6} | how
    message = (
        r"expected 6 rows \(2 prompts, 3 sequences of each\), got 2; .*batch_repeat_interleave"
    )
    with pytest.raises(ValueError, match=message):
        model.generate(ids, **options)
    cache.batch_repeat_interleave(3)
    if "num_beams" in how:
        expected = model.generate(ids, num_beams=3, max_new_tokens=6, **GREEDY)
        assert torch.equal(model.generate(ids, **options), expected)
    else:
        assert model.generate(ids, **options).shape == (6, 17)


def test_a_row_without_a_token_to_go_on_from_is_refused():
    model, ids = MODELS[MIXED], random_ids(3, 11)
    mask = torch.ones_like(ids)
    mask[1] = 0
    with pytest.raises(ValueError, match=r"attention_mask: .*from 0 on.* rows \[1\]"):
        model.generate(ids, attention_mask=mask, max_new_tokens=2, **GREEDY)
    mask[1, :8] = 1
    cache = model(ids[:, :8]).past_key_values
    with pytest.raises(ValueError, match=r"attention_mask: .*from 8 on.* rows \[1\]"):
        model.generate(ids, attention_mask=mask, cache=cache, max_new_tokens=2, **GREEDY)


def test_prefill_in_chunks_is_refused_where_rows_end_in_padding():
    model, ids = MODELS[MIXED], random_ids(len(LENGTHS), WIDTH)
    options = {"prefill_chunk_size": 7, "max_new_tokens": 4, **GREEDY}
    with pytest.raises(ValueError, match=r"prefill_chunk_size: expected None .* pad on the left"):
        model.generate(ids, attention_mask=pad_pattern("right"), **options)
    assert_rows_equal_solo(model, "left", prefill_chunk_size=7)


@pytest.mark.parametrize("chunked", [{}, {"prefill_chunk_size": 4}], ids=str)
@pytest.mark.parametrize("length", [5, 11])
def test_a_prompt_that_goes_no_further_than_its_cache_is_refused(length, chunked):
    model, ids = MODELS[MIXED], random_ids(1, 11)
    cache = model(ids).past_key_values
    message = rf"input_ids: expected .* more than the 11 .* {CACHE_FIELD} .*got {length}.*mask"
    with pytest.raises(ValueError, match=message):
        model.generate(ids[:, :length], cache=cache, max_new_tokens=2, **GREEDY, **chunked)


def test_new_tokens_alone_continue_a_cache_with_a_mask_of_all():
    model, ids = MODELS[MIXED], random_ids(1, 16)
    expected = model.generate(ids, max_new_tokens=5, **GREEDY)
    cache = model(ids[:, :11]).past_key_values
    out = model.generate(
        ids[:, 11:],
        attention_mask=torch.ones_like(ids),
        cache=cache,
        max_new_tokens=5,
        **GREEDY,
    )
    assert torch.equal(out, expected[:, 11:])


def test_a_cache_that_may_not_be_used_is_refused():
    model, ids = MODELS[MIXED], random_ids(1, 11)
    cache = model(ids[:, :8]).past_key_values
    with pytest.raises(ValueError, match=f"use_cache: expected True with {CACHE_FIELD}"):
        model.generate(ids, cache=cache, use_cache=False, max_new_tokens=2, **GREEDY)


# What generate hands on


def test_the_dynamic_cache_is_our_own():
    model, ids = MODELS[MIXED], random_ids(1, 11)
    expected = model.generate(ids, max_new_tokens=5, **GREEDY)
    got = model.generate(ids, cache_implementation="dynamic", max_new_tokens=5, **GREEDY)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"num_beams": 2}], ids=str)
@pytest.mark.parametrize("pattern", [None, "left"])
def test_generation_from_embeddings_equals_that_from_their_tokens(pattern, options):
    model, ids = MODELS[MIXED], random_ids(len(LENGTHS), WIDTH)
    options = GREEDY | {"max_new_tokens": 12} | options
    if pattern is not None:
        options["attention_mask"] = pad_pattern(pattern)
    expected = model.generate(ids, **options)[:, WIDTH:]
    got = model.generate(inputs_embeds=model.get_input_embeddings()(ids), **options)
    assert torch.equal(got, expected)


def test_a_state_of_inference_mode_is_continued_outside_it(model):
    ids = random_ids(1, 20)
    expected = model.generate(ids, max_new_tokens=10, **GREEDY)
    with torch.inference_mode():
        cache = model(ids[:, :15]).past_key_values
        before = model(ids[:, 15:16], past_key_values=copy.deepcopy(cache)).logits
    state = {name: part.clone() for name, part in cache.state.items()}
    out = model.generate(ids, cache=cache, max_new_tokens=10, **GREEDY)
    assert torch.equal(out, expected)
    with torch.enable_grad():
        logits = model(ids[:, 15:16], past_key_values=BMojoCache(state)).logits
        logits.sum().backward()
    torch.testing.assert_close(logits, before, **CLOSE)
    model.zero_grad()


@pytest.fixture(scope="module")
def embedded():
    path = default_model_path()
    return AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)


def test_stop_strings_end_a_text(embedded):
    model, tokenizer = embedded
    prompt = tokenizer("In the beginning", return_tensors="pt")
    options = {"do_sample": False, "max_new_tokens": 30}
    text = tokenizer.decode(model.generate(**prompt, **options)[0])
    start = len(tokenizer.decode(prompt["input_ids"][0]))
    word = max(text[start:].split(), key=len)
    out = model.generate(**prompt, **options, stop_strings=[word], tokenizer=tokenizer)
    assert tokenizer.decode(out[0]) == text[: text.index(word, start) + len(word)] != text


def test_token_healing_redraws_the_end_of_a_prompt(embedded):
    model, tokenizer = embedded
    ids = tokenizer("And the childr", return_tensors="pt").input_ids
    options = {"do_sample": False, "max_new_tokens": 4, "tokenizer": tokenizer}
    options["attention_mask"] = torch.ones_like(ids)
    healed = model.heal_tokens(ids, tokenizer)
    assert healed.shape == ids.shape
    out = model.generate(ids, token_healing=True, **options)
    assert torch.equal(out, model.generate(healed, **options))
    assert tokenizer.decode(out[0], skip_special_tokens=True).startswith("And the childr")
