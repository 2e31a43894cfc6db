"""The command line: help everywhere, errors on stderr with the right exit code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoTokenizer
from typer.testing import CliRunner, Result

from bmojo_neuron import BMojoConfig, BMojoForCausalLM, __version__
from bmojo_neuron.cli import app
from bmojo_neuron.training.recipe import RECIPES, Recipe
from serving.schemas import GenerateRequest
from tests.model.pieces import BYTES, PIECES, sentencepiece

ROOT = Path(__file__).parents[2]


def bmojo(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_version() -> None:
    assert bmojo("--version").stdout == f"bmojo {__version__}\n"


@pytest.mark.parametrize(
    "command", [(), ("generate",), ("serve",), ("train",), ("doctor",), ("kernels",)]
)
def test_help(command: tuple[str, ...]) -> None:
    result = bmojo(*command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["generate"], "--prompt"),
        (["generate", "--prompt", ""], "--prompt"),
        (["generate", "--prompt", "x", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["generate", "--prompt", "x", "--temperature", "-1"], "--temperature"),
        (["generate", "--prompt", "x", "--temperature", "1", "--top-p", "0"], "--top-p"),
        (["generate", "--prompt", "x", "--model", "no-such-model"], "no-such-model"),
        (["serve", "no-such-model"], "no-such-model"),
        (["serve", "--port", "70000"], "--port"),
        (["train", "--recipe", "no-such-recipe"], "no-such-recipe"),
        (["train"], "--recipe or --init: expected one of them, got none"),
        (["train", "--recipe", "default", "--init", "x"], "expected one of them, got both"),
        (["train", "--init", "x"], "--text"),
        (["train", "--init", "no-such-model", "--text", "README.md"], "no-such-model"),
        (["train", "--init", "x", "--text", "y", "--steps", "0"], "--steps"),
        (["train", "--init", "x", "--text", "y", "--length", "1"], "--length"),
        (["train", "--init", "x", "--text", "README.md", "--lr", "nan"], "lr: expected"),
        (["train", "--init", "x", "--text", "y", "--install"], "--install: not taken with --init"),
        (["sing"], "sing"),
    ],
)
def test_a_bad_argument_is_named_and_exits_with_2(arguments: list[str], named: str) -> None:
    result = bmojo(*arguments)
    assert result.exit_code == 2
    assert named in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("seed", "-1"), ("seed", str(2**63))),
        *(("temperature", "-0.1"), ("temperature", "2.1")),
        *(("temperature", "inf"), ("temperature", "nan")),
        *(("top-p", "0"), ("top-p", "1.1"), ("top-p", "nan")),
    ],
)
@pytest.mark.parametrize("sampling", [[], ["--temperature", "1"]])
def test_sampling_has_the_limits_of_the_server(
    option: str, value: str, sampling: list[str]
) -> None:
    result = bmojo("generate", "--prompt", "x", *sampling, f"--{option}", value)
    assert result.exit_code == 2
    assert f"--{option}" in result.stderr
    field, number = option.replace("-", "_"), int(value) if option == "seed" else float(value)
    with pytest.raises(ValidationError, match=field):
        GenerateRequest.model_validate({"prompt": "x", field: number})


def test_serve_without_its_extra_says_what_brings_it() -> None:
    code = (
        "import sys; sys.modules['fastapi'] = None; sys.argv = ['bmojo', 'serve'];"
        "from bmojo_neuron.cli import app; app()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == (
        "bmojo: fastapi is not installed; in the repository, pip install '.[serve]' brings it\n"
    )


class FakeTraining:
    """Two steps, one a minute."""

    def __init__(self, recipe: Recipe, out: Path, resume: bool) -> None:
        assert recipe is RECIPES["default"]
        self.step, self.steps = int(resume), [1, 2]

    def run(self, max_minutes: float | None) -> None:
        self.step = min(2, self.step + int(2 if max_minutes is None else max_minutes))


@pytest.mark.parametrize(
    ("options", "ends"),
    [
        ([], True),
        (["--max-minutes", "1"], True),
        (["--max-minutes", "1", "--no-resume"], False),
        (["--install"], True),
        (["--install", "--max-minutes", "1", "--no-resume"], False),
    ],
)
def test_train_reports_and_installs_when_it_is_through(
    options: list[str], ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed: list[Path] = []
    report = {"perplexity": 10.5}
    release = "bmojo_neuron.training.release"
    monkeypatch.setattr("bmojo_neuron.training.loop.Training", FakeTraining)
    monkeypatch.setattr(f"{release}.release", lambda training, name: report | {"recipe": name})
    monkeypatch.setattr(f"{release}.install", lambda run: installed.append(run) or run)
    result = bmojo("train", "--recipe", "default", "--out", str(tmp_path), *options)
    asked = "--install" in options
    assert result.exit_code == (1 if asked and not ends else 0), result.stderr
    assert ("10.5" in result.stdout) == ends
    assert installed == ([tmp_path] if asked and ends else [])
    assert ("step 1 of 2" in result.stderr) == (asked and not ends)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--text", "x"), ("--distill", "x"), ("--steps", "1"), ("--batch", "1")),
        *(("--length", "2"), ("--lr", "1"), ("--seed", "0"), ("--parse-special-tokens", None)),
    ],
)
def test_a_recipe_takes_no_option_of_fine_tuning(option: str, value: str | None) -> None:
    result = bmojo("train", "--recipe", "default", option, *([value] if value else []))
    assert result.exit_code == 2
    assert result.stderr == f"bmojo: {option}: not taken with --recipe; leave it out\n"


def test_a_fine_tune_without_its_text_says_so(tiny_model: Path, tmp_path: Path) -> None:
    text = str(tmp_path / "absent.txt")
    result = bmojo("train", "--init", str(tiny_model), "--text", text, "--out", str(tmp_path))
    assert result.exit_code == 1
    assert result.stderr == f"bmojo: text: expected a file, found none at {text!r}\n"


def test_train_fine_tunes_stops_goes_on_and_leaves_a_model(
    tiny_model: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("A line of text to learn from.\n" * 60)
    asked = [
        "train",
        "--init",
        str(tiny_model),
        "--text",
        str(text),
        "--out",
        str(tmp_path / "run"),
    ]
    asked += ["--steps", "3", "--batch", "2", "--length", "48", "--lr", "0.01", "--seed", "7"]
    stopped = bmojo(*asked, "--max-minutes", "0")
    assert (stopped.exit_code, stopped.stdout) == (0, ""), stopped.stderr
    done = bmojo(*asked)
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report.items() >= {"steps": 3, "batch": 2, "length": 48, "lr": 0.01, "seed": 7}.items()
    assert report["perplexity"] < report["perplexity_before"]
    said = bmojo("generate", "--model", str(tmp_path / "run" / "model"), "--prompt", "A line")
    assert said.exit_code == 0, said.stderr


def test_kernels_lists_one_per_file_and_none_is_said() -> None:
    files = sorted(path.stem for path in (ROOT / "nki_kernels").glob("*.py"))
    files.remove("__init__")
    *listed, hint = bmojo("kernels").stdout.splitlines()
    assert listed == (files or ["no NKI kernels yet: every op runs its PyTorch reference"])
    assert hint == "to run any kernel on a CPU: python -m nki_kernels.simulator --help"


def test_doctor_prints_json() -> None:
    result = bmojo("doctor", "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == (0 if report["usable"] else 1)
    assert [check["name"] for check in report["backends"]] == [
        "torch (cpu)",
        "compiled steps (cpu)",
        "triton (cuda)",
        "nki (neuron)",
    ]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a byte-level tokenizer that has no merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("tiny")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(path)
    config = BMojoConfig.bmojo(
        vocab_size=256,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        window=16,
        eidetic_size=16,
    )
    BMojoForCausalLM(config).save_pretrained(path)
    return path


def test_generate_prints_the_continuation_alone(tiny_model: Path) -> None:
    asked = [
        "generate",
        "--model",
        str(tiny_model),
        "--prompt",
        "a prompt",
        "--max-new-tokens",
        "8",
    ]
    streamed, whole = bmojo(*asked), bmojo(*asked, "--no-stream")
    assert streamed.exit_code == whole.exit_code == 0, streamed.stderr + whole.stderr
    assert streamed.stdout == whole.stdout
    assert "a prompt" not in streamed.stdout
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = BMojoForCausalLM.from_pretrained(tiny_model).eval()
    inputs = tokenizer("a prompt", return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    continuation = tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :])
    assert whole.stdout == f"{continuation}\n"


@pytest.fixture(scope="module")
def piece_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a tokenizer as Llama's."""
    path = tmp_path_factory.mktemp("pieces")
    tokenizer = sentencepiece("bpe")
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "window": 16}
    model = BMojoForCausalLM(BMojoConfig.bmojo_f(vocab_size=len(tokenizer), **sizes))
    with (
        torch.no_grad()
    ):  # all tokens alike: spaces, line ends, control tokens, but no half letters
        model.lm_head.weight.zero_()
    model.generation_config.suppress_tokens = [PIECES.index(byte) for byte in BYTES[128:]]
    model.save_pretrained(path)
    return path


