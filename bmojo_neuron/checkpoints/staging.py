"""Directories that appear under their name once they are whole, and until then not at all."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_new(target: Path) -> None:
    """Whether `target` may be written: it does not exist, or is an empty directory.

    Raises:
        ValueError: it holds something.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"target: expected a new or empty directory, got {str(target)!r}")


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """A directory to fill, which takes the place of `target` when the block ends without an error.

    Nothing but `target` is touched, and nothing is left where the block fails.

    Args:
        target: see `check_new`; links are followed, parents made.

    Raises:
        ValueError: something else filled `target` meanwhile.
    """
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield part
        part.chmod(0o755)
        part.rename(target)  # onto nothing or an empty directory
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise ValueError(
            f"target: expected a new or empty directory, got {str(target)!r}, which something else "
            "filled meanwhile"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
