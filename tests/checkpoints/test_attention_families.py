"""Qwen3, Llama and Mistral of transformers, with the same numbers in our block.

The models are tiny and random, every parameter away from its initial value. Beyond the original
length (ORIGINAL, DYNAMIC_LENGTH) two rope types depend on how long transformers' call is; there it
is fed token by token.
"""

import json
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from bmojo_neuron import BMojoForCausalLM
from bmojo_neuron.checkpoints import llama, mistral, qwen3
from bmojo_neuron.huggingface.cache import CACHE_FIELD

FAMILIES: dict[str, tuple[ModuleType, type[PretrainedConfig], type[PreTrainedModel]]] = {
    "llama": (llama, LlamaConfig, LlamaForCausalLM),
    "mistral": (mistral, MistralConfig, MistralForCausalLM),
    "qwen3": (qwen3, Qwen3Config, Qwen3ForCausalLM),
}
VOCABULARY = 50
HEAD_DIM = 10
ORIGINAL, DYNAMIC_LENGTH = 24, 32
ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 3.0},
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": ORIGINAL},
    "longrope": {
        "factor": 2.0,
        "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0],
        "long_factor": [1.0, 2.0, 3.0, 5.0, 8.0],
        "original_max_position_embeddings": ORIGINAL,
    },
    "proportional": {"partial_rotary_factor": 0.5, "factor": 1.5},
}
BY_LENGTH = ("dynamic", "longrope")
SLIDING = {"use_sliding_window": True, "sliding_window": 7}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    **{f"llama-{rope}": ("llama", {"rope": rope}) for rope in ROPES},
    "mistral": ("mistral", {"sliding_window": 7}),
    "mistral-narrow": ("mistral", {"sliding_window": 1}),
    "mistral-full": ("mistral", {"sliding_window": None}),
    "mistral-dynamic": ("mistral", {"sliding_window": 8, "rope": "dynamic"}),
    "qwen3": ("qwen3", {}),
    "qwen3-biases": ("qwen3", {"attention_bias": True}),
    "qwen3-upper_layers": ("qwen3", SLIDING | {"max_window_layers": 2}),
    "qwen3-mixed": (
        "qwen3",
        SLIDING | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "qwen3-longrope": ("qwen3", SLIDING | {"max_window_layers": 1, "rope": "longrope"}),
}


