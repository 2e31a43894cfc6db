"""The n-grams that a language model's perplexity is read against."""

import math
from itertools import product

import numpy as np
import pytest

from benchmarks.ngram import KneserNey

BOS, VOCABULARY = 0, 7
RNG = np.random.default_rng(0)
SHARES = [0, 0.4, 0.3, 0.2, 0.05, 0.05, 0]  # token 6 never stands there
TEXT = [RNG.choice(VOCABULARY, size, p=SHARES).tolist() for size in (90, 1, 40)]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_after_every_history_sum_to_one(order: int) -> None:
    model = KneserNey(TEXT, order, VOCABULARY, BOS)
    histories = [*product(range(VOCABULARY), repeat=order - 1), (), (1,), (2, 1, 1, 2, 6), (6, 6)]
    for history in histories:
        shares = [model.probability(history, token) for token in range(VOCABULARY)]
        assert sum(shares) == pytest.approx(1), history
        assert min(shares) > 0


def test_one_token_is_counted() -> None:
    """1 stands thrice, 2 once, 3 twice: D = n1 / (n1 + 2 n2) = 1/3, six tokens, three kinds."""
    model = KneserNey([[1, 1, 2], [1, 3, 3]], 1, 4, BOS)
    spread = (1 / 3) * 3 / 6 / 4  # D * kinds / tokens, alike over the vocabulary
    counted = [0, 3 - 1 / 3, 1 - 1 / 3, 2 - 1 / 3]
    expected = [count / 6 + spread for count in counted]
    assert [model.probability([], token) for token in range(4)] == pytest.approx(expected)
    assert model.probability([2, 2, 2], 1) == pytest.approx(expected[1])
    by_hand = math.exp(-(math.log(expected[3]) + 2 * math.log(expected[0])) / 3)
    assert model.perplexity([[3, 0], [0]]) == pytest.approx(by_hand)


def test_two_tokens_by_hand() -> None:
    """Of the text 1 2 | 1 3 | 2 (bos 0): pairs 01 01 12 13 02.

    Counts of pairs: 01 twice, the other three once: D = 3 / (3 + 2) = 0.6. Kinds of tokens before:
    1 has one (0), 2 has two (1 and 0), 3 has one (1): D = 2 / (2 + 2) = 0.5 of four.
    """
    model = KneserNey([[1, 2], [1, 3], [2]], 2, 4, BOS)
    spread = 0.5 * 3 / 4 / 4
    one = [spread, 0.5 / 4 + spread, 1.5 / 4 + spread, 0.5 / 4 + spread]
    assert [model.probability([3], token) for token in range(4)] == pytest.approx(one)  # unseen
    after_bos = [0.6 * 2 / 3 * p for p in one]
    after_bos[1] += (2 - 0.6) / 3
    after_bos[2] += (1 - 0.6) / 3
    assert [model.probability([0], t) for t in range(4)] == pytest.approx(after_bos)
    after_one = [0.6 * 2 / 2 * p for p in one]
    after_one[2] += 0.4 / 2
    after_one[3] += 0.4 / 2
    assert [model.probability([3, 1], t) for t in range(4)] == pytest.approx(after_one)
    total = math.log(after_bos[1]) + math.log(after_one[2]) + math.log(one[3]) + math.log(one[1])
    total += math.log(after_bos[3])
    # 0 1 | 1 2 | 2 3 | 3 1, and 0 3 of a document of its own
    assert model.perplexity([[1, 2, 3, 1], [3]]) == pytest.approx(math.exp(-total / 5))


def test_longer_histories_help_where_the_text_repeats() -> None:
    text = [[1, 2, 1, 3, 1, 4, 5] * 30]
    by_order = [KneserNey(text, n, VOCABULARY, BOS).perplexity(text) for n in (1, 2, 3, 4)]
    assert by_order == sorted(by_order, reverse=True)
    assert by_order[-1] < 1.3


def test_an_order_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="order: expected at least 1, got 0"):
        KneserNey(TEXT, 0, VOCABULARY, BOS)