@pytest.mark.parametrize("seed", range(2))
def test_the_first_space_of_a_continuation_is_kept(piece_model: Path, seed: int) -> None:
    """And a stream prints what the whole would, line ends and special tokens included."""
    tokenizer = AutoTokenizer.from_pretrained(piece_model)
    model = BMojoForCausalLM.from_pretrained(piece_model).eval()
    prompt = tokenizer("a", return_tensors="pt")
    how = {"max_new_tokens": 120, "do_sample": True, "temperature": 1.0, "top_k": 0}
    torch.manual_seed(seed)
    tokens = model.generate(**prompt, **how)[0].tolist()
    whole = tokenizer.decode(tokens, skip_special_tokens=True)
    assert whole.startswith("a")
    asked = ("generate", "--model", str(piece_model), "--prompt", "a", f"--seed={seed}")
    for option in ("--stream", "--no-stream"):
        said = bmojo(*asked, "--max-new-tokens=120", "--temperature=1", option)
        assert said.stdout_bytes.decode() == whole[1:] + "\n"


def test_names_of_special_tokens_in_a_prompt_are_text(
    piece_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[list[int]] = []
    generate = BMojoForCausalLM.generate

    def record(model: BMojoForCausalLM, inputs: torch.Tensor, **how: object) -> torch.Tensor:
        fed.append(inputs[0].tolist())
        return generate(model, inputs, **how)

    monkeypatch.setattr(BMojoForCausalLM, "generate", record)
    asked = ("generate", "--model", str(piece_model), "--prompt", "a</s>", "--max-new-tokens=1")
    assert bmojo(*asked).exit_code == bmojo(*asked, "--parse-special-tokens").exit_code == 0
    assert fed == [
        [PIECES.index(piece) for piece in ("▁a", *"</s>")],
        [PIECES.index(piece) for piece in ("▁a", "</s>")],
    ]


def test_a_seed_makes_sampling_repeatable(tiny_model: Path) -> None:
    def sample(seed: int) -> str:
        result = bmojo(
            *("generate", "--model", str(tiny_model), "--prompt", "a", "--max-new-tokens", "24"),
            *("--temperature", "1.5", "--top-p", "0.99", "--seed", str(seed)),
        )
        assert result.exit_code == 0, result.stderr
        return result.stdout

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_the_largest_values_of_sampling(tiny_model: Path) -> None:
    largest = {"temperature": 2.0, "top_p": 1.0, "seed": 2**63 - 1}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in largest.items()]
    prompt = ("--prompt", "a", "--max-new-tokens", "2")
    result = bmojo("generate", "--model", str(tiny_model), *prompt, *options)
    assert result.exit_code == 0, result.stderr
    GenerateRequest.model_validate({"prompt": "a", **largest})


def test_the_documented_help_is_fresh(tmp_path: Path) -> None:
    page = tmp_path / "cli.md"
    command = ["bmojo_neuron.cli", "utils", "docs", "--name", "bmojo", "--title", "Command line"]
    subprocess.run(
        [sys.executable, "-m", "typer", *command, "--output", str(page)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    committed = (ROOT / "docs" / "cli.md").read_text()
    assert page.read_text() == committed, "docs/cli.md is stale; run `make docs/cli.md`"
