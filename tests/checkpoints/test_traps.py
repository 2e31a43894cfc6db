"""Where the reference implementations of Hybrid-Qwen3 are wrong or disagree (spec/checkpoints
section 7), ours is right: a test for each trap, against the statement in float64.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from bmojo_neuron import BMojoForCausalLM
from bmojo_neuron.checkpoints.convert import convert
from bmojo_neuron.state import state_bytes
from tests.checkpoints.hybrid_reference import (
    Given,
    HybridReference,
    given_of,
    loaded,
    random_tensors,
    tolerance,
    written,
)
from tests.checkpoints.test_golden import GOLDEN, NAMES, needs_golden

LENGTH = 23
IDS = torch.randint(0, 40, (LENGTH,), generator=torch.Generator().manual_seed(5))
BMF = ("mamba2", "gdn", "gka")
LAYERS: dict[str, Given] = {
    **{token: given_of(f"{token}-{token}") for token in ("*", "SWA", "M2", "GDN", "GKA")},
    **{
        f"BMF-{mixer}": given_of("BMF-BMF", bmojo_config={"window_size": 3, "ssm_mixer": mixer})
        for mixer in BMF
    },
}


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def expected_of(given: Given, ids: Tensor = IDS) -> Tensor:
    return HybridReference(given, random_tensors(given)).logits(ids)


def model_of(given: Given, path: Path) -> BMojoForCausalLM:
    return loaded(path, given, random_tensors(given))


def in_pieces(model: BMojoForCausalLM, ids: Tensor, *sizes: int) -> Tensor:
    """Logits (L, V) of calls that go on with one cache; the last size repeats."""
    cache, done, logits = None, 0, []
    while done < len(ids):
        size = sizes[min(len(logits), len(sizes) - 1)]
        out = model(ids[None, done : done + size], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits.append(out.logits[0])
        done += size
    return torch.cat(logits)


def assert_close(got: Tensor, expected: Tensor, given: Given) -> None:
    assert got.isfinite().all()
    assert (got - expected).abs().max() <= tolerance(given)


def assert_apart(one: Tensor, other: Tensor) -> None:
    """The trap would show."""
    assert (one - other).abs().max() > 0.05


@needs_golden
@pytest.mark.parametrize("name", NAMES)
def test_the_statement_in_float64_agrees_with_the_reference_code(name):
    given = json.loads((GOLDEN / name / "config.json").read_text())
    golden = load_file(GOLDEN / name / "golden.safetensors")
    reference = HybridReference(given, load_file(GOLDEN / name / "model.safetensors"))
    got = reference.logits(golden["input_ids"][0])
    assert (got - golden["logits"][0]).abs().max() <= (3e-4 if "gka" in name else 5e-5)


# 1


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("mixer", BMF)
def test_bmf_cached_decode_keeps_the_state_of_its_mixer_past_w_and_2w(mixer, tied, tmp_path):
    window = 4
    how = {"window_size": window, "ssm_mixer": mixer, "tie_attn_weights": tied}
    given = given_of("BMF-*-BMF", bmojo_config=how)
    assert 5 * window < LENGTH
    got = in_pieces(model_of(given, tmp_path), IDS, 2, 1)
    assert_close(got, expected_of(given), given)


@pytest.mark.parametrize("mixer", BMF)
def test_bmf_greedy_tokens_are_those_of_a_full_forward(mixer, tmp_path):
    given = given_of("BMF-BMF", bmojo_config={"window_size": 3, "ssm_mixer": mixer})
    model, text = model_of(given, tmp_path), IDS[:5]
    for _ in range(12):
        text = torch.cat([text, expected_of(given, text)[-1].argmax()[None]])
    got = model.generate(IDS[None, :5], max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert got[0].tolist() == text.tolist()


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("kind", ["GKA", "GDN", "BMF-gka", "BMF-gdn"])
def test_a_prompt_of_one_token_is_finite_and_right(kind, use_cache, tmp_path):
    given = LAYERS[kind]
    got = model_of(given, tmp_path)(IDS[None, :1], use_cache=use_cache).logits[0]
    assert_close(got, expected_of(given, IDS[:1]), given)


@pytest.mark.parametrize("sizes", [(LENGTH,), (1,), (1, 5, LENGTH)], ids=str)
@pytest.mark.parametrize("kind", ["GKA", "BMF-gka"])
def test_gka_is_finite_where_no_key_was_written(kind, sizes, tmp_path):
    """||Hkk|| = 0: the solution is 0, not 2 / 0 * 0."""
    given = LAYERS[kind]
    tensors = random_tensors(given)
    keys = [n for n in tensors if n.endswith("k_proj.weight") and "attn" not in n]
    assert len(keys) == 2
    for name in keys:
        tensors[name].zero_()
    expected = HybridReference(given, tensors).logits(IDS)
    assert_close(in_pieces(loaded(tmp_path, given, tensors), IDS, *sizes), expected, given)


# 2


@pytest.mark.parametrize("window", [1, 2, 5])
def test_swa_decode_honours_the_window(window, tmp_path):
    given = given_of("SWA-SWA", swa_config={"window_size": window})
    expected = expected_of(given)
    wide = expected_of(given | {"swa_config": {"window_size": LENGTH}})
    assert_apart(expected[window:], wide[window:])
    assert_close(in_pieces(model_of(given, tmp_path), IDS, 3, 1), expected, given)


def test_an_swa_layer_under_the_names_of_attention_is_read(tmp_path):
    given = given_of("SWA-*")
    tensors = random_tensors(given)
    renamed = {name.replace(".swa.", ".self_attn."): x for name, x in tensors.items()}
    assert renamed.keys() != tensors.keys()
    got = in_pieces(loaded(tmp_path, given, renamed), IDS, 3, 1)
    assert_close(got, expected_of(given), given)


# 3


@pytest.mark.parametrize("part", ["q_proj_", "q_norm_", "k_proj_", "k_norm_", "v_proj_"])
def test_untied_bmf_projects_what_fades_with_its_own_weights(part, tmp_path):
    how = {"window_size": 3, "ssm_mixer": "gdn", "tie_attn_weights": False}
    given = given_of("BMF-BMF", bmojo_config=how)
    tensors = random_tensors(given)
    expected = HybridReference(given, tensors).logits(IDS)
    shared = {
        name: tensors[name.replace(part, part[:-1])] if f".{part}." in name else tensor
        for name, tensor in tensors.items()
    }
    assert_apart(HybridReference(given, shared).logits(IDS), expected)
    for sizes in ((LENGTH,), (4, 1)):
        assert_close(in_pieces(loaded(tmp_path, given, tensors), IDS, *sizes), expected, given)


# 4


@pytest.mark.parametrize("pattern", ["M2-M2", "BMF-BMF"])
def test_use_pos_emb_is_honoured_in_mamba2(pattern, tmp_path):
    given = given_of(pattern, mamba2_config={"use_pos_emb": True, "use_qk_norm": True})
    expected = expected_of(given)
    assert_apart(expected, expected_of(given | {"mamba2_config": {"use_pos_emb": False}}))
    for sizes in ((LENGTH,), (4, 1)):
        assert_close(in_pieces(model_of(given, tmp_path), IDS, *sizes), expected, given)


# 5


@pytest.mark.parametrize("window", [1, 3, 7])
def test_an_odd_window_is_used_as_it_is(window, tmp_path):
    def of(size: int) -> Given:
        return given_of("BMF-BMF", bmojo_config={"window_size": size, "ssm_mixer": "gka"})

    given, expected = of(window), expected_of(of(window))
    assert_apart(expected, expected_of(of(window + 1)))
    for sizes in ((LENGTH,), (4, 1), (window + 1,)):
        assert_close(in_pieces(model_of(given, tmp_path), IDS, *sizes), expected, given)


# 6


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_padded_row_is_what_it_is_alone(kind, side, tmp_path):
    given, lengths = LAYERS[kind], (LENGTH, 11, 1)
    model = model_of(given, tmp_path)
    ids, mask = torch.full((3, LENGTH), 7), torch.zeros(3, LENGTH, dtype=torch.long)
    for row, length in enumerate(lengths):
        at = slice(LENGTH - length, LENGTH) if side == "left" else slice(0, length)
        ids[row, at], mask[row, at] = IDS.roll(row)[:length], 1
    for use_cache in (True, False):
        out = model(ids, attention_mask=mask, use_cache=use_cache)
        for row, length in enumerate(lengths):
            alone = expected_of(given, IDS.roll(row)[:length])
            assert_close(out.logits[row][mask[row].bool()], alone, given)
        if use_cache:
            cache = out.past_key_values
    for step in range(8):  # the padding is in no state
        mask = torch.cat([mask, torch.ones(3, 1, dtype=torch.long)], dim=1)
        out = model(IDS[step].expand(3, 1), attention_mask=mask, past_key_values=cache)
        for row, length in enumerate(lengths):
            text = torch.cat([IDS.roll(row)[:length], IDS[: step + 1]])
            if step in (0, 7):
                assert_close(out.logits[row, 0], expected_of(given, text)[-1], given)


# 7


def test_layer_types_in_their_letters_load_and_are_written_back(tmp_path):
    """transformers refuses any letters but its own in `layer_types`."""
    given = given_of("*-M2-GDN-GKA-SWA-BMF")
    source = written(tmp_path / "theirs", given, random_tensors(given))
    assert AutoConfig.from_pretrained(source).num_hidden_layers == 6
    model = AutoModelForCausalLM.from_pretrained(source)
    assert_close(model(IDS[None]).logits[0], expected_of(given), given)
    convert(source, tmp_path / "again", "hybrid_qwen3")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    for name in ("layer_types", "hybrid_override_pattern", "model_type", "architectures"):
        assert again[name] == given[name]
    assert AutoConfig.from_pretrained(tmp_path / "again") == AutoConfig.from_pretrained(source)
    model.save_pretrained(tmp_path / "ours")
    assert_close(
        BMojoForCausalLM.from_pretrained(tmp_path / "ours")(IDS[None]).logits[0],
        expected_of(given),
        given,
    )


def test_the_pattern_wins_over_layer_types(tmp_path):
    given = given_of("M2-*")
    got = model_of(given | {"layer_types": ["*", "*"]}, tmp_path)(IDS[None]).logits[0]
    assert_close(got, expected_of(given), given)


# 8


@pytest.mark.parametrize("sizes", [(9, 5, 7, 2), (1, 22), (6, 1, 1, 8, 7)], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_second_turn_comes_in_pieces_of_several_tokens(kind, sizes, tmp_path):
    given: dict[str, Any] = LAYERS[kind]
    assert_close(in_pieces(model_of(given, tmp_path), IDS, *sizes), expected_of(given), given)


@pytest.mark.parametrize("mixer", BMF)
def test_a_bmf_state_has_the_size_of_its_windows_for_every_row(mixer, tmp_path):
    how = {"window_size": 3, "ssm_mixer": mixer}
    given = given_of("BMF-BMF", bmojo_config=how, max_position_embeddings=131072)
    model = model_of(given, tmp_path)
    _, state = model.feed(IDS.expand(3, -1), model.new_state(3))
    keys = 2 * 2 * 3 * 3 * 2 * 8 * 4  # (k, v), (W + 2W), heads, head_dim, float32
    held = state_bytes(state) // 3 - 2 * keys
    assert 0 < held < 2 * 4 * (2 * 4 * 8 * 8 + 3 * 80) + 8  # the mixer's own
    _, later = model.feed(IDS.repeat(3, 3), state)
    assert state_bytes(later) == state_bytes(state)
