"""Interpolated Kneser-Ney n-grams (Kneser and Ney 1995; Chen and Goodman 1999): what counting alone
makes of a text, as the line that a language model's perplexity is read against.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

Gram = tuple[int, ...]


class KneserNey:
    """Probabilities of tokens after their last `order` - 1.

    Args:
        documents: token ids, each document apart.
        order: n, at least 1.
        vocabulary: number of token ids.
        bos: id that stands before a document's start.

    Raises:
        ValueError: `order` is below 1.
    """

    def __init__(
        self, documents: Iterable[Sequence[int]], order: int, vocabulary: int, bos: int
    ) -> None:
        if order < 1:
            raise ValueError(f"order: expected at least 1, got {order}")
        self.order, self.vocabulary, self.bos = order, vocabulary, bos
        longest: Counter[Gram] = Counter()
        for document in documents:
            padded = [bos] * (order - 1) + list(document)
            longest.update(zip(*(padded[i:] for i in range(order)), strict=False))
        # By length - 1: occurrences of the longest, of shorter ones how many tokens stand before.
        self.counts: list[Counter[Gram]] = [longest]
        while len(self.counts) < order:
            self.counts.insert(0, Counter(gram[1:] for gram in self.counts[0]))
        self.totals: list[Counter[Gram]] = []  # by length of the history
        self.followers: list[Counter[Gram]] = []  # different tokens after it
        self.discounts: list[float] = []
        for counts in self.counts:
            total: Counter[Gram] = Counter()
            for gram, count in counts.items():
                total[gram[:-1]] += count
            self.totals.append(total)
            self.followers.append(Counter(gram[:-1] for gram in counts))
            often = Counter(counts.values())
            once, twice = often[1], often[2]
            self.discounts.append(once / (once + 2 * twice) if once else 0.5)

    def probability(self, history: Sequence[int], token: int) -> float:
        """Of `token` after `history`, of which the last `order` - 1 tokens count."""
        p = 1 / self.vocabulary
        for n in range(self.order):
            seen = tuple(history[len(history) - n :]) if n else ()
            total = self.totals[n][seen]
            if len(seen) < n or not total:
                break
            discount = self.discounts[n]
            count = max(self.counts[n][(*seen, token)] - discount, 0)
            p = (count + discount * self.followers[n][seen] * p) / total
        return p

    def perplexity(self, documents: Iterable[Sequence[int]]) -> float:
        """Per token, each document from its start."""
        total, count = 0.0, 0
        for document in documents:
            padded = [self.bos] * (self.order - 1) + list(document)
            for at in range(self.order - 1, len(padded)):
                history = padded[at - self.order + 1 : at]
                total -= math.log(self.probability(history, padded[at]))
                count += 1
        return math.exp(total / count)
