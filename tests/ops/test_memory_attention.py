import pytest
import torch

from bmojo_neuron.ops.memory_attention import Memory


def one_by_one(memories):
    """Query by query and head by head, in float64."""
    rows, heads, length, width = memories[0].q.shape
    out = torch.zeros(rows, heads, length, width, dtype=torch.float64)
    for n in range(rows):
        for h in range(heads):
            for t in range(length):
                logits, values = [], []
                for m in memories:
                    kv = h // (heads // m.k.shape[1])
                    for s in range(m.k.shape[2]):
                        if m.visible[n, 0, t, s]:
                            logit = m.q[n, h, t].double() @ m.k[n, kv, s].double()
                            logits.append(
                                logit + (0 if m.bias is None else m.bias[n, h, s].double())
                            )
                            values.append(m.v[n, kv, s].double())
                out[n, h, t] = torch.stack(logits).softmax(0) @ torch.stack(values)
    return out


def memory(kv_heads, length, size, *, bias, seed):
    torch.manual_seed(seed)
    visible = torch.rand(2, 1, length, size) < 0.6
    visible[..., 0] = True
    return Memory(
        torch.randn(2, 4, length, 6),
        torch.randn(2, kv_heads, size, 6),
        torch.randn(2, kv_heads, size, 6),
        visible,
        torch.randn(2, 4, size) if bias else None,
    )


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 5])
def test_one_softmax_over_all_memories(op, kv_heads, length):
    memories = [
        memory(kv_heads, length, 7, bias=False, seed=0),
        memory(kv_heads, length, 3, bias=True, seed=1),
        memory(kv_heads, length, 1, bias=False, seed=2),
    ]
    torch.testing.assert_close(op(memories).double(), one_by_one(memories), atol=1e-5, rtol=1e-5)


def test_a_memory_that_shows_nothing_changes_nothing(op):
    seen, unseen = memory(2, 5, 7, bias=False, seed=0), memory(2, 5, 9, bias=True, seed=1)
    unseen = unseen._replace(visible=torch.zeros_like(unseen.visible))
    torch.testing.assert_close(op([seen, unseen]), op([seen]))


def test_large_logits_do_not_overflow(op):
    m = memory(2, 5, 7, bias=False, seed=0)
    m = m._replace(q=m.q * 1e4)
    assert torch.isfinite(op([m])).all()
