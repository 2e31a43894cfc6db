import math

import pytest
import torch

from serving.sampling import Sampler

LOGITS = torch.tensor([1.0, 4.0, 2.0, 3.0, float("-inf")])


def draws(sampler: Sampler, count: int = 400) -> set[int]:
    return {sampler(LOGITS) for _ in range(count)}


def test_greedy() -> None:
    assert draws(Sampler()) == {1}


def test_draws_reach_what_is_possible_and_no_more() -> None:
    assert draws(Sampler(temperature=1.5, seed=0)) == {0, 1, 2, 3}
    assert draws(Sampler(temperature=1.5, top_k=2, seed=0)) == {1, 3}
    assert draws(Sampler(temperature=1.5, top_k=99, seed=0)) == {0, 1, 2, 3}
    assert draws(Sampler(temperature=1.0, top_p=0.7, seed=0)) == {1, 3}
    assert draws(Sampler(temperature=1.0, top_p=0.6, seed=0)) == {1}


def test_frequencies() -> None:
    sampler = Sampler(temperature=2.0, seed=0)
    counts = torch.zeros(5)
    for _ in range(4000):
        counts[sampler(LOGITS)] += 1
    torch.testing.assert_close(counts / 4000, (LOGITS / 2).softmax(0), atol=0.03, rtol=0)


@pytest.mark.parametrize("temperature", [5e-324, 1e-30])
def test_tiny_temperature_is_greedy(temperature: float) -> None:
    assert draws(Sampler(temperature=temperature, seed=0), 20) == {1}


def test_half_precision_draws_alike() -> None:
    full, half = Sampler(temperature=1.0, seed=3), Sampler(temperature=1.0, seed=3)
    assert [full(LOGITS) for _ in range(50)] == [half(LOGITS.bfloat16()) for _ in range(50)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("logits", "got"),
    [((1.0, math.nan), "nan"), ((1.0, math.inf), "inf"), ((-math.inf, -math.inf), "-inf")],
)
def test_broken_logits_are_refused(
    temperature: float, logits: tuple[float, float], got: str
) -> None:
    with pytest.raises(ValueError, match=f"logits: expected a largest that is finite, got {got};"):
        Sampler(temperature=temperature)(torch.tensor(logits))
