"""Make the training texts beside the Bible from Debian packages and from this repository.

    python examples/data/collect.py PACKAGES

PACKAGES is a directory into which the packages named in README.md were unpacked (`dpkg-deb -x`).
Each text is a sequence of documents: a line `=== NAME`, then the document's lines.
"""

import argparse
import gzip
import lzma
import subprocess
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]

Document = tuple[str, str]  # name, text


def prose(packages: Path) -> Iterator[Document]:
    """The Jargon File and The Devil's Dictionary, an entry a document's paragraph."""
    for name, start in (("jargon", "abbrev"), ("devil", "ABASEMENT")):
        path = packages / f"usr/share/dictd/{name}.dict.dz"
        text = gzip.decompress(path.read_bytes()).decode("utf-8")
        yield name, text[text.index(f"\n{start}") :]


def documentation(packages: Path) -> Iterator[Document]:
    """Python's documentation, as its authors write it."""
    sources = packages / "usr/share/doc/python3.11/html/_sources"
    for part in ("tutorial", "faq", "howto", "reference"):
        for path in sorted((sources / part).glob("*.rst.txt")):
            yield f"{part}/{path.name.removesuffix('.rst.txt')}", path.read_text("utf-8")


def licences(packages: Path) -> Iterator[Document]:
    """Licences as Debian's base system carries them."""
    for path in sorted((packages / "usr/share/common-licenses").iterdir()):
        if not path.is_symlink():
            yield path.name, path.read_text("utf-8", errors="replace")


def code(_: Path) -> Iterator[Document]:
    """This repository's own Python."""
    command = ["git", "ls-files", "*.py"]
    for name in subprocess.check_output(command, cwd=REPOSITORY, text=True).split():
        yield name, (REPOSITORY / name).read_text("utf-8")


def main() -> None:
    """Write each text, compressed, beside this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("packages", type=Path)
    packages = parser.parse_args().packages
    for collect in (prose, documentation, licences, code):
        documents = [f"=== {name}\n{text.strip()}\n" for name, text in collect(packages)]
        path = HERE / f"{collect.__name__}.txt.xz"
        path.write_bytes(lzma.compress("".join(documents).encode(), preset=9 | lzma.PRESET_EXTREME))
        print(f"{path.name}: {len(documents)} documents, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
