"""`bmojo convert` and `bmojo inspect`: there and back is the identity; what is broken is named."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from bmojo_neuron import BMojoForCausalLM
from bmojo_neuron.checkpoints.convert import convert
from bmojo_neuron.checkpoints.hybrid_qwen3 import read_config, write_config
from bmojo_neuron.checkpoints.loading import Checkpoint, load_checkpoint
from bmojo_neuron.checkpoints.reading import Tensors
from bmojo_neuron.cli import app
from bmojo_neuron.inspect import inspect
from bmojo_neuron.model import default_model_path
from bmojo_neuron.state import state_bytes
from tests.model.batches import uncached
from tests.model.conftest import random_ids, tiny_config, tiny_model

WRITABLE = {
    "tied": {"block_types": ["mamba2", "attention", "bmojo_f"]},
    "untied": {
        "block_types": ["bmojo_f", "sliding_attention", "mamba2"],
        "tie_word_embeddings": False,
        "tie_fading_projections": False,
        "mamba2_qk_norm": False,
        "mamba2_rope": True,
        "sliding_window": 5,
    },
}


@pytest.fixture(params=WRITABLE)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    changes = {"num_hidden_layers": 3, "eidetic_size": 0, **WRITABLE[request.param]}
    model = tiny_model("bmojo_f", **changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path / "ours")
    return tmp_path / "ours"


def assert_same_tensors(a: Path, b: Path) -> None:
    first, second = Tensors(a), Tensors(b)
    assert first.shapes == second.shapes
    for name in first.shapes:
        assert torch.equal(first[name], second[name]), name


@torch.no_grad()
@pytest.mark.parametrize("shard", [10**9, 20_000])
def test_there_and_back_is_the_identity(saved, shard, tmp_path):
    convert(saved, tmp_path / "theirs", "hybrid_qwen3", max_shard_size=shard)
    convert(tmp_path / "theirs", tmp_path / "back")
    assert_same_tensors(saved, tmp_path / "back")
    assert (len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1) == (shard < 10**9)
    ids = random_ids(2, 30)
    expected = uncached(BMojoForCausalLM.from_pretrained(saved), ids)
    for form in ("theirs", "back"):
        model = BMojoForCausalLM.from_pretrained(tmp_path / form)
        assert torch.equal(uncached(model, ids), expected), form


def test_a_dtype_is_that_of_every_weight(saved, tmp_path):
    convert(saved, tmp_path / "half", dtype=torch.bfloat16)
    half, whole = Tensors(tmp_path / "half"), Tensors(saved)
    for name in whole.shapes:
        assert torch.equal(half[name], whole[name].to(torch.bfloat16)), name
    assert BMojoForCausalLM.from_pretrained(tmp_path / "half").dtype == torch.bfloat16


def test_what_is_no_weight_goes_along(saved, tmp_path):
    for name in ("tokenizer.json", "chat_template.jinja", "LICENSE"):
        (saved / name).write_text(name)
    (saved / "modeling_evil.py").write_text("raise SystemExit")
    convert(saved, tmp_path / "new")
    copied = {file.name for file in (tmp_path / "new").iterdir()}
    assert {"tokenizer.json", "chat_template.jinja", "LICENSE", "generation_config.json"} <= copied
    assert "modeling_evil.py" not in copied


def test_a_format_that_cannot_hold_a_model_says_so_and_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"block_types: expected only .*, got bmojo"):
        convert(default_model_path(), tmp_path / "new", "hybrid_qwen3")
    assert not (tmp_path / "new").exists()


def test_a_target_that_holds_something_is_left_alone(saved, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    with pytest.raises(ValueError, match="target: expected a new or empty directory"):
        convert(saved, tmp_path / "full")
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["mine"]


# Fused for training; see test_unfuse.py too


def test_unfusing_leaves_out_nothing_else(theirs, tmp_path):
    convert(theirs, tmp_path / "same", "hybrid_qwen3", unfuse=True)
    assert_same_tensors(theirs, tmp_path / "same")
    tensors = load_file(theirs / "model.safetensors")
    tensors["model.layers.0.no_such.weight"] = torch.zeros(2)
    save_file(tensors, theirs / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 unexpected \(model.layers.0.no_such.weight\)"):
        convert(theirs, tmp_path / "out", unfuse=True)
    assert not (tmp_path / "out").exists()


def test_only_hybrid_qwen3_is_unfused(saved, tmp_path):
    with pytest.raises(ValueError, match=r"unfuse: expected a hybrid_qwen3 directory.*got 'bmojo'"):
        convert(saved, tmp_path / "out", unfuse=True)


# Several at once, and what lies about


def test_nothing_beside_the_target_is_touched(saved, tmp_path):
    beside = tmp_path / "out.part"
    beside.mkdir()
    (beside / "thesis.txt").write_text("precious")
    convert(saved, tmp_path / "out")
    assert (beside / "thesis.txt").read_text() == "precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ours", "out", "out.part"]


def test_of_two_that_write_one_target_one_wins_whole(saved, tmp_path):
    """The second starts and ends while the first is at its tensors."""
    read, late = Checkpoint.read, []

    def slow(self, name, shape):
        if not late:
            late.append(name)
            convert(saved, tmp_path / "out", "hybrid_qwen3")
        return read(self, name, shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "read", slow)
        with pytest.raises(ValueError, match="which something else filled meanwhile"):
            convert(saved, tmp_path / "out")
    assert load_checkpoint(tmp_path / "out").config.block_types
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ours", "out"]


def test_a_link_to_an_empty_directory_is_followed(saved, tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    convert(saved, tmp_path / "link")
    assert_same_tensors(saved, tmp_path / "real")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    convert(saved, Path())
    assert_same_tensors(saved, tmp_path / "here")


def test_named_chat_templates_go_along(saved, tmp_path):
    (saved / "additional_chat_templates").mkdir()
    (saved / "additional_chat_templates" / "rag.jinja").write_text("{{ x }}")
    convert(saved, tmp_path / "out")
    assert (tmp_path / "out" / "additional_chat_templates" / "rag.jinja").read_text() == "{{ x }}"


# What older files hold besides


def test_a_tied_head_that_is_stored_too_must_equal_the_embedding(theirs):
    file = theirs / "model.safetensors"
    tensors = load_file(file)
    if "lm_head.weight" in tensors:  # not tied: it is a head of its own
        assert torch.equal(load_checkpoint(theirs).lm_head.weight, tensors["lm_head.weight"])
        return
    embedding = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": embedding.clone()}, file, metadata={"format": "pt"})
    same = load_checkpoint(theirs)
    assert torch.equal(same.lm_head.weight, embedding)
    assert same.lm_head.weight is same.model.embed_tokens.weight
    save_file(tensors | {"lm_head.weight": embedding + 1}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 unexpected \(lm_head\.weight\)"):
        load_checkpoint(theirs)


def test_tables_of_rotary_frequencies_are_left_out(theirs):
    file = theirs / "model.safetensors"
    tensors = load_file(file)
    table = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file(tensors | table, file, metadata={"format": "pt"})
    load_checkpoint(theirs)


def test_the_older_theta_counts_where_the_newer_key_leaves_it_out():
    given = write_config(tiny_config("bmojo_f", eidetic_size=0))
    given |= {"rope_parameters": {"rope_type": "default"}, "rope_theta": 5e6}
    assert read_config(given).rope_parameters["rope_theta"] == 5e6


@pytest.mark.parametrize("where", ["bmojo_config", "swa_config"])
def test_an_unknown_key_of_a_window_is_refused(where):
    base = {"block_types": ["bmojo_f", "sliding_attention"], "num_hidden_layers": 2}
    given = write_config(tiny_config("bmojo_f", eidetic_size=0, sliding_window=5, **base))
    given[where]["sinks"] = 4
    with pytest.raises(ValueError, match=rf"{where}\.sinks: expected one of"):
        read_config(given)


# What is broken


def edit(directory: Path, **changes) -> None:
    given = json.loads((directory / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps(given))


@pytest.fixture
def theirs(saved: Path, tmp_path: Path) -> Path:
    convert(saved, tmp_path / "theirs", "hybrid_qwen3")
    return tmp_path / "theirs"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hybrid_override_pattern": "M2-*"}, r"hybrid_override_pattern: .*\(3\) tokens.*got 2"),
        (
            {"hybrid_override_pattern": "M2-*-XX"},
            "hybrid_override_pattern: expected tokens of .*XX",
        ),
        (
            {"hybrid_override_pattern": "M2*-*DA-*"},
            r"one kind each, got \*DA, M2\*.*bmojo convert SRC DST --unfuse",
        ),
        ({"hybrid_override_pattern": None}, "hybrid_override_pattern: expected tokens joined"),
        ({"hidden_act": "gelu"}, "hidden_act: expected 'silu', got 'gelu'"),
        ({"no_such_key": 1}, "no_such_key: expected a key of hybrid_qwen3"),
        ({"model_type": "gpt2"}, "model_type: expected one of bmojo, hybrid_qwen3.*got 'gpt2'"),
        ({"auto_map": {"AutoConfig": "x.Y"}}, "auto_map: expected none, as no code"),
        ({"vocab_size": 51}, r"of another shape \(.*model.embed_tokens.weight \[50, 32\] for \[51"),
    ],
    ids=str,
)
def test_a_configuration_that_cannot_be_honoured_is_refused_by_name(theirs, changes, message):
    edit(theirs, **changes)
    with pytest.raises(ValueError, match=message):
        BMojoForCausalLM.from_pretrained(theirs)


@pytest.mark.parametrize("size", [0, -3, 2.5, None])
def test_a_window_of_no_size_is_refused(theirs, size):
    edit(theirs, bmojo_config={"window_size": size})
    with pytest.raises(
        ValueError, match=r"bmojo_config\.window_size: expected an integer of at least"
    ):
        load_checkpoint(theirs)


def test_tensors_that_are_missing_or_left_over_are_named(theirs):
    file = theirs / "model.safetensors"
    tensors = load_file(file)
    tensors["stray"] = tensors.pop("model.norm.weight")
    save_file(tensors, file)
    with pytest.raises(
        ValueError, match=r"1 missing \(model.norm.weight\), 1 unexpected \(stray\)"
    ):
        load_checkpoint(theirs)


def test_a_transposed_tensor_is_not_taken_for_another_shape(theirs):
    file = theirs / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.mlp.gate_proj.weight"
    tensors[name] = tensors[name].t().contiguous()
    save_file(tensors, file)
    with pytest.raises(ValueError, match=rf"{name} \[32, 48\] for \[48, 32\]"):
        load_checkpoint(theirs)


@pytest.mark.parametrize("keep", [0, 7, 100, -10])
def test_a_truncated_file_is_refused(theirs, keep):
    file = theirs / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model.safetensors: expected a whole safetensors file"):
        load_checkpoint(theirs)


def test_an_index_that_names_what_is_not_there_is_refused(saved, tmp_path):
    convert(saved, tmp_path / "many", "hybrid_qwen3", max_shard_size=20_000)
    index = tmp_path / "many" / "model.safetensors.index.json"
    given = json.loads(index.read_text())
    first = next(iter(given["weight_map"].values()))
    given["weight_map"]["stray"] = first
    index.write_text(json.dumps(given))
    with pytest.raises(ValueError, match="names tensors that its files lack: stray"):
        load_checkpoint(tmp_path / "many")
    given["weight_map"]["stray"] = "../../etc/passwd"
    index.write_text(json.dumps(given))
    with pytest.raises(ValueError, match="expected a weight_map"):
        load_checkpoint(tmp_path / "many")
    del given["weight_map"]["stray"]
    index.write_text(json.dumps(given))
    (tmp_path / "many" / first).unlink()
    with pytest.raises(ValueError, match=first):
        load_checkpoint(tmp_path / "many")


def test_an_index_must_say_in_which_one_file_each_tensor_is(saved, tmp_path):
    convert(saved, tmp_path / "many", "hybrid_qwen3", max_shard_size=20_000)
    index, norm = tmp_path / "many" / "model.safetensors.index.json", "model.norm.weight"
    whole = json.loads(index.read_text())
    files = sorted(set(whole["weight_map"].values()))
    other = next(file for file in files if file != whole["weight_map"][norm])

    def expect(message: str, weight_map: dict[str, str]) -> None:
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(ValueError, match=f"{message}: {norm}$"):
            load_checkpoint(tmp_path / "many")

    absent = {name: file for name, file in whole["weight_map"].items() if name != norm}
    expect("names no file for tensors that its files hold", absent)
    expect("names the wrong file for", whole["weight_map"] | {norm: other})
    tensors = load_file(tmp_path / "many" / other)
    save_file(tensors | {norm: torch.zeros(32)}, tmp_path / "many" / other)
    expect("names one file for tensors that several hold", whole["weight_map"])


def test_a_pickle_is_refused_with_the_way_out(theirs):
    (theirs / "model.safetensors").rename(theirs / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"got only pytorch_model.bin, which can run code.*save_pre"
    ):
        load_checkpoint(theirs)


# The command line


def test_inspect_counts_what_a_session_really_holds(saved):
    report = inspect(saved, tokens=512)
    model = BMojoForCausalLM.from_pretrained(saved)
    assert report.parameters == sum(p.numel() for p in model.parameters())
    assert report.session_bytes[512] == state_bytes(model.new_state(1, 512))
    own = sum(layer.state_bytes for layer in report.layers)
    assert own == state_bytes(model.new_state(1, 512)) - 4  # the counter is no layer's
    assert report.transformer_bytes[32_768] > report.transformer_bytes[4_096]


def test_the_commands_work_on_a_directory_and_name_what_is_wrong(theirs, tmp_path):
    run = CliRunner().invoke
    done = run(app, ["convert", str(theirs), str(tmp_path / "c"), "--dtype", "bfloat16"])
    assert done.exit_code == 0, done.output
    told = json.loads(run(app, ["inspect", str(tmp_path / "c"), "--json"]).stdout)
    assert told["dtype"] == "bfloat16"
    assert "bmojo_f" in run(app, ["inspect", str(theirs)]).stdout
    for bad in (["convert", str(theirs), str(theirs)], ["inspect", str(tmp_path)]):
        done = subprocess.run(
            [sys.executable, "-c", "from bmojo_neuron.cli import app; app()", *bad],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        assert done.stderr.startswith("bmojo: ")
        assert done.stderr.count("\n") == 1