def config_of(family: str, rope: str = "default", **changes: Any) -> PretrainedConfig:
    options = {
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": DYNAMIC_LENGTH,
        "rope_parameters": {"rope_type": rope, "rope_theta": 500.0} | ROPES[rope],
        "bos_token_id": 0,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    return FAMILIES[family][1](**(options | changes))


def theirs_of(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    model: Any = FAMILIES[config.model_type][2](config).eval()  # type: ignore[call-arg]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def as_written(config: PretrainedConfig) -> dict[str, Any]:
    """The config.json."""
    written: dict[str, Any] = json.loads(config.to_json_string())
    return written


def ours_of(theirs: PreTrainedModel) -> BMojoForCausalLM:
    family = FAMILIES[theirs.config.model_type][0]
    config = family.read_config(as_written(theirs.config))
    model = BMojoForCausalLM(config).eval()
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    source, target = theirs.state_dict(), model.state_dict()
    names = family.names(config)
    assert set(names) == set(target) - tied
    assert sorted(names.values()) == sorted(set(source) - tied)
    for our, their in names.items():
        target[our].copy_(source[their].reshape(target[our].shape))
    return model


def tokens(rows: int, length: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCABULARY, (rows, length), generator=generator)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


def logits_in_pieces(model: BMojoForCausalLM, ids: Tensor, sizes: list[int]) -> Tensor:
    state, pieces = model.new_state(len(ids)), []
    for piece in ids.split(sizes, dim=1):
        logits, state = model.feed(piece, state, all_tokens=True)
        pieces.append(logits)
    return torch.cat(pieces, dim=1)


@pytest.fixture(params=CASES)
def pair(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, BMojoForCausalLM]:
    family, changes = CASES[request.param]
    theirs = theirs_of(config_of(family, **changes))
    return theirs, ours_of(theirs)


@st.composite
def configurations(draw: st.DrawFn) -> PretrainedConfig:
    family = draw(st.sampled_from(list(FAMILIES)))
    heads = draw(st.sampled_from([1, 2, 3, 4, 6]))
    layers = draw(st.integers(1, 3))
    window = draw(st.none() | st.integers(1, 12))
    own: dict[str, Any] = {"sliding_window": window} if family == "mistral" else {}
    if family != "mistral":
        own["attention_bias"] = draw(st.booleans())
    if family == "llama":
        own["mlp_bias"] = draw(st.booleans())
    if family == "qwen3" and window is not None:
        own |= {"use_sliding_window": True, "sliding_window": window}
        if draw(st.booleans()):
            own["max_window_layers"] = draw(st.integers(0, layers))
        else:
            kinds = st.sampled_from(["full_attention", "sliding_attention"])
            own["layer_types"] = [draw(kinds) for _ in range(layers)]
    return config_of(
        family,
        rope=draw(st.sampled_from(list(ROPES))),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=draw(st.sampled_from([k for k in (1, 2, 3, 4, 6) if heads % k == 0])),
        tie_word_embeddings=draw(st.booleans()),
        rms_norm_eps=draw(st.sampled_from([1e-6, 1e-5, 1e-2])),
        **own,
    )


@given(config=configurations(), seed=st.integers(0, 99), data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@torch.no_grad()
def test_any_configuration_has_their_logits_in_any_split(config, seed, data):
    theirs = theirs_of(config, seed)
    ours = ours_of(theirs)
    ids = tokens(2, ORIGINAL, seed)
    expected = theirs(ids).logits
    close(ours(ids, use_cache=False).logits, expected)
    cuts = sorted(data.draw(st.sets(st.integers(1, ORIGINAL - 1), max_size=5)))
    sizes = [b - a for a, b in zip([0, *cuts], [*cuts, ORIGINAL], strict=True)]
    close(logits_in_pieces(ours, ids, sizes), expected)


def continued(model: PreTrainedModel, ids: Tensor, count: int, **inputs: Tensor) -> Tensor:
    """Greedy. Theirs keeps no cache where the window is 1: its cache does not cut that one."""
    kept = getattr(model.config, "sliding_window", None) != 1
    grown: Tensor = model.generate(
        ids, max_new_tokens=count, do_sample=False, use_cache=kept, **inputs
    )
    return grown


@torch.no_grad()
def test_greedy_equals_theirs_over_64_tokens_past_the_window(pair):
    theirs, ours = pair
    ids = tokens(1, 12)  # the widest window is 8
    expected = continued(theirs, ids, 64)
    assert expected.shape[1] == 76
    torch.testing.assert_close(continued(ours, ids, 64), expected)


@torch.no_grad()
def test_rows_of_unequal_length_have_their_logits_and_continuation(pair):
    theirs, ours = pair
    starts = [0, 9, 4]
    mask = (torch.arange(14) >= torch.tensor(starts).unsqueeze(1)).long()
    ids = tokens(3, 14) * mask
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    expected = theirs(ids, attention_mask=mask, position_ids=positions).logits
    valid = mask.bool()
    for use_cache in (True, False):
        close(ours(ids, attention_mask=mask, use_cache=use_cache).logits[valid], expected[valid])
    grown = continued(ours, ids, 24, attention_mask=mask)
    for row, alone, start in zip(grown, ids, starts, strict=True):
        torch.testing.assert_close(row[start:], continued(theirs, alone[None, start:], 24)[0])
    if theirs.config.rope_parameters["rope_type"] not in BY_LENGTH:  # of the longest row there
        torch.testing.assert_close(grown, continued(theirs, ids, 24, attention_mask=mask))


@pytest.mark.parametrize("rope", ROPES)
@torch.no_grad()
def test_any_split_beyond_the_original_length_is_their_token_by_token(rope):
    theirs = theirs_of(config_of("llama", rope))
    ours, ids = ours_of(theirs), tokens(1, 60)
    cache, steps = None, []
    for token in ids.split(1, dim=1):
        output = theirs(token, **{CACHE_FIELD: cache}, use_cache=True)
        cache = getattr(output, CACHE_FIELD)
        steps.append(output.logits)
    expected = torch.cat(steps, dim=1)
    if rope not in BY_LENGTH:  # then theirs does not depend on the split either
        close(theirs(ids).logits, expected)
    close(ours(ids, use_cache=False).logits, expected)
    for sizes in ([60], [1] * 60, [23, 2, 6, 1, 28]):
        close(logits_in_pieces(ours, ids, sizes), expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rope", ROPES)
def test_old_keys_say_the_same(family, rope):
    new = as_written(config_of(family, rope, dtype="bfloat16"))
    old = dict(new)
    scaling = {**old.pop("rope_parameters")}
    old |= {"rope_theta": scaling.pop("rope_theta"), "torch_dtype": old.pop("dtype")}
    scaling["type"] = scaling.pop("rope_type")
    old["rope_scaling"] = None if rope == "default" else scaling
    read = FAMILIES[family][0].read_config
    before = json.dumps(old)
    assert read(old).to_dict() == read(new).to_dict()
    assert json.dumps(old) == before
    assert read(old).dtype == torch.bfloat16
    assert read(old).rope_parameters["rope_type"] == rope
    assert read(old).rope_parameters["rope_theta"] == 500.0


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_of_special_tokens_are_carried_over(family):
    read = FAMILIES[family][0].read_config
    ids = {"bos_token_id": 3, "eos_token_id": [4, 9], "pad_token_id": 5}
    config = read(as_written(config_of(family, **ids)))
    assert {name: getattr(config, name) for name in ids} == ids
    assert read(as_written(config_of(family)) | {"pad_token_id": -1}).pad_token_id is None


def test_absent_keys_have_the_defaults_of_the_family():
    config = mistral.read_config({"model_type": "mistral", "num_hidden_layers": 2})
    assert config.block_types == ["sliding_attention"] * 2
    assert (config.window, config.num_key_value_heads, config.head_dim) == (4096, 8, 128)
    config = qwen3.read_config({"sliding_window": 5, "num_hidden_layers": 2})  # not in use
    assert config.block_types == ["attention"] * 2


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_that_do_not_change_the_model_are_ignored(family):
    read, given = FAMILIES[family][0].read_config, as_written(config_of(family))
    notes = {
        "attention_dropout": 0.1,
        "_name_or_path": "somewhere",
        "architectures": ["Any"],
        "temperature": 0.6,
        "hidden_act": "swish",
        "logit_scale": None,
    }
    want = read(given).to_dict()
    assert read(given | notes).to_dict() == want


@torch.no_grad()
def test_llama_has_no_window_whatever_its_file_says():
    """The masks of transformers' Llama do not know the key, though its cache is cut to it."""
    given = as_written(config_of("llama"))
    assert llama.read_config(given | {"sliding_window": 3}) == llama.read_config(given)
    theirs = LlamaForCausalLM(LlamaConfig(**(given | {"sliding_window": 3}))).eval()
    ours, ids = ours_of(theirs), tokens(1, 12)
    expected = theirs(ids, use_cache=False).logits
    close(ours(ids).logits, expected)
    close(logits_in_pieces(ours, ids, [1] * 12), expected)
    whole = theirs.generate(ids, max_new_tokens=20, do_sample=False, use_cache=False)
    torch.testing.assert_close(continued(ours, ids, 20), whole)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"hidden_act": "gelu"}, "hidden_act: expected silu or swish, got 'gelu'"),
    ("llama", {"pretraining_tp": 2}, "pretraining_tp: expected 1 or null, got 2"),
    ("llama", {"logit_scale": 0.5}, "logit_scale: expected a key of a llama .*0.5"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config: expected .*bits"),
    ("llama", {"model_type": "gemma"}, "model_type: expected llama, got 'gemma'"),
    ("llama", {"hidden_size": "24"}, "hidden_size.*expected int, got str"),
    ("llama", {"num_attention_heads": 0, "head_dim": None}, "llama model: .*zero"),
    ("llama", {"intermediate_size": 0}, "intermediate_size: expected .* at least 1, got 0"),
    ("llama", {"num_key_value_heads": 3}, "num_key_value_heads: expected a divisor"),
    ("llama", {"rope_parameters": {"rope_type": "axial"}}, "rope_parameters: expected a rope_type"),
    ("llama", {"rope_parameters": {"rope_type": "linear"}}, "rope_parameters.*factor"),
    (
        "llama",
        {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        "no partial_rotary_factor",
    ),
    ("mistral", {"sliding_window": 0}, "sliding_window: expected .* at least 1, got 0"),
    ("mistral", {"sliding_window": -3}, "sliding_window: expected .* at least 1, got -3"),
    ("mistral", {"attention_bias": True}, "attention_bias: expected a key of a mistral"),
    ("qwen3", {"layer_types": ["full_attention"]}, "layer_types"),
    ("qwen3", {"layer_types": ["chunked_attention"] * 3}, "layer_types: expected .*chunked"),
    ("qwen3", {"layer_types": ["sliding_attention"] * 3}, "sliding_window: expected .* got None"),
]


@pytest.mark.parametrize(("family", "changes", "message"), REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(family, changes, message):
    given = as_written(config_of(family)) | changes
    with pytest.raises(ValueError, match=f"(?s){message}"):
        FAMILIES[family][0].read_config(given)
