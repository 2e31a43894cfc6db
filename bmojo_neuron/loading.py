"""From a directory to a model and its tokenizer, whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import GENERATION_CONFIG_NAME

from bmojo_neuron.causal_lm import BMojoForCausalLM
from bmojo_neuron.checkpoints.loading import fill, open_checkpoint

# Nothing comes from elsewhere, and nothing of what came is run.
_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
_OF_TOKENIZERS = (  # one of these, and a directory means to have a tokenizer
    *("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken", "tekken.json"),
    *("special_tokens_map.json", "added_tokens.json"),
)


def load_pretrained(path: Path) -> tuple[BMojoForCausalLM, PreTrainedTokenizerBase | None]:
    """Model (in eval mode) and tokenizer of a directory, for those who serve them as they are.

    The tokenizer is None if the directory has no file of one: the model then takes token ids only.

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
    with _expected("a config.json and tensors that belong together", path):
        checkpoint = open_checkpoint(path)
    tokenizer: PreTrainedTokenizerBase | None = None
    if any(file for pattern in _OF_TOKENIZERS for file in path.glob(pattern)):
        with _expected("a tokenizer (tokenizer.json)", path):
            tokenizer = AutoTokenizer.from_pretrained(path, **_LOCAL)
    if (path / GENERATION_CONFIG_NAME).exists():  # a broken one transformers ignores
        with _expected(f"a readable {GENERATION_CONFIG_NAME}", path):
            GenerationConfig.from_pretrained(path, **_LOCAL)
    model = fill(checkpoint)
    if tokenizer is not None:
        check_tokenizer(model, tokenizer)
    return model, tokenizer


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
