"""The invariants of every layer type: cutting, batching, padding, interrupting change nothing."""

import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from bmojo_neuron import BMojoForCausalLM
from bmojo_neuron.state import copy_state, select_rows, stack_rows, write_rows
from tests.model.conftest import KINDS, random_ids, tiny_model
from tests.model.states import CLOSE, assert_close, assert_same

LENGTH = 45  # more than five windows of 8
MODELS = {kind: tiny_model(kind) for kind in KINDS}
drawn = settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def one_shot(model, ids):
    return model.feed(ids, model.new_state(ids.shape[0]), all_tokens=True)


def with_weights_of(source: BMojoForCausalLM, target: BMojoForCausalLM) -> BMojoForCausalLM:
    """`target` with those weights of `source` that it has a place for."""
    weights = source.state_dict()
    target.load_state_dict({name: weights[name] for name in target.state_dict()})
    return target


@pytest.mark.parametrize("kind", KINDS)
@drawn
@given(cuts=st.sets(st.integers(1, LENGTH - 1)), donate=st.booleans())
def test_split_equals_one_shot(kind, cuts, donate):
    model, ids = MODELS[kind], random_ids(2, LENGTH)
    expected, expected_state = one_shot(model, ids)
    state, logits = model.new_state(2), []
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), LENGTH], strict=True):
        out, state = model.feed(ids[:, start:end], state, all_tokens=True, donate=donate)
        logits.append(out)
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, **CLOSE)
    assert_close(state, expected_state)


def test_token_by_token_equals_one_shot_equals_the_full_form(kind):
    model, ids = MODELS[kind], random_ids(2, LENGTH)
    expected, expected_state = one_shot(model, ids)
    state, logits = model.new_state(2), []
    for t in range(LENGTH):
        out, state = model.feed(ids[:, t : t + 1], state, donate=True)
        logits.append(out)
    torch.testing.assert_close(torch.stack(logits, dim=1), expected, **CLOSE)
    torch.testing.assert_close(model(ids, use_cache=False).logits, expected, **CLOSE)
    assert_close(state, expected_state)


@pytest.mark.parametrize(
    "smallest",
    [
        {"window": 1},
        {"eidetic_size": 1},
        {"innovation_taps": 1},
        {"innovation_taps": 12},
        {"mamba2_conv_size": 1},
        {"mamba2_conv_size": 12},
        {"mixer": "mamba", "mamba_inner_size": 1, "mamba_state_size": 1, "mamba_dt_rank": 1},
        {"mixer": "mamba", "mamba_conv_size": 1},
        {"mixer": "mamba", "mamba_conv_size": 12},
        {"selection_period": 1},
        {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 2},
    ],
    ids=str,
)
def test_the_least_and_the_longest_of_each_size(smallest):
    """Tails longer than a window too; each still runs, in pieces, whole and in the full form."""
    model, ids = tiny_model("mamba2+bmojo", **smallest), random_ids(2, 21)
    expected, expected_state = one_shot(model, ids)
    state, logits = model.new_state(2), []
    for piece in ids.split([1, 2, 9, 1, 8], dim=1):
        out, state = model.feed(piece, state, all_tokens=True)
        logits.append(out)
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, **CLOSE)
    torch.testing.assert_close(model(ids, use_cache=False).logits, expected, **CLOSE)
    assert_close(state, expected_state)


@pytest.mark.parametrize("kind", KINDS)
@drawn
@given(lengths=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 20)), min_size=2, max_size=4))
def test_batch_equals_solo(kind, lengths):
    """Rows of any length, zero among them, in two calls: every row ends as if it had been alone."""
    model = MODELS[kind]
    first, second = zip(*lengths, strict=True)
    rows, width = len(lengths), max(1, *first, *second)
    a, b = random_ids(rows, width, seed=3), random_ids(rows, width, seed=4)
    state = model.new_state(rows)
    for ids, count in ((a, first), (b, second)):
        logits, state = model.feed(ids, state, lengths=count)
    for row, (m, n) in enumerate(lengths):
        solo = model.new_state(1)
        if m:
            _, solo = model.feed(a[row : row + 1, :m], solo)
        if n:
            expected, solo = model.feed(b[row : row + 1, :n], solo)
            torch.testing.assert_close(logits[row : row + 1], expected, **CLOSE)
        assert_close(select_rows(state, torch.tensor([row])), solo)


def test_padding_and_idle_rows_change_nothing(model):
    ids = random_ids(3, 20)
    _, state = model.feed(ids, model.new_state(3))
    before = copy_state(state)
    _, after = model.step(
        random_ids(3, 4, seed=9).int(), torch.tensor([0, 2, 0], dtype=torch.int32), state
    )
    idle = torch.tensor([0, 2])
    assert_same(select_rows(after, idle), select_rows(before, idle))
    _, other_padding = model.step(
        torch.cat([random_ids(3, 4, seed=9)[:, :2], random_ids(3, 2, seed=10)], dim=1).int(),
        torch.tensor([0, 2, 0], dtype=torch.int32),
        state,
    )
    assert_same(other_padding, after)


def test_without_donation_the_given_state_stays(model):
    _, state = model.feed(random_ids(2, 19), model.new_state(2))
    before = copy_state(state)
    for length in (1, 13):
        model.feed(random_ids(2, length), state)
        assert_same({name: state[name] for name in before}, before)


