"""`bmojo convert --unfuse` on the reference's own checkpoints, made into ones of training."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from bmojo_neuron.checkpoints.convert import convert
from bmojo_neuron.checkpoints.loading import load_checkpoint
from bmojo_neuron.checkpoints.reading import Tensors
from bmojo_neuron.cli import app
from tests.checkpoints.test_convert import assert_same_tensors, edit
from tests.checkpoints.test_golden import GOLDEN, NAMES, needs_golden
from tests.model.batches import uncached
from tests.model.conftest import random_ids

FUSED = {"*": "*DA", "M2": "M2*", "SWA": "SWA*", "GDN": "GDN*", "GKA": "GKA*", "BMF": "BMF*"}


def fused(golden: Path, path: Path, letters: dict[str, str]) -> Path:
    """A golden checkpoint with an attention more in each layer that `letters` fuses."""
    shutil.copytree(golden, path)
    given = json.loads((path / "config.json").read_text())
    pattern = given["hybrid_override_pattern"].split("-")
    tensors = load_file(path / "model.safetensors")
    for i, token in enumerate(pattern):
        extra = "dual_attn" if token == "*" else "self_attn"
        for x in "qkvo" if letters[token] != token else "":
            tensors[f"model.layers.{i}.{extra}.{x}_proj.weight"] = torch.randn(4, 4)
        pattern[i] = letters[token]
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    edit(path, hybrid_override_pattern="-".join(pattern), layer_types=pattern)
    return path


@needs_golden
@pytest.mark.parametrize("name", NAMES)
def test_unfused_it_is_the_checkpoint_without_the_attention_of_training(name, tmp_path):
    path = fused(GOLDEN / name, tmp_path / "fused", FUSED)
    with pytest.raises(ValueError, match="bmojo convert SRC DST --unfuse"):
        load_checkpoint(path)
    done = CliRunner().invoke(
        app, ["convert", str(path), str(tmp_path / "out"), "--to", "hybrid_qwen3", "--unfuse"]
    )
    assert done.exit_code == 0, done.output
    assert_same_tensors(GOLDEN / name, tmp_path / "out")
    convert(path, tmp_path / "ours", unfuse=True)
    ids = random_ids(1, 40)
    expected = uncached(load_checkpoint(GOLDEN / name), ids)
    torch.testing.assert_close(uncached(load_checkpoint(tmp_path / "ours"), ids), expected)


@needs_golden
def test_of_two_mixers_the_user_says_which_stays(tmp_path):
    path = fused(GOLDEN / "dev_gka", tmp_path / "fused", {"*": "*", "GKA": "GDN>GKA"})
    with pytest.raises(ValueError, match="write the one that shall stay, GDN or GKA"):
        load_checkpoint(path)
    with pytest.raises(ValueError, match="write the one that shall stay, GDN or GKA"):
        convert(path, tmp_path / "out", unfuse=True)
    given = json.loads((path / "config.json").read_text())
    pattern = given["hybrid_override_pattern"].replace("GDN>GKA", "GKA")
    edit(path, hybrid_override_pattern=pattern)
    convert(path, tmp_path / "out", "hybrid_qwen3", unfuse=True)
    assert_same_tensors(GOLDEN / "dev_gka", tmp_path / "out")


@needs_golden
@pytest.mark.parametrize("lost", ["k_proj", ""], ids=["one", "all"])
@pytest.mark.parametrize("token", ["SWA", "SWA*"])
def test_an_attention_that_is_not_whole_is_not_completed_from_another(token, lost, tmp_path):
    """A window's attention may have the names of full attention, but as a whole."""
    shutil.copytree(GOLDEN / "dev_swa", tmp_path / "fused")
    given = json.loads((tmp_path / "fused" / "config.json").read_text())
    pattern = given["hybrid_override_pattern"].split("-")
    i = pattern.index("SWA")
    pattern[i] = token
    edit(tmp_path / "fused", hybrid_override_pattern="-".join(pattern))
    tensors = load_file(tmp_path / "fused" / "model.safetensors")
    own = f"model.layers.{i}.swa."
    for name in [name for name in tensors if name.startswith(own)]:
        tensors[name.replace(".swa.", ".self_attn.")] = torch.ones_like(tensors[name])
        if lost in name:
            del tensors[name]
    save_file(tensors, tmp_path / "fused" / "model.safetensors")
    if token == "SWA" and not lost:  # the names of a layer-importance variant
        convert(tmp_path / "fused", tmp_path / "out", "hybrid_qwen3", unfuse=True)
        assert (Tensors(tmp_path / "out")[f"{own}k_proj.weight"] == 1).all()
        return
    with pytest.raises(ValueError, match=rf"missing \({own}k_proj.weight" if lost else own):
        convert(tmp_path / "fused", tmp_path / "out", unfuse=True)
    assert not (tmp_path / "out").exists()
