"""The training text: the King James Bible, one verse a line, with whole books held out."""

import lzma
from dataclasses import dataclass
from pathlib import Path

TEXT_FILE = Path(__file__).parents[2] / "examples" / "data" / "king-james-bible.txt.xz"

# Books that training never shows, chosen because no other book repeats their verses
# (as Kings and Chronicles, or the Gospels, repeat each other). About 4 % of the text.
HELDOUT_BOOKS = frozenset({"Ruth", "Est", "Eccl", "Dan", "Jonah", "Heb", "Jas"})


@dataclass(frozen=True)
class Corpus:
    """Verses in the order of the text, without their references and without newlines."""

    train: list[str]
    heldout: list[str]


def load_corpus(path: Path = TEXT_FILE) -> Corpus:
    """Read the corpus and split it by book.

    Args:
        path: xz-compressed UTF-8 lines `Ge1:1 In the beginning ...`: reference, blank, verse.

    Raises:
        FileNotFoundError: the text is not there; it lies in the repository, not in the wheel.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"path: expected the training text at {path}, found no such file. "
            "It ships with the repository, not with the installed package: "
            "run from a git clone installed with `pip install -e .`"
        )
    corpus = Corpus(train=[], heldout=[])
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            reference, verse = line.rstrip("\n").split(" ", 1)
            book = reference.split(":")[0].rstrip("0123456789")
            (corpus.heldout if book in HELDOUT_BOOKS else corpus.train).append(verse)
    return corpus
