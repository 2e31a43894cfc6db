"""Priming: every block that has a counterpart in the Transformer is that counterpart."""

from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM
from typer.testing import CliRunner

from bmojo_neuron import BMojoForCausalLM
from bmojo_neuron.checkpoints import convert
from bmojo_neuron.checkpoints.prime import prime
from bmojo_neuron.cli import app
from tests.checkpoints.test_by_path import SIZES
from tests.checkpoints.test_golden import GOLDEN, needs_golden
from tests.model.conftest import random_ids, tiny_model

DRAWN = ("conv", "a_proj", "b_proj", "alpha_proj", "dt_bias", "a_log_bias")


@needs_golden
def test_each_copied_or_averaged_block_is_that_of_the_reference(tmp_path: Path):
    stage0 = BMojoForCausalLM.from_pretrained(GOLDEN / "prime_dev_all" / "stage0")
    c = stage0.config
    letters = {
        "attention": "*",
        "sliding_attention": "SWA",
        "mamba2": "M2",
        "gdn": "GDN",
        "gka": "GKA",
        "bmojo_f": "BMF",
    }
    pattern = "-".join(letters[kind] for kind in c.block_types)
    prime(
        GOLDEN / "prime_dev_all" / "base", tmp_path / "ours", pattern, mixer=c.mixer,
        window=c.window, sliding_window=c.sliding_window, eidetic_size=0,
        tie_fading_projections=c.tie_fading_projections,
    )  # fmt: skip
    ours = BMojoForCausalLM.from_pretrained(tmp_path / "ours")
    theirs = dict(stage0.named_parameters())
    compared = 0
    for name, parameter in ours.named_parameters():
        expected = theirs[name]
        if name.endswith("in_proj.weight"):  # its last rows, of dt, are drawn
            parameter, expected = (x[: -c.num_attention_heads] for x in (parameter, expected))
        elif any(part in name for part in DRAWN):
            continue
        assert torch.equal(parameter, expected), name
        compared += 1
    assert compared > 10 * c.num_hidden_layers


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = Qwen3Config(**SIZES, head_dim=8, tie_word_embeddings=False)
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@torch.no_grad()
def test_layers_that_stay_are_the_base_itself(base: Path, tmp_path: Path):
    prime(base, tmp_path / "same", "*-*")
    ids = random_ids(2, 20)
    a, b = (
        BMojoForCausalLM.from_pretrained(path)(ids).logits for path in (base, tmp_path / "same")
    )
    assert torch.equal(a, b)


@torch.no_grad()
@pytest.mark.parametrize("mixer", ["mamba2", "gdn", "gka"])
def test_a_primed_model_with_eidetic_memory_runs_and_learns(base: Path, tmp_path: Path, mixer: str):
    arguments = ["prime", str(base), str(tmp_path / "hybrid"), "--pattern", "*-BM"]
    arguments += ["--mixer", mixer, "--window", "8", "--eidetic", "6"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    model = BMojoForCausalLM.from_pretrained(tmp_path / "hybrid")
    assert model.config.block_types == ["attention", "bmojo"]
    assert (model.config.window, model.config.eidetic_size) == (8, 6)
    ids = random_ids(2, 40)
    whole = model(ids, use_cache=False).logits
    torch.testing.assert_close(model(ids).logits, whole, atol=1e-3, rtol=1e-3)
    with torch.enable_grad():
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        losses = []
        for _ in range(8):
            loss = model(ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("*", "pattern: expected 2 of .* got '\\*'"),
        ("*-XX", "pattern: expected 2 of .*, BM, joined"),
    ],
)
def test_a_pattern_that_does_not_fit_is_refused(base: Path, tmp_path: Path, pattern, message):
    with pytest.raises(ValueError, match=message):
        prime(base, tmp_path / "hybrid", pattern)
    assert not (tmp_path / "hybrid").exists()


def test_only_a_transformer_is_primed(base: Path, tmp_path: Path):
    prime(base, tmp_path / "hybrid", "*-M2")
    with pytest.raises(
        ValueError, match="base: expected a Transformer, got layers attention, mamba2"
    ):
        prime(tmp_path / "hybrid", tmp_path / "again", "*-M2")


def test_layers_that_stay_keep_the_window_of_their_base(tmp_path: Path):
    """Mistral's window is every layer's; "*" is the layer as it was."""
    base = tiny_model("sliding_attention", sliding_window=5)
    base.save_pretrained(tmp_path / "base")
    config = prime(tmp_path / "base", tmp_path / "same", "*-*", window=8, sliding_window=8)
    assert config.block_types == ["sliding_attention"] * 2
    assert config.sliding_window == 5
    same = BMojoForCausalLM.from_pretrained(tmp_path / "same")
    ids = random_ids(1, 20)
    torch.testing.assert_close(same(ids).logits, base(ids).logits)
    with pytest.raises(ValueError, match=r"window: expected 5, the base's own.*got 8"):
        prime(tmp_path / "base", tmp_path / "other", "*-SWA", sliding_window=8)


def test_a_kill_while_it_is_written_leaves_nothing(base: Path, tmp_path: Path, monkeypatch):
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "copy_others", killed)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        prime(base, tmp_path / "primed", "*-GDN")
    assert sorted(tmp_path.iterdir()) == before
