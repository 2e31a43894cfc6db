"""From a directory to a model and its tokenizer, whole or not at all."""

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import GENERATION_CONFIG_NAME, logging

from bmojo_neuron.causal_lm import BMojoForCausalLM
from bmojo_neuron.configuration import BMojoConfig

NAMED = 20  # names of tensors that a message lists at most

# Nothing comes from elsewhere, and nothing of what came is run.
_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def load_pretrained(path: Path) -> tuple[BMojoForCausalLM, PreTrainedTokenizerBase]:
    """Model (in eval mode) and tokenizer of a directory, for those who serve them as they are.

    Raises:
        ValueError: there is no such directory, one of its files is absent or broken, or it is not
            the checkpoint of just this model: tensors are missing, left over or of another shape
            (the message names them), or the tokenizer has more tokens than the model.
    """
    if not path.is_dir():
        raise ValueError(
            f"model_path: expected a directory with a model, got {str(path)!r}; `bmojo train` "
            "makes one"
        )
    with _expected("a config.json of a B'MOJO model", path):
        config = BMojoConfig.from_dict(_json_object(path / "config.json"))
    with _expected("a tokenizer (tokenizer.json)", path):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, **_LOCAL)
    if (path / GENERATION_CONFIG_NAME).exists():  # a broken one transformers ignores
        with _expected(f"a readable {GENERATION_CONFIG_NAME}", path):
            GenerationConfig.from_pretrained(path, **_LOCAL)
    with _expected("the weights of a B'MOJO model (model.safetensors)", path), _quiet():
        model, info = BMojoForCausalLM.from_pretrained(
            path,
            config=config,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # so that all are listed, not only the first
            output_loading_info=True,
            **_LOCAL,
        )
    shapes = [f"{name} {list(got)} for {list(own)}" for name, got, own in info["mismatched_keys"]]
    faults = {
        "missing": info["missing_keys"],
        "unexpected": info["unexpected_keys"],
        "of another shape": shapes,
    }
    found = [f"{len(names)} {what} ({_some(names)})" for what, names in faults.items() if names]
    if found:
        raise ValueError(
            f"model_path: expected each tensor of the model that config.json describes in "
            f"{str(path)!r}, got {', '.join(found)}; save all of it with save_pretrained"
        )
    check_tokenizer(model, tokenizer)
    return model.eval(), tokenizer


def check_tokenizer(model: BMojoForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    """Whether the model knows every token.

    Raises:
        ValueError: the tokenizer has more.
    """
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"tokenizer: expected at most the model's {model.config.vocab_size} tokens, got "
            f"{len(tokenizer)}; load both from one directory"
        )


@contextmanager
def _expected(what: str, path: Path) -> Iterator[None]:
    """Broken files make the libraries that read them raise anything, down to a bare Exception."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"model_path: expected {what} in {str(path)!r}, got: {reason}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own table of what is missing, nor its bar."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _json_object(file: Path) -> dict[str, Any]:
    given = json.loads(file.read_bytes())
    if not isinstance(given, dict):
        raise ValueError(f"{file.name}: expected a JSON object, got {type(given).__name__}")
    return given


def _some(names: Collection[str]) -> str:
    named = sorted(names)
    more = [f"and {len(named) - NAMED} more"] if len(named) > NAMED else []
    return ", ".join(named[:NAMED] + more)
