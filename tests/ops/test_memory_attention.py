import pytest
import torch

from bmojo_neuron.ops.memory_attention import FEWEST_TILED, Memory, Visibility, defined, tiled


def sees(visible, n, t, s):
    key = int(visible.key[n, s])
    lag = int(visible.query[n, t]) - key
    return key >= 0 and visible.near <= lag and (visible.far is None or lag < visible.far)


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
                        if sees(m.visible, n, t, s):
                            logit = m.q[n, h, t].double() @ m.k[n, kv, s].double()
                            logits.append(
                                logit + (0 if m.bias is None else m.bias[n, h, s].double())
                            )
                            values.append(m.v[n, kv, s].double())
                out[n, h, t] = torch.stack(logits).softmax(0) @ torch.stack(values)
    return out


def memory(kv_heads, length, size, *, bias, seed, near=0, far=None):
    torch.manual_seed(seed)
    query = 100 + torch.arange(length, dtype=torch.int32).expand(2, -1)
    key = torch.randint(-20, 100 + length, (2, size), dtype=torch.int32)  # some are not there
    key[:, 0] = 100 - near  # the first query sees it, and the last: far is far enough
    return Memory(
        torch.randn(2, 4, length, 6),
        torch.randn(2, kv_heads, size, 6),
        torch.randn(2, kv_heads, size, 6),
        Visibility(query, key, near, far),
        torch.randn(2, 4, size) if bias else None,
    )


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 5, FEWEST_TILED + 1])
def test_one_softmax_over_all_memories(op, kv_heads, length):
    memories = [
        memory(kv_heads, length, 7, bias=False, seed=0),
        memory(kv_heads, length, 30, bias=True, seed=1, near=7, far=60),
        memory(kv_heads, length, 1, bias=False, seed=2, near=3),
    ]
    torch.testing.assert_close(op(memories).double(), one_by_one(memories), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [5, FEWEST_TILED])
def test_a_memory_that_shows_nothing_changes_nothing(op, length):
    seen, unseen = memory(2, length, 7, bias=False, seed=0), memory(2, length, 9, bias=True, seed=1)
    for nothing in (torch.full_like(unseen.visible.key, -1), unseen.visible.key + 1000):
        unseen = unseen._replace(visible=Visibility(unseen.visible.query, nothing))
        torch.testing.assert_close(op([seen, unseen]), op([seen]))


@pytest.mark.parametrize("length", [5, FEWEST_TILED])
def test_large_logits_do_not_overflow(op, length):
    m = memory(2, length, 7, bias=False, seed=0)
    m = m._replace(q=m.q * 1e4)
    assert torch.isfinite(op([m, m._replace(q=-m.q)])).all()


def cast(memories, dtype):
    return [
        Memory(*(x.to(dtype) if isinstance(x, torch.Tensor) else x for x in m)) for m in memories
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_tiles_are_as_near_to_the_truth_as_the_definition(dtype, kv_heads):
    sizes = [(300, False), (70, False), (64, True)]
    memories = [memory(kv_heads, 33, s, bias=b, seed=i) for i, (s, b) in enumerate(sizes)]
    memories = cast(memories, dtype)
    truth = defined(cast(memories, torch.float64))
    error, allowed = ((y - truth).abs() for y in (tiled(memories), defined(memories)))
    assert error.max() <= 2 * allowed.max()
    assert error.square().mean() <= (1.5 * 1.5) * allowed.square().mean()


@pytest.mark.parametrize("part", ["q", "k", "v", "bias"])
def test_no_gradient_is_lost(op, part):
    m = memory(2, FEWEST_TILED, 7, bias=True, seed=0)
    asked = getattr(m, part).requires_grad_(True)
    op([m]).square().sum().backward()
    assert asked.grad.abs().sum() > 0


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("gradient", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("length", [1, 5, FEWEST_TILED])
def test_what_no_query_sees_is_absent(op, length, gradient, broken):
    """Not even 0 times infinity of it reaches an output or a gradient."""
    whole = memory(2, length, 7, bias=True, seed=0)
    key = whole.visible.key.clone()
    key[0, 3:5] = -1  # of one row alone
    hidden = Visibility(whole.visible.query, key)
    results = []
    for value in (0.0, broken):
        q, k, v, bias = (x.clone() for x in (whole.q, whole.k, whole.v, whole.bias))
        for x in (k[0, :, 3:5], v[0, :, 3:5], bias[0, :, 3:5]):
            x.fill_(value)
        parts = [x.requires_grad_(gradient) for x in (q, k, v, bias)]
        y = op([Memory(q, k, v, hidden, bias), memory(2, length, 5, bias=False, seed=1)])
        gradients = torch.autograd.grad(y.square().sum(), parts) if gradient else ()
        results.append([y, *gradients])
    for clean, poisoned in zip(*results, strict=True):
        assert torch.isfinite(poisoned).all()
        assert torch.equal(clean, poisoned)
