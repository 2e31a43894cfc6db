"""How tokens are cut into steps: never across a selection boundary of any row (spec/model section
6).

With C = 64, a row at n = 50 that gets 100 tokens takes 14 (to 64), 64 (to 128) and 22 (to 150);
`select` runs for it before the second and the third piece, that is whenever it stands on a multiple
of C with tokens to come.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

FREE_CHUNK = 512  # longest piece of a model that selects nothing: bounds the memory of a step


@dataclass(frozen=True)
class Piece:
    """One `select` and one `step` for all rows.

    Attributes:
        at_boundary: per row, whether `select` runs before this piece.
        take: per row, how many of its next tokens this piece feeds (0 = none).
    """

    at_boundary: tuple[bool, ...]
    take: tuple[int, ...]


def plan(
    n: Sequence[int], length: Sequence[int], period: int | None, chunk: int = FREE_CHUNK
) -> Iterator[Piece]:
    """Cut `length[b]` tokens for each row b, which has seen n[b] so far, into pieces.

    Args:
        n: tokens consumed so far, per row.
        length: tokens to feed, per row.
        period: selection period C, or None for a model that selects nothing.
        chunk: longest piece.

    Yields:
        Pieces until every row has all its tokens. Each piece is at most `chunk` long and crosses no
        boundary.
    """
    at, left = list(n), list(length)
    while any(left):
        take = [
            min(rest, chunk, period - seen % period if period else chunk)
            for seen, rest in zip(at, left, strict=True)
        ]
        boundary = [
            period is not None and seen % period == 0 and t > 0
            for seen, t in zip(at, take, strict=True)
        ]
        yield Piece(tuple(boundary), tuple(take))
        at = [seen + t for seen, t in zip(at, take, strict=True)]
        left = [rest - t for rest, t in zip(left, take, strict=True)]
