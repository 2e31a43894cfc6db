"""A forward that fails midway leaves its cache as it was; what stands at padding counts not."""

import copy

import pytest
import torch

from bmojo_neuron import BMojoConfig, BMojoForCausalLM
from tests.model.batches import LENGTHS, MIXED, MODELS, WIDTH, pad_pattern
from tests.model.conftest import random_ids, tiny_model
from tests.model.states import assert_same


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def fail_in(model: BMojoForCausalLM, layer: int, call: int):
    """Let the `call`-th run of a layer raise; returns the hook."""
    runs = iter(range(10_000))

    def raises(*_):
        if next(runs) == call:
            raise MemoryError

    return model.model.layers[layer].register_forward_pre_hook(raises)


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("seen", [7, 8, 15, 16, 24, 29])
def test_a_call_that_fails_leaves_its_cache_as_it_was(kind, seen, count):
    """On boundaries too, where the oldest token of the window is still to be selected."""
    model, ids = tiny_model(kind), random_ids(2, seen + count)
    for failing in range(2 if count == 1 else 3):
        cache = model(ids[:, :seen]).past_key_values
        twin = copy.deepcopy(cache)
        hook = fail_in(model, 1, failing)
        try:
            model(ids[:, seen:], past_key_values=cache)
        except MemoryError:
            pass
        else:
            continue  # fewer steps than that
        finally:
            hook.remove()
        assert cache.get_seq_length() == seen
        again = model(ids[:, seen:], past_key_values=cache).logits
        assert torch.equal(again, model(ids[:, seen:], past_key_values=twin).logits)
        assert_same(cache.state, twin.state)


@pytest.mark.parametrize("count", [2, 5])
def test_a_call_of_single_steps_that_fails_leaves_its_cache_as_it_was(count):
    model = tiny_model("bmojo", selection_period=1)
    ids = random_ids(1, 20 + count)
    for failing in range(count):
        cache = model(ids[:, :20]).past_key_values
        twin = copy.deepcopy(cache)
        hook = fail_in(model, 1, failing)
        with pytest.raises(MemoryError):
            model(ids[:, 20:], past_key_values=cache)
        hook.remove()
        again = model(ids[:, 20:], past_key_values=cache).logits
        assert torch.equal(again, model(ids[:, 20:], past_key_values=twin).logits)


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("pattern", ["right", "left", "holes"])
def test_nan_at_padding_reaches_nothing(kind, use_cache, pattern):
    model, mask, ids = MODELS[kind], pad_pattern(pattern), random_ids(len(LENGTHS), WIDTH)
    embeddings = model.get_input_embeddings()(ids)
    options = {"attention_mask": mask, "use_cache": use_cache}
    expected = model(inputs_embeds=embeddings, **options)
    embeddings[mask == 0] = float("nan")
    got = model(inputs_embeds=embeddings, **options)
    assert torch.equal(got.logits[mask.bool()], expected.logits[mask.bool()])
    if use_cache:
        assert_same(got.past_key_values.state, expected.past_key_values.state)


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("wrong", [2**32 + 7, 50, -1])
def test_a_token_that_is_none_is_no_other_one(wrong, use_cache):
    with pytest.raises(IndexError):
        MODELS[MIXED](torch.tensor([[5, wrong]]), use_cache=use_cache)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.int16])
def test_ids_of_another_kind_are_refused(dtype):
    with pytest.raises(ValueError, match=r"input_ids: expected int32 or int64"):
        MODELS[MIXED](random_ids(1, 5).to(dtype))


def test_a_cache_of_another_model_is_refused():
    cache = MODELS["mamba2"](random_ids(1, 5)).past_key_values
    with pytest.raises(ValueError, match="expected a cache of a model like this one"):
        MODELS["bmojo"](random_ids(1, 5), past_key_values=cache)


@pytest.mark.parametrize(
    "given",
    [
        {"rope_theta": 5e5},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    ],
    ids=str,
)
def test_rope_of_older_files_is_honoured(given):
    rope = BMojoConfig.from_dict(given).rope_parameters
    assert rope["rope_theta"] == 5e5
    assert rope["rope_type"] == ("linear" if "rope_scaling" in given else "default")


def test_a_model_whose_configuration_was_written_on_can_be_saved_and_loaded(tmp_path):
    model = tiny_model(MIXED)
    model.config.unsloth_version = "1"
    model.save_pretrained(tmp_path)
    loaded = BMojoForCausalLM.from_pretrained(tmp_path)
    # Not to the bit: weights lie in memory as they do in the file, and so do borders of vectors.
    torch.testing.assert_close(loaded(random_ids(1, 9)).logits, model(random_ids(1, 9)).logits)