def test_a_freed_slot_leaks_nothing(model):
    """A row full of NaN is given to a new session; neither it nor its neighbours notice."""
    ids = random_ids(2, 30)
    _, state = model.feed(ids, model.new_state(2, capacity=64))
    row = torch.tensor([1])
    poison = {
        name: torch.full_like(part, float("nan") if part.is_floating_point() else 7)
        for name, part in select_rows(state, row).items()
    }
    state = write_rows(state, row, poison)
    neighbour, state = model.feed(ids[:, :1], state, lengths=[1, 0])
    assert torch.isfinite(neighbour[0]).all()
    capacity = max(
        [part.shape[2] for name, part in state.items() if "context_k" in name], default=0
    )
    state = write_rows(state, row, model.new_state(1, capacity=capacity))
    logits, _ = model.feed(ids, state, lengths=[0, 30])
    expected, _ = model.feed(ids[1:], model.new_state(1))
    torch.testing.assert_close(logits[1:], expected, **CLOSE)


def test_rows_join_and_leave(model):
    ids = random_ids(2, 30)
    states = []
    for row in (0, 1):
        _, state = model.feed(ids[row : row + 1, : 10 + row], model.new_state(1, capacity=64))
        states.append(state)
    logits, _ = model.feed(ids[:, 11:], stack_rows(states))
    for row in (0, 1):
        expected, _ = model.feed(ids[row : row + 1, 11:], states[row])
        torch.testing.assert_close(logits[row : row + 1], expected, **CLOSE)


CONTINUE = """
import sys, torch
from safetensors.torch import load_file, save_file
from bmojo_neuron import BMojoForCausalLM
model = BMojoForCausalLM.from_pretrained(sys.argv[1]).eval()
with torch.no_grad():
    logits, state = model.feed(load_file(sys.argv[3])["ids"], load_file(sys.argv[2]))
save_file({"logits": logits, **state}, sys.argv[4])
"""


def test_save_load_continue_in_another_process(tmp_path):
    every_part = ["mamba2", "attention", "bmojo"]
    model = tiny_model("bmojo", num_hidden_layers=3, block_types=every_part)
    ids = random_ids(1, 40)
    model.save_pretrained(tmp_path / "model")
    _, state = model.feed(ids[:, :21], model.new_state(1))
    save_file(state, tmp_path / "state")
    save_file({"ids": ids[:, 21:].contiguous()}, tmp_path / "ids")
    paths = [str(tmp_path / name) for name in ("model", "state", "ids", "after")]
    subprocess.run([sys.executable, "-c", CONTINUE, *paths], check=True, capture_output=True)
    after = load_file(tmp_path / "after")
    expected, expected_state = model.feed(ids[:, 21:], state)
    torch.testing.assert_close(after.pop("logits"), expected, **CLOSE)
    assert_close(after, expected_state)


def test_causality(model):
    """A changed token changes no logit before it, and some after it, far beyond the window."""
    ids = random_ids(1, LENGTH)
    base = model(ids, use_cache=False).logits
    for j in (0, 7, 8, 20, LENGTH - 1):
        changed = ids.clone()
        changed[0, j] = 3 + (ids[0, j] - 2) % 40
        logits = model(changed, use_cache=False).logits
        torch.testing.assert_close(logits[:, :j], base[:, :j], **CLOSE)
        assert not torch.allclose(logits[:, j:], base[:, j:], **CLOSE)


def test_gradients_agree_with_finite_differences(kind):
    """In float64, along random directions; the steps are too small to change what is selected."""
    model = tiny_model(kind).double().train()
    ids = random_ids(2, 21)
    parameters = dict(model.named_parameters())
    for name in [name for name in parameters if name.endswith("innovation_log_bias")]:
        del parameters[name]  # a statistic: its own loss alone trains it

    def loss() -> torch.Tensor:
        (h,), _ = model.model.full(ids)
        logits = model.lm_head(h[:, :-1]).flatten(0, 1)
        return cross_entropy(logits, ids[:, 1:].flatten())

    with torch.enable_grad():
        gradients = torch.autograd.grad(loss(), list(parameters.values()), allow_unused=True)
    generator = torch.Generator().manual_seed(5)
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        direction = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        step = 1e-5
        original = parameter.data.clone()
        parameter.data = original + step * direction
        high = loss()
        parameter.data = original - step * direction
        low = loss()
        parameter.data = original
        slope = ((high - low) / (2 * step)).item()
        expected = 0.0 if gradient is None else (gradient * direction).sum().item()
        assert slope == pytest.approx(expected, rel=1e-3, abs=1e-6), name


def test_bmojo_without_slots_is_bmojo_f():
    a = tiny_model("bmojo", eidetic_size=0)
    b = with_weights_of(a, tiny_model("bmojo_f"))
    ids = random_ids(2, LENGTH)
    assert torch.equal(one_shot(a, ids)[0], one_shot(b, ids)[0])


def test_a_window_longer_than_the_text_is_full_attention():
    a = tiny_model("sliding_attention", window=64)
    b = with_weights_of(a, tiny_model("attention"))
    ids = random_ids(2, 40)
    torch.testing.assert_close(one_shot(a, ids)[0], one_shot(b, ids)[0], **CLOSE)


def test_bmojo_within_its_first_window_is_full_attention():
    """As long as nothing has left the window, fading and eidetic memory are not read."""
    source = tiny_model("bmojo", window=64, eidetic_size=6)
    target = with_weights_of(source, tiny_model("attention"))
    ids = random_ids(2, 64)
    torch.testing.assert_close(one_shot(source, ids)[0], one_shot(target, ids)[0], **CLOSE)


def test_eidetic_memory_that_holds_everything_hides_nothing():
    """M as large as the text: every token beyond the window is in memory, in order, once."""
    model = tiny_model("bmojo", eidetic_size=LENGTH)
    _, state = one_shot(model, random_ids(1, LENGTH))
    held = state["layers.0.eidetic_position"][0]
    last_boundary = (LENGTH - 1) // 8 * 8
    assert held[held >= 0].tolist() == list(range(last_boundary))
