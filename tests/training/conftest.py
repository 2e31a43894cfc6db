from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bmojo_neuron import BMojoConfig, BMojoForCausalLM
from bmojo_neuron.training import loop
from bmojo_neuron.training.corpus import Text, load_corpus
from bmojo_neuron.training.recipe import Recipe, Stage
from bmojo_neuron.training.tokenizer import train_tokenizer
from bmojo_neuron.training.words import Words, whole_words

TINY = Recipe(
    model={
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "block_types": ["mamba2", "bmojo"],
        "window": 16,
        "eidetic_size": 16,
    },
    stages=(
        Stage(4 * 4 * 32, 32, 4, (1, 2), (0.0, 0.2), copies=0.5, text_weight=0.5, selection=0.0),
        Stage(
            *(4 * 2 * 64, 64, 2, (1, 2), (0.0, 0.4)), spans=2, copies=0.2, changed=0.5, untold=0.2
        ),
    ),
    vocab_size=1200,
    warmup=2,
    text_length=32,
    text_kinds={"bible": 0.5, "code": 0.5},
    filler_kinds={"bible": 0.4, "documentation": 0.3, "code": 0.3},
    text_loss_share=1.0,
    seed=20240711,  # both stages have steps of both kinds: dttd ddtt
    evaluate_every=3,
    windows=(0, 2),
)


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of the text alone, without the bos before it."""
    return list(tokenizer.encode(text, add_special_tokens=False))


def text_of(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[int]) -> str:
    return str(tokenizer.decode([int(token) for token in tokens]))


def parts_of(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[int]) -> list[str]:
    return [text_of(tokenizer, [token]) for token in tokens]


def tiny_model(**options: object) -> BMojoForCausalLM:
    """Untrained, with logits that differ."""
    torch.manual_seed(1)
    sizes = {"vocab_size": TINY.vocab_size, "initializer_range": 0.2}
    return BMojoForCausalLM(BMojoConfig(**{**TINY.model, **sizes, **options})).eval()


@dataclass(frozen=True)
class Trainer:
    """Makes runs of a recipe on a slice of the corpus."""

    recipe: Recipe = TINY

    def start(self, out: Path, resume: bool = True) -> loop.Training:
        return loop.Training(self.recipe, out, resume=resume)


@pytest.fixture(scope="session")
def corpus() -> dict[str, Text]:
    return load_corpus()


@pytest.fixture(scope="session")
def tokenizer(corpus: dict[str, Text]) -> PreTrainedTokenizerFast:
    texts = (document for text in corpus.values() for document in text.train)
    return train_tokenizer(texts, whole_words())


@pytest.fixture(scope="session")
def words(corpus: dict[str, Text]) -> Words:
    return Words(corpus)


@pytest.fixture(scope="session")
def small(corpus: dict[str, Text]) -> dict[str, Text]:
    """The beginning of one training and one held-out document of each kind."""

    def beginning(documents: list[str], size: int) -> list[str]:
        return [document[:size].rsplit("\n", 1)[0] + "\n" for document in documents[-1:]]

    return {
        kind: Text(beginning(text.train, 12_000), beginning(text.heldout, 6_000))
        for kind, text in corpus.items()
    }


@pytest.fixture(scope="session")
def small_tokenizer(small: dict[str, Text]) -> PreTrainedTokenizerFast:
    texts = [document for text in small.values() for document in text.train]
    return train_tokenizer(texts, whole_words(), TINY.vocab_size)


@pytest.fixture(scope="module")
def tiny(small: dict[str, Text], small_tokenizer: PreTrainedTokenizerFast) -> Iterator[Trainer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "load_corpus", lambda: small)
        patch.setattr(loop, "train_tokenizer", lambda *_: small_tokenizer)
        patch.setattr(loop, "LOG_EVERY", 1)
        yield Trainer()


@pytest.fixture(scope="module")
def unbroken(tiny: Trainer, tmp_path_factory: pytest.TempPathFactory) -> loop.Training:
    """A run that went through at once."""
    training = tiny.start(tmp_path_factory.mktemp("unbroken"))
    training.run()
    return training
