"""`bmojo inspect`: what a checkpoint is, where it comes from, what a session of it costs."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM
from typer.testing import CliRunner

from bmojo_neuron.cli import app
from bmojo_neuron.inspect import inspect
from tests.model.conftest import tiny_model

CARD = """---
license: apache-2.0
base_model: [org/base]
tags: [x]
---
# A model
"""


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tiny_model("hybrid").save_pretrained(tmp_path)
    return tmp_path


def test_provenance_is_told_by_where_it_stands(saved):
    (saved / "README.md").write_text(CARD)
    (saved / "LICENSE").write_text("\n   Apache License\n   Version 2.0\n")
    file = saved / "model.safetensors"
    save_file(load_file(file), file, metadata={"format": "pt", "origin": "a test"})
    assert inspect(saved).provenance == {
        "architectures": ["BMojoForCausalLM"],
        "README.md license": "apache-2.0",
        "README.md base_model": ["org/base"],
        "LICENSE": "Apache License",
        "safetensors origin": "a test",
    }
    shown = CliRunner().invoke(app, ["inspect", str(saved)])
    assert "README.md license: apache-2.0" in shown.output


@pytest.mark.parametrize("text", ["", "# no card", "---\n: [broken\n---\n", "---\n- a list\n---\n"])
def test_a_card_that_says_nothing_is_no_error(saved, text):
    (saved / "README.md").write_text(text)
    assert inspect(saved).provenance == {"architectures": ["BMojoForCausalLM"]}


@pytest.mark.parametrize(
    ("kind", "config", "heads"),
    [
        (MambaForCausalLM, MambaConfig(vocab_size=50, hidden_size=256, num_hidden_layers=2), 2),
        (
            Mamba2ForCausalLM,
            Mamba2Config(
                vocab_size=50,
                hidden_size=96,
                num_hidden_layers=2,
                num_heads=3,
                head_dim=64,
                n_groups=1,
            ),
            3,
        ),
    ],
    ids=["mamba", "mamba2"],
)
def test_a_model_without_attention_is_compared_with_one_of_its_width(kind, config, heads, tmp_path):
    torch.manual_seed(0)
    kind(config).save_pretrained(tmp_path)
    report = inspect(tmp_path, tokens=4096)
    width = config.hidden_size // heads
    assert report.transformer == f"{heads} heads of {width}, {heads} of keys and values"
    values = 2 * config.num_hidden_layers * 4096 * config.hidden_size  # K and V, float32
    assert report.transformer_bytes[4096] == pytest.approx(4 * values, rel=1e-3)


def test_a_model_with_attention_is_compared_with_its_own_heads(saved):
    report = inspect(saved, tokens=512)
    assert report.transformer == "4 heads of 8, 2 of keys and values"
    assert report.transformer_bytes[512] == 4 + 4 * (2 * 2 * 512 * 2 * 8)
