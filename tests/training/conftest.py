from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bmojo_neuron.training import loop
from bmojo_neuron.training.corpus import Corpus, load_corpus
from bmojo_neuron.training.dialogues import whole_words
from bmojo_neuron.training.recipe import Recipe, Stage
from bmojo_neuron.training.tokenizer import train_tokenizer

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
        Stage(4 * 4 * 32, 32, 4, (1, 2), (0.0, 0.2), pool=16, text_weight=0.5),
        Stage(4 * 2 * 64, 64, 2, (1, 3), (0.2, 0.6), text=0.3),
    ),
    vocab_size=1200,
    warmup=2,
    text_loss_share=1.0,
    evaluate_every=3,
    distances=(32,),
)


@dataclass(frozen=True)
class Trainer:
    """Makes runs of a recipe on a slice of the corpus."""

    recipe: Recipe = TINY

    def start(self, out: Path, resume: bool = True) -> loop.Training:
        return loop.Training(self.recipe, out, resume=resume)


@pytest.fixture(scope="module")
def tiny() -> Iterator[Trainer]:
    corpus = load_corpus()
    small = Corpus(corpus.train[:400], corpus.heldout[:100])
    tokenizer = train_tokenizer(small.train, whole_words(), TINY.vocab_size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "load_corpus", lambda: small)
        patch.setattr(loop, "train_tokenizer", lambda *_: tokenizer)
        patch.setattr(loop, "LOG_EVERY", 1)
        yield Trainer()


@pytest.fixture(scope="module")
def unbroken(tiny: Trainer, tmp_path_factory: pytest.TempPathFactory) -> loop.Training:
    """A run that went through at once."""
    training = tiny.start(tmp_path_factory.mktemp("unbroken"))
    training.run()
    return training
