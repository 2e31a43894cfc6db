"""A directory is loaded as what it says it is, or refused in one line that names what is wrong."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from bmojo_neuron import BMojoForCausalLM, BMojoForSequenceClassification, BMojoModel
from bmojo_neuron.cli import app
from bmojo_neuron.loading import load_pretrained
from serving.app import create_app
from serving.settings import Settings
from tests.server.conftest import byte_tokenizer, tiny_model

BETA = "model.layers.0.layer.eidetic.score_bias"
GATE = "model.layers.1.mlp.gate_proj.weight"
Breakage = Callable[[Path], None]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save(tmp_path)
    return tmp_path


def save(path: Path, **how: object) -> None:
    tiny_model().save_pretrained(path, **how)
    byte_tokenizer().save_pretrained(path)


def weights(change: Callable[[dict[str, Tensor]], object]) -> Breakage:
    def apply(path: Path) -> None:
        tensors = load_file(path / "model.safetensors")
        change(tensors)
        save_file(tensors, path / "model.safetensors", {"format": "pt"})

    return apply


def written(name: str, content: bytes) -> Breakage:
    return lambda path: (path / name).write_bytes(content) and None


def field(name: str, value: object) -> Breakage:
    def apply(path: Path) -> None:
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | {name: value}))

    return apply


def llama(path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=258, num_attention_heads=2, **sizes)
    LlamaForCausalLM(config).save_pretrained(path)


def gpt2(path: Path) -> None:
    config = GPT2Config(vocab_size=258, n_embd=32, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(path)


def llama_in_disguise(path: Path) -> None:
    ours = (path / "config.json").read_bytes()
    llama(path)
    (path / "config.json").write_bytes(ours)


def truncated(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def without_tokenizer(path: Path) -> None:
    for file in path.glob("tokenizer*"):
        file.unlink()


def sharded(path: Path) -> list[Path]:
    (path / "model.safetensors").unlink()
    save(path, max_shard_size="40KB")
    shards = sorted(path.glob("model-*.safetensors"))
    assert len(shards) > 2
    return shards


def bad_index(path: Path) -> None:
    sharded(path)
    (path / "model.safetensors.index.json").write_text("{")


def pickled(path: Path) -> None:
    (path / "model.safetensors").unlink()
    torch.save(tiny_model().state_dict(), path / "pytorch_model.bin")


def larger_tokenizer(path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens("<one more>")
    tokenizer.save_pretrained(path)


BROKEN: dict[str, tuple[Breakage, tuple[str, ...]]] = {
    "foreign": (gpt2, ("model_type: expected one of bmojo, ", "got 'gpt2'")),
    "foreign_weights": (
        llama_in_disguise,
        (BETA, "unexpected (", "model.layers.0.self_attn.q_proj.weight", "and "),
    ),
    "missing": (weights(lambda t: t.pop(BETA)), (f"1 missing ({BETA})",)),
    "embedding": (
        weights(lambda t: t.pop("model.embed_tokens.weight")),
        ("model.embed_tokens.weight", "missing ("),
    ),
    "two_missing": (
        weights(lambda t: (t.pop(BETA), t.pop(GATE))),
        (f"2 missing ({BETA}, {GATE})",),
    ),
    "shape": (
        weights(lambda t: t.update({GATE: torch.zeros(3, 4)})),
        (f"1 of another shape ({GATE} [3, 4] for [64, 32])",),
    ),
    "unexpected": (
        weights(lambda t: t.update({"model.extra": torch.zeros(1), "alpha": torch.zeros(1)})),
        ("2 unexpected (alpha, model.extra)",),
    ),
    "all_three": (
        weights(lambda t: (t.pop(BETA), t.update({GATE: torch.zeros(3), "x": torch.zeros(1)}))),
        ("1 missing (", "1 unexpected (", "1 of another shape ("),
    ),
    "truncated": (truncated, ("model.safetensors",)),
    "corrupt": (written("model.safetensors", b"\xff" * 5000), ("model.safetensors",)),
    "empty": (written("model.safetensors", b""), ("model.safetensors",)),
    "no_weights": (lambda p: (p / "model.safetensors").unlink(), ("model.safetensors",)),
    "pickle": (pickled, ("model.safetensors",)),
    "lost_shard": (lambda p: sharded(p)[1].unlink(), ("model-00002-of-",)),
    "bad_index": (
        bad_index,
        ("model.safetensors",),
    ),
    "no_config": (lambda p: (p / "config.json").unlink(), ("config.json", "No such file")),
    "config_text": (written("config.json", b"window = 16"), ("config.json", "line 1 column 1")),
    "config_bytes": (written("config.json", b"\xff\xfe\xfd"), ("config.json",)),
    "config_list": (written("config.json", b"[1]"), ("config.json", "a JSON object", "list")),
    "config_null": (written("config.json", b"null"), ("config.json", "a JSON object")),
    "config_field": (field("window", -1), ("window: expected an integer of at least 1, got -1",)),
    "config_typo": (field("windw", 16), ("windw", "did you mean window?")),
    "config_dtype": (field("dtype", "float99"), ("config.json", "float99")),
    "config_labels": (field("id2label", 7), ("config.json", "items")),
    "generation_config": (written("generation_config.json", b"{"), ("generation_config.json",)),
    "half_a_tokenizer": (
        lambda p: (p / "tokenizer.json").unlink(),
        ("a tokenizer (tokenizer.json)",),
    ),
    "tokenizer_text": (written("tokenizer.json", b"no"), ("a tokenizer (tokenizer.json)",)),
    "tokenizer_list": (written("tokenizer.json", b"[]"), ("a tokenizer (tokenizer.json)",)),
    "larger_tokenizer": (
        larger_tokenizer,
        ("tokenizer: expected at most the model's 258 tokens, got 259",),
    ),
}


def bmojo(*arguments: bytes) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from bmojo_neuron.cli import app; app()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_checkpoint_is_refused_by_both_doors(what: str, directory: Path) -> None:
    breaks, named = BROKEN[what]
    breaks(directory)
    with pytest.raises(ValueError, match=r"^(model_path|tokenizer): expected ") as refused:
        create_app(Settings(model_path=directory))
    message = " ".join(str(refused.value).split())
    for part in named:
        assert part in message
    result = CliRunner().invoke(app, ["generate", "--model", str(directory), "--prompt", "a"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"bmojo: {message}\n"


def test_a_foreign_checkpoint_is_not_served(directory: Path) -> None:
    llama_in_disguise(directory)
    done = bmojo(b"serve", bytes(directory), b"--port", b"0")
    assert done.returncode == 2
    assert done.stderr.startswith("bmojo: model_path: expected a config.json and tensors that ")
    assert done.stderr.count("\n") == 1
    assert "model.layers.0.self_attn.q_proj.weight" in done.stderr


@pytest.mark.parametrize("shards", [False, True])
def test_a_whole_checkpoint_is_loaded_bit_for_bit(directory: Path, shards: bool) -> None:
    if shards:
        sharded(directory)
    model, tokenizer = load_pretrained(directory)
    assert tokenizer is not None
    assert not model.training
    assert len(tokenizer) == 258
    plain = tiny_model().state_dict()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in model.state_dict().items())


def test_a_directory_without_a_tokenizer_is_a_model_for_token_ids(directory: Path) -> None:
    without_tokenizer(directory)
    model, tokenizer = load_pretrained(directory)
    assert tokenizer is None
    plain = tiny_model().state_dict()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in model.state_dict().items())


def test_generate_says_that_it_needs_a_tokenizer_and_what_does_not(directory: Path) -> None:
    without_tokenizer(directory)
    result = CliRunner().invoke(app, ["generate", "--model", str(directory), "--prompt", "a"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("bmojo: --model: expected a tokenizer to read the prompt with")
    assert result.stderr.endswith("or send prompt_token_ids to `bmojo serve`\n")


def test_a_prompt_that_is_not_utf8_is_refused(directory: Path) -> None:
    done = bmojo(b"generate", b"--model", bytes(directory), b"--prompt", b"a\xff")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == r"bmojo: --prompt: expected UTF-8, got 'a\udcff'" + "\n"


@pytest.mark.parametrize("kind", [BMojoForCausalLM, BMojoForSequenceClassification, BMojoModel])
def test_from_pretrained_refuses_a_body_with_holes(kind: type, directory: Path) -> None:
    weights(lambda t: (t.pop(BETA), t.pop(GATE)))(directory)
    names = [
        name if kind is not BMojoModel else name.removeprefix("model.") for name in (BETA, GATE)
    ]
    with pytest.raises(ValueError, match=f"without {', '.join(names)}; with output_loading_info"):
        kind.from_pretrained(directory)
    _, info = kind.from_pretrained(directory, output_loading_info=True)
    assert set(names) <= set(info["missing_keys"])


@pytest.mark.parametrize("tied", [True, False])
def test_a_new_head_on_a_whole_body_is_drawn(tmp_path: Path, tied: bool) -> None:
    config = tiny_model().config
    config.tie_word_embeddings = tied
    model = BMojoForCausalLM(config)
    body = model.model.state_dict()
    model.save_pretrained(tmp_path / "language")
    model.model.save_pretrained(tmp_path / "base")
    classifier = BMojoForSequenceClassification.from_pretrained(tmp_path / "language", num_labels=3)
    language = BMojoForCausalLM.from_pretrained(tmp_path / "base")
    for loaded in (classifier.model, language.model):
        assert all(torch.equal(loaded.state_dict()[name], body[name]) for name in body)
    assert classifier.score.weight.shape == (3, 32)
    assert torch.equal(language.lm_head.weight, body["embed_tokens.weight"]) == tied
