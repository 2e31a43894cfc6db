"""Hybrid-Qwen3 of any configuration: what a checkpoint computes, in one call, in any split and
token by token, is the statement of its format in float64.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bmojo_neuron import BMojoForCausalLM
from bmojo_neuron.checkpoints.convert import convert
from bmojo_neuron.checkpoints.hybrid_qwen3 import read_config
from tests.checkpoints.hybrid_reference import (
    Given,
    HybridReference,
    given_of,
    loaded,
    random_tensors,
    tolerance,
)

LENGTH = 18
SEED = 5  # of weights with which no token reads next to nothing, which its norm would blow up
TOKENS = ("*", "SWA", "M2", "GDN", "GKA", "BMF")
ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}
SWITCHES = {
    "mamba2_config": ("use_qk_norm", "use_pos_emb"),
    "gdn_config": ("use_gate", "use_short_conv", "allow_neg_eigval", "conv_bias"),
    "gka_config": (
        *("use_alpha_connection", "use_v_conv", "use_forgetting_gate", "use_forgetting_gate_kk"),
        *("gla_rescale", "use_gate", "use_beta_gate"),
    ),
}


@st.composite
def configurations(draw: st.DrawFn) -> Given:
    """A config.json; keys that have a default may be absent."""

    def options(where: str, **numbers: st.SearchStrategy[Any]) -> Given:
        known = {name: st.booleans() for name in SWITCHES[where]} | numbers
        return draw(st.fixed_dictionaries({}, optional=known))

    heads = draw(st.sampled_from([1, 2, 3, 4]))
    sizes = st.sampled_from([2, 3, 4])
    rope = draw(st.sampled_from(list(ROPES)))
    windows = st.integers(1, 9)
    pattern = draw(st.lists(st.sampled_from(TOKENS), min_size=1, max_size=3))
    return given_of(
        "-".join(pattern),
        hidden_size=draw(st.sampled_from([12, 17, 24])),
        num_attention_heads=heads,
        num_key_value_heads=draw(st.sampled_from([k for k in (1, 2, 3, 4) if heads % k == 0])),
        head_dim=draw(st.sampled_from([2, 6, 8, 10])),
        tie_word_embeddings=draw(st.booleans()),
        attention_bias=draw(st.booleans()),
        rms_norm_eps=draw(st.sampled_from([1e-6, 1e-5, 1e-2])),
        rope_parameters={"rope_type": rope, "rope_theta": draw(st.sampled_from([50.0, 1e4]))}
        | ROPES[rope],
        bmojo_config={
            "window_size": draw(windows),
            "ssm_mixer": draw(st.sampled_from(["mamba2", "gdn", "gka"])),
            "tie_attn_weights": draw(st.booleans()),
        },
        swa_config={"window_size": draw(windows)},
        mamba2_config=options("mamba2_config"),
        gdn_config=options("gdn_config", conv_size=sizes, norm_eps=st.sampled_from([1e-5, 1e-2])),
        gka_config=options(
            "gka_config",
            conv_size=sizes,
            norm_eps=st.sampled_from([1e-6, 1e-2]),
            num_iter=st.sampled_from([0, 1, 2, 7, 30]),
            ridge_strength=st.sampled_from([0.02, 0.1, 1.0]),
        ),
    )


def logits_in_pieces(model: BMojoForCausalLM, ids: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    state, pieces = model.new_state(1), []
    for piece in ids.split(sizes):
        logits, state = model.feed(piece[None], state, all_tokens=True)
        pieces.append(logits[0])
    return torch.cat(pieces)


def assert_as_stated(config: Given, seed: int, cuts: set[int], directory: Path) -> None:
    tensors = random_tensors(config, seed)
    ids = torch.randint(0, 40, (LENGTH,), generator=torch.Generator().manual_seed(seed))
    expected, near = HybridReference(config, tensors).logits(ids), tolerance(config)
    ours = loaded(directory / "theirs", config, tensors)
    got = {"one call": ours(ids[None], use_cache=False).logits[0]}
    ends = [*sorted(cuts), LENGTH]
    split = [b - a for a, b in zip([0, *ends], ends, strict=False)]
    for sizes in ([LENGTH], split, [1] * LENGTH):
        got[str(sizes)] = logits_in_pieces(ours, ids, sizes)
    for how, logits in got.items():
        assert (logits - expected).abs().max() <= near, how


@given(config=configurations(), seed=st.integers(0, 99), cuts=st.sets(st.integers(1, LENGTH - 1)))
@settings(
    max_examples=70,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@torch.no_grad()
def test_any_configuration_computes_what_the_format_says(config, seed, cuts):
    with TemporaryDirectory() as directory:
        assert_as_stated(config, seed, cuts, Path(directory))


@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize(
    ("where", "name"), [(where, name) for where, names in SWITCHES.items() for name in names]
)
@torch.no_grad()
def test_each_switch_alone_and_inside_bmf(where, name, on, tmp_path):
    mixer = where.removesuffix("_config")
    token = {"mamba2": "M2", "gdn": "GDN", "gka": "GKA"}[mixer]
    bmojo = {"window_size": 3, "ssm_mixer": mixer, "tie_attn_weights": True}
    config = given_of(f"{token}-BMF", bmojo_config=bmojo, **{where: {name: on}})
    assert_as_stated(config, SEED, {5, 6, 11}, tmp_path)


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_biases_of_attention_are_in_every_layer_that_attends(tied, tmp_path):
    bmojo = {"window_size": 3, "ssm_mixer": "gdn", "tie_attn_weights": tied}
    config = given_of("*-SWA-BMF-M2", attention_bias=True, bmojo_config=bmojo)
    assert sum(name.endswith("o_proj.bias") for name in random_tensors(config)) == 3
    assert_as_stated(config, SEED, {5, 6, 11}, tmp_path)
    convert(tmp_path / "theirs", tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "again", "hybrid_qwen3")
    ids = torch.arange(LENGTH)[None]
    first, last = (
        BMojoForCausalLM.from_pretrained(tmp_path / name)(ids).logits
        for name in ("theirs", "again")
    )
    assert torch.equal(first, last)


@pytest.mark.parametrize("where", ["gdn_config", "gka_config"])
@pytest.mark.parametrize(("name", "value"), [("kv_proj_rank", 4), ("kv_learnable_residual", True)])
def test_low_rank_keys_and_values_are_refused_by_name(where, name, value):
    config = given_of("GDN-GKA", **{where: {name: value}})
    with pytest.raises(ValueError, match=rf"^{where}\.{name}: expected (None|False), got {value}"):
        read_config(config)


def test_copies_of_the_base_keys_do_not_count():
    copies = {"hidden_size": 99, "head_dim": 3, "num_q_heads": 7, "num_k_heads": 7}
    config = given_of("GDN-GKA-M2-BMF")
    stale = config | {
        "gdn_config": copies,
        "gka_config": copies | {"chunk_size": 16, "bp_lambda": False},
        "mamba2_config": {"d_model": 99, "d_inner": 9, "ssm_cfg": {"expand": 1, "ngroups": 7}},
    }
    assert read_config(stale).to_dict() == read_config(config).to_dict()


def test_overrides_of_gka_are_merged_over_its_options():
    config = given_of("GKA", gka_config={"num_iter": 30, "ridge_strength": 0.5})
    read = read_config(config | {"gka_overrides": {"num_iter": 7}})
    assert (read.gka_num_iter, read.gka_ridge) == (7, 0.5)


def test_absent_keys_have_the_defaults_of_the_family():
    config = given_of("*-BMF")
    for name in ("head_dim", "tie_word_embeddings", "bmojo_config", "attention_bias"):
        config.pop(name, None)
    read = read_config(config)
    assert (read.head_dim, read.tie_word_embeddings, read.attention_bias) == (128, False, False)
    assert (read.mixer, read.window, read.tie_fading_projections) == ("mamba2", 2048, True)


@pytest.mark.parametrize("size", [0, -1, 2.5, "4", True, None])
def test_a_window_of_swa_of_no_size_is_refused(size):
    with pytest.raises(ValueError, match=r"^swa_config\.window_size: expected an integer of at"):
        read_config(given_of("SWA", swa_config={"window_size": size}))
