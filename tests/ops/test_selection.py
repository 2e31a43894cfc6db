import torch
from hypothesis import given
from hypothesis import strategies as st

from bmojo_neuron.ops.selection import selection


def test_keeps_the_largest_keys_in_order_of_position(op):
    score = torch.tensor([[1.0, 5.0, 3.0, 4.0, 2.0]])
    position = torch.tensor([[2, 4, 7, 8, 9]], dtype=torch.int32)
    kept, dropped = op(score, position, torch.tensor([10], dtype=torch.int32), 3, 0.0)
    assert kept.tolist() == [[1, 2, 3]]
    assert dropped.tolist() == [[0, 4]]


def test_ties_go_to_the_older_and_empty_slots_go_first(op):
    score = torch.tensor([[9.0, 1.0, 1.0, 1.0]])
    position = torch.tensor([[-1, 0, 1, 2]], dtype=torch.int32)
    kept, _ = op(score, position, torch.tensor([3], dtype=torch.int32), 2, 0.0)
    assert kept.tolist() == [[1, 2]]


def test_decay_lets_a_recent_surprise_outrank_an_equal_old_one(op):
    score = torch.tensor([[1.0, 1.0]])
    position = torch.tensor([[0, 100]], dtype=torch.int32)
    boundary = torch.tensor([101], dtype=torch.int32)
    assert op(score, position, boundary, 1, 0.0)[0].tolist() == [[0]]
    assert op(score, position, boundary, 1, 0.01)[0].tolist() == [[1]]


@given(
    scores=st.lists(st.integers(-3, 3), min_size=12, max_size=40),
    period=st.integers(1, 5),
    slots=st.integers(1, 6),
    decay=st.sampled_from([0.0, 0.25]),  # exact in binary, as the keys are
)
def test_merging_period_by_period_is_the_top_of_everything(scores, period, slots, decay):
    """The fixed-shape merge needs no history: it equals ranking all tokens seen so far, at every
    boundary.
    """
    position = torch.full((1, slots), -1, dtype=torch.int32)
    score = torch.zeros(1, slots)
    for end in range(period, len(scores) + 1, period):
        fresh = torch.arange(end - period, end, dtype=torch.int32).unsqueeze(0)
        position = torch.cat([position, fresh], dim=1)
        score = torch.cat(
            [score, torch.tensor([scores[end - period : end]], dtype=torch.float32)], dim=1
        )
        kept, _ = selection(score, position, torch.tensor([end], dtype=torch.int32), slots, decay)
        position, score = position.gather(1, kept), score.gather(1, kept)
        ranked = sorted(range(end), key=lambda j: (-(scores[j] - decay * (end - j)), j))[:slots]
        assert [p for p in position[0].tolist() if p >= 0] == sorted(ranked)
