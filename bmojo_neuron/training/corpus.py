"""The training texts, of several kinds, with whole documents of each held out.

They lie in `examples/data/` of the repository, whose README.md says where they come from.
"""

import lzma
import re
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).parents[2] / "examples" / "data"

# Books that training never shows, chosen because no other book repeats their verses
# (as Kings and Chronicles, or the Gospels, repeat each other). About 4 % of the text.
HELDOUT_BOOKS = frozenset({"Ruth", "Est", "Eccl", "Dan", "Jonah", "Heb", "Jas"})

# Of the other texts, the documents whose names begin like this.
HELDOUT = {
    "prose": (),
    "documentation": ("faq/",),
    "licences": ("Artistic", "MPL"),
    "code": ("serving/",),
}


@dataclass(frozen=True)
class Text:
    """One kind of text: documents, each with its newlines."""

    train: list[str]
    heldout: list[str]


def load_corpus(folder: Path = DATA) -> dict[str, Text]:
    """Read every kind of text and split it by document: `bible`, then those of HELDOUT.

    Raises:
        FileNotFoundError: a text is not there; they lie in the repository, not in the wheel.
    """
    return {"bible": _bible(folder)} | {
        kind: _documents(_read(folder / f"{kind}.txt.xz"), names) for kind, names in HELDOUT.items()
    }


def _bible(folder: Path) -> Text:
    """Lines `Ge1:1 In the beginning ...` as books of verses, one a line, without references."""
    books: dict[str, list[str]] = {}
    for line in _read(folder / "king-james-bible.txt.xz").splitlines():
        reference, verse = line.split(" ", 1)
        books.setdefault(reference.split(":")[0].rstrip("0123456789"), []).append(verse)
    text = Text([], [])
    for book, verses in books.items():
        kept = text.heldout if book in HELDOUT_BOOKS else text.train
        kept.append("\n".join(verses) + "\n")
    return text


def _documents(data: str, heldout: tuple[str, ...]) -> Text:
    text = Text([], [])
    for document in re.split(r"(?m)^=== (?=\S+$)", data)[1:]:
        name, body = document.split("\n", 1)
        (text.heldout if name.startswith(heldout) else text.train).append(body)
    return text


def _read(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(
            f"folder: expected the training text {path.name} in {path.parent}, found no such file. "
            "It ships with the repository, not with the installed package: "
            "run from a git clone installed with `pip install -e .`"
        )
    with lzma.open(path, "rt", encoding="utf-8") as file:
        return file.read()
