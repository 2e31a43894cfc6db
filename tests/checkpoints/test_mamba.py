"""transformers' Mamba and Mamba-2, run by our model: the same numbers from the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Mamba2Config,
    MambaConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from bmojo_neuron import BMojoForCausalLM
from bmojo_neuron.checkpoints import mamba, mamba2
from bmojo_neuron.checkpoints.convert import convert
from tests.model.batches import uncached

FAMILIES = {"mamba": mamba, "mamba2": mamba2}
CLOSE = {"atol": 1e-4, "rtol": 0.0}
LENGTH = 70  # longer than a chunk of our scans, and than one of theirs
TINY = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": None, "pad_token_id": 2}
CASES: dict[str, PretrainedConfig] = {
    "mamba": MambaConfig(**TINY, hidden_size=32, state_size=8, num_hidden_layers=2),
    "mamba-odd": MambaConfig(
        **TINY,
        hidden_size=33,
        state_size=5,
        num_hidden_layers=3,
        expand=3,
        time_step_rank=7,
        conv_kernel=3,
        use_bias=True,
        use_conv_bias=False,
        tie_word_embeddings=False,
        layer_norm_epsilon=1e-3,
    ),
    "mamba2": Mamba2Config(
        **TINY,
        hidden_size=32,
        num_heads=8,
        head_dim=8,
        state_size=16,
        n_groups=2,
        num_hidden_layers=2,
        chunk_size=16,
    ),
    "mamba2-odd": Mamba2Config(
        **TINY,
        hidden_size=33,
        num_heads=9,
        head_dim=11,
        expand=3,
        state_size=5,
        n_groups=3,
        num_hidden_layers=3,
        chunk_size=16,
        conv_kernel=3,
        use_bias=True,
        use_conv_bias=False,
        tie_word_embeddings=True,
        layer_norm_epsilon=1e-3,
    ),
    "mamba2-time_step_limit": Mamba2Config(
        **TINY,
        hidden_size=32,
        num_heads=4,
        head_dim=16,
        state_size=8,
        n_groups=1,
        num_hidden_layers=2,
        chunk_size=16,
        time_step_limit=(0.3, 0.8),
    ),
}
LIMITED = "mamba2-time_step_limit"
Pair = tuple[PreTrainedModel, BMojoForCausalLM]


def pair(config: PretrainedConfig, path: Path) -> Pair:
    """A random model of theirs, none of its parameters at its initial value; and ours of it."""
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    theirs.save_pretrained(path)
    return theirs, BMojoForCausalLM.from_pretrained(path)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    return {case: pair(config, tmp_path_factory.mktemp("m")) for case, config in CASES.items()}


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_the_authors_name_of_the_embedding_is_read(family: str, tmp_path: Path) -> None:
    theirs, _ = pair(next(c for name, c in CASES.items() if name.startswith(family)), tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["backbone.embedding.weight"] = tensors.pop("backbone.embeddings.weight")
    if theirs.config.tie_word_embeddings:  # their files hold the head besides
        tensors["lm_head.weight"] = tensors["backbone.embedding.weight"].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    ids = random_ids(1, 9)
    torch.testing.assert_close(
        uncached(BMojoForCausalLM.from_pretrained(tmp_path), ids),
        theirs(ids).logits,
        atol=1e-4,
        rtol=1e-4,
    )


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def random_ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(3, 50, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("case", CASES)
def test_logits_are_theirs_whole_and_in_pieces(pairs: dict[str, Pair], case: str) -> None:
    theirs, ours = pairs[case]
    ids = random_ids(2, LENGTH)
    expected = theirs(ids, use_cache=False).logits
    assert expected.std() > 0.3
    torch.testing.assert_close(ours(ids, use_cache=False).logits, expected, **CLOSE)
    for cuts in ([LENGTH], [1] * LENGTH, [2, 40, 1, 27]):
        state, pieces = ours.model.new_state(2), []
        for piece in ids.split(cuts, dim=1):
            logits, state = ours.feed(piece, state, all_tokens=True)
            pieces.append(logits)
        torch.testing.assert_close(torch.cat(pieces, dim=1), expected, **CLOSE)


@pytest.mark.parametrize("case", [case for case in CASES if case != LIMITED])
def test_greedy_tokens_are_theirs(pairs: dict[str, Pair], case: str) -> None:
    theirs, ours = pairs[case]
    ids = random_ids(2, 9)
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 64, "do_sample": False}
    expected = theirs.generate(ids, **options)
    assert expected.shape == (2, 73)
    assert torch.equal(ours.generate(ids, **options), expected)


def test_a_limit_of_time_steps_holds_in_single_steps_too(pairs: dict[str, Pair]) -> None:
    """Theirs forgets it as soon as it generates, so this is held to its whole forward."""
    theirs, ours = pairs[LIMITED]
    ids = random_ids(2, 9)
    got = ours.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, do_sample=False
    )
    whole = theirs(got, use_cache=False).logits
    assert torch.equal(whole[:, 8:-1].argmax(-1), got[:, 9:])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("case", CASES)
def test_padded_rows_are_theirs_without_padding(
    pairs: dict[str, Pair], case: str, side: str
) -> None:
    theirs, ours = pairs[case]
    lengths, width = (37, 20, 3), 37
    ids, mask = random_ids(3, width), torch.zeros(3, width, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, width - length if side == "left" else 0 :][:length] = 1
    for use_cache in (False, True):
        logits = ours(ids, attention_mask=mask, use_cache=use_cache).logits
        for row in range(3):
            valid = mask[row].bool()
            expected = theirs(ids[row : row + 1, valid], use_cache=False).logits[0]
            torch.testing.assert_close(logits[row, valid], expected, **CLOSE)


@pytest.mark.parametrize("case", CASES)
def test_converted_it_says_the_same(pairs: dict[str, Pair], case: str, tmp_path: Path) -> None:
    theirs, ours = pairs[case]
    theirs.save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours")
    converted = BMojoForCausalLM.from_pretrained(tmp_path / "ours").eval()
    ids = random_ids(1, 21)
    assert torch.equal(converted(ids).logits, ours(ids).logits)


@st.composite
def configs(draw: st.DrawFn) -> PretrainedConfig:
    flag = st.booleans()
    options: dict[str, Any] = {
        **TINY,
        "state_size": draw(st.integers(1, 9)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "conv_kernel": draw(st.integers(2, 5)),
        "expand": draw(st.integers(1, 3)),
        "layer_norm_epsilon": draw(st.sampled_from([1e-6, 1e-5, 1e-2])),
        "use_bias": draw(flag),
        "use_conv_bias": draw(flag),
        "tie_word_embeddings": draw(flag),
    }
    if draw(flag):
        rank = draw(st.sampled_from(["auto", 1, 5]))
        hidden = draw(st.integers(8, 35))
        return MambaConfig(**options, hidden_size=hidden, time_step_rank=rank)
    groups, per_group, head_dim = (draw(st.integers(1, most)) for most in (4, 3, 9))
    heads = groups * per_group
    return Mamba2Config(
        **options,
        hidden_size=heads * head_dim,
        num_heads=heads * options["expand"],
        head_dim=head_dim,
        n_groups=groups,
        chunk_size=draw(st.sampled_from([1, 7, 256])),
        time_step_limit=draw(st.sampled_from([(0.0, float("inf")), (0.1, 1.0)])),
    )


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(config=configs())
def test_any_configuration_gives_their_logits(
    config: PretrainedConfig, tmp_path_factory: pytest.TempPathFactory
) -> None:
    theirs, ours = pair(config, tmp_path_factory.mktemp("drawn"))
    ids = random_ids(1, 21)
    expected = theirs(ids, use_cache=False).logits
    torch.testing.assert_close(ours(ids, use_cache=False).logits, expected, **CLOSE)
    logits, _ = ours.feed(ids, ours.model.new_state(1), all_tokens=True)
    torch.testing.assert_close(logits, expected, **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_empty_config_has_the_defaults_of_transformers(family: str) -> None:
    theirs = {"mamba": MambaConfig, "mamba2": Mamba2Config}[family]()
    config = FAMILIES[family].read_config({})
    assert config.vocab_size == theirs.vocab_size
    assert config.tie_word_embeddings == theirs.tie_word_embeddings == (family == "mamba")
    assert config.rms_norm_eps == 1e-5
    assert config.eos_token_id == theirs.eos_token_id


@pytest.mark.parametrize(
    ("family", "key", "value", "expected"),
    [
        ("mamba", "model_type", "mamba2", "^model_type: expected mamba, got 'mamba2'"),
        ("mamba", "hidden_act", "gelu", "^hidden_act: expected silu or swish, got 'gelu'"),
        ("mamba", "state_size", 0, "^state_size: expected an integer of at least 1, got 0"),
        ("mamba", "expand", 0, "^expand: expected .*, got 0"),
        ("mamba", "intermediate_size", "64", "^intermediate_size: expected .*, got '64'"),
        ("mamba", "time_step_rank", "all", "^time_step_rank: expected .*, got 'all'"),
        ("mamba", "time_step_rank", 0, "^time_step_rank: expected .*, got 0"),
        ("mamba", "conv_kernel", -1, "^conv_kernel: expected .*, got -1"),
        ("mamba", "hidden_size", "64", "'hidden_size' expected int, got str"),
        ("mamba", "num_experts", 4, "^num_experts: expected a key of a mamba configuration, got"),
        ("mamba2", "model_type", "mamba", "^model_type: expected mamba2, got 'mamba'"),
        ("mamba2", "hidden_act", "relu", "^hidden_act: expected silu or swish, got 'relu'"),
        ("mamba2", "n_groups", 3, r"^n_groups: expected a divisor of num_heads \(128\), got 3"),
        ("mamba2", "n_groups", 0, "^n_groups: expected .*, got 0"),
        ("mamba2", "num_heads", 7, r"hidden_size \* expand"),
        ("mamba2", "time_step_limit", [1.0, 0.5], "^time_step_limit: expected two numbers"),
        ("mamba2", "time_step_limit", [0.0], "^time_step_limit: expected two numbers"),
        ("mamba2", "time_step_limit", "none", "'time_step_limit'"),
        ("mamba2", "attn_cfg", {"num_heads": 4}, "^attn_cfg: expected a key of a mamba2"),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    family: str, key: str, value: object, expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        FAMILIES[family].read_config({key: value})


def test_keys_of_the_published_files_are_read() -> None:
    """As in state-spaces/mamba-130m-hf, which names its sizes twice."""
    config = mamba.read_config(
        {
            "model_type": "mamba",
            "architectures": ["MambaForCausalLM"],
            "d_model": 768,
            "d_inner": 1536,
            "n_layer": 24,
            "num_hidden_layers": 24,
            "hidden_size": 768,
            "intermediate_size": 1536,
            "time_step_rank": 48,
            "rms_norm": True,
            "fused_add_norm": True,
            "ssm_cfg": {},
            "pad_vocab_size_multiple": 8,
            "torch_dtype": "float32",
            "transformers_version": "4.39.0.dev0",
        }
    )
    assert (config.mamba_inner_size, config.mamba_dt_rank, config.hidden_size) == (1536, 48, 768)
    assert config.block_types == ["mamba"] * 24
    assert config.dtype == torch.float32
