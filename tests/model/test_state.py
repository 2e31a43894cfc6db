"""The registry: all that a session keeps is declared once, and everything else follows from it."""

import pytest
import torch

from bmojo_neuron import BMojoForCausalLM
from bmojo_neuron.state import (
    PAGE,
    StatePart,
    check_state,
    copy_state,
    grow,
    new_state,
    not_finite,
    select_rows,
    stack_rows,
    state_bytes,
    write_rows,
)
from tests.model.conftest import KINDS, random_ids, tiny_model
from tests.model.states import assert_same

GROWING = ("attention", "attention-plain", "hybrid")
CPU = torch.device("cpu")
PARTS = [
    StatePart("n", (), torch.int32),
    StatePart("ring", (2, 3), torch.bfloat16),
    StatePart("position", (4,), torch.int32, initial=-1),
    StatePart("history", (2, 0, 3), torch.float32, grows=1),
]


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def filled(rows: int, capacity: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    empty = new_state(PARTS, rows, capacity, CPU)
    return {
        name: torch.randint(1, 99, part.shape, generator=generator).to(part.dtype)
        for name, part in empty.items()
    }


def described(parts: list[StatePart], state: dict[str, torch.Tensor], rows: int) -> None:
    """Every part is there, nothing else is, and shape and dtype are the declared ones."""
    assert list(state) == [part.name for part in parts]
    for part in parts:
        shape = list(state[part.name].shape)
        if part.grows is not None:
            shape[part.grows + 1] = 0
        assert shape == [rows, *part.shape], part.name
        assert state[part.name].dtype == part.dtype, part.name


def test_registry_names_are_unique_and_name_their_layer(model):
    names = [part.name for part in model.state_parts()]
    assert len(set(names)) == len(names)
    assert names[0] == "n"
    prefixes = {name.rsplit(".", 1)[0] for name in names[1:]}
    assert prefixes == {f"layers.{i}" for i in range(model.config.num_hidden_layers)}


def test_new_state_is_what_the_registry_says(model):
    parts = model.state_parts()
    state = model.new_state(3, capacity=5)
    described(parts, state, rows=3)
    for part in parts:
        assert (state[part.name] == part.initial).all(), part.name
        if part.grows is not None:
            assert state[part.name].shape[part.grows + 1] == 5


def test_what_a_step_returns_is_the_registry(model):
    """No tensor that is not declared, none missing, none of another shape or type."""
    parts = model.state_parts()
    state = model.new_state(2, capacity=64)
    for length in (model.chunk if model.chunk < 64 else 8, 1):
        tokens = random_ids(2, length).int()
        _, state = model.step(tokens, torch.tensor([length] * 2, dtype=torch.int32), state)
        assert state.keys() == {part.name for part in parts}
        described(parts, {part.name: state[part.name] for part in parts}, rows=2)


def test_select_returns_the_registry_and_what_fell_out(model):
    parts = model.state_parts()
    _, state = model.feed(random_ids(2, 16), model.new_state(2))
    new, evicted = model.select(state, torch.tensor([True, False]))
    assert new.keys() == state.keys()
    described(parts, {part.name: new[part.name] for part in parts}, rows=2)
    slots = {part.name: part for part in parts if ".eidetic_" in part.name}
    assert evicted.keys() == slots.keys()
    for name, part in slots.items():
        shape = list(part.shape)
        shape[1 if len(shape) == 3 else 0] = model.config.selection_period
        assert list(evicted[name].shape) == [2, *shape]
        assert evicted[name].dtype == part.dtype


def test_state_is_constant_in_history_except_where_declared(kind, model):
    state = model.new_state(1)
    sizes = set()
    for length in (1, 30, 300):
        _, state = model.feed(random_ids(1, length), state)
        constant = {p.name for p in model.state_parts() if p.grows is None}
        sizes.add(state_bytes({name: state[name] for name in constant}))
        assert (constant == state.keys()) == (kind not in GROWING)
    assert len(sizes) == 1


EXACT = ("ssm", "delta", "kk", "kv", "predictor", "innovation", "context_score", "eidetic_score")


def test_recurrent_parts_stay_float32_in_a_half_precision_model(model):
    model = model.to(torch.bfloat16)
    for part in model.state_parts():
        kept = part.name.rsplit(".", 1)[-1]
        if kept in EXACT:
            assert part.dtype == torch.float32, part.name
        elif kept not in ("n", "eidetic_position"):
            assert part.dtype == torch.bfloat16, part.name
    _, state = model.feed(random_ids(1, 20), model.new_state(1))
    described(model.state_parts(), {p.name: state[p.name] for p in model.state_parts()}, rows=1)


def test_state_bytes_is_the_sum_over_parts():
    state = new_state(PARTS, 3, 7, CPU)
    assert state_bytes(state) == 3 * (4 + 2 * 3 * 2 + 4 * 4 + 2 * 7 * 3 * 4)


def test_copy_shares_nothing():
    state = filled(2, 4)
    copy = copy_state(state)
    assert_same(copy, state)
    for part in copy.values():
        part.zero_()
    assert all((part != 0).all() for part in state.values())


def test_select_rows_reorders_and_repeats():
    state = filled(3, 4)
    rows = select_rows(state, torch.tensor([2, 0, 2]))
    for name, part in state.items():
        assert torch.equal(rows[name], torch.stack([part[2], part[0], part[2]])), name


def test_stack_rows_is_the_inverse_of_select_rows():
    state = filled(3, 4)
    pieces = [select_rows(state, torch.tensor(rows)) for rows in ([0], [1, 2])]
    assert_same(stack_rows(pieces), state)


def test_write_rows_replaces_those_rows_alone():
    state, source = filled(3, 4), filled(2, 4, seed=1)
    before = copy_state(state)
    out = write_rows(state, torch.tensor([2, 0]), source)
    assert_same(state, before)
    assert_same(select_rows(out, torch.tensor([2, 0])), source)
    assert_same(select_rows(out, torch.tensor([1])), select_rows(before, torch.tensor([1])))


def test_grow_keeps_what_was_there_and_shares_the_rest():
    state = filled(2, 3)
    out = grow(state, PARTS, 4)
    history = out["history"]
    assert history.shape == (2, 2, PAGE, 3)
    assert torch.equal(history[:, :, :3], state["history"])
    assert (history[:, :, 3:] == 0).all()
    assert all(out[name] is state[name] for name in ("n", "ring", "position"))


@pytest.mark.parametrize(
    ("old", "wanted", "capacity"),
    [(0, 1, PAGE), (PAGE, PAGE, PAGE), (PAGE, PAGE + 1, 2 * PAGE), (PAGE, 5 * PAGE, 5 * PAGE)],
)
def test_grow_by_pages_and_by_doubling(old, wanted, capacity):
    out = grow(new_state(PARTS, 1, old, CPU), PARTS, wanted)
    assert out["history"].shape[2] == capacity


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind in GROWING])
def test_feeding_grows_full_attention_as_far_as_needed(kind):
    model: BMojoForCausalLM = tiny_model(kind)
    ids = random_ids(1, PAGE + 9)
    _, state = model.feed(ids[:, :PAGE], model.new_state(1))
    capacity = {p.name: state[p.name].shape[2] for p in model.state_parts() if p.grows is not None}
    assert set(capacity.values()) == {PAGE}
    logits, grown = model.feed(ids[:, PAGE:], state)
    assert {grown[name].shape[2] for name in capacity} == {2 * PAGE}
    roomy, _ = model.feed(ids, model.new_state(1, capacity=3 * PAGE))
    torch.testing.assert_close(logits, roomy, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_parts_that_are_not_finite_are_named(dtype: torch.dtype, value: float) -> None:
    most = torch.finfo(dtype).max
    state = {
        "n": torch.ones(1, dtype=torch.int32),
        "empty": torch.empty(1, 2, 0, 4, dtype=dtype),
        "large": torch.tensor([[most, -most, 0.0]], dtype=dtype),
        "broken": torch.tensor([[0.0, value, 1.0]], dtype=dtype),
    }
    assert not_finite(state) == ["broken"]
    assert not_finite({"n": state["n"]}) == []


def test_unused_capacity_is_finite() -> None:
    """So that all of a part can be checked and kept, not only what is valid."""
    state = grow(new_state(PARTS, 2, 0, CPU), PARTS, 3)
    assert torch.equal(state["history"], torch.zeros(2, 2, PAGE, 3))
    check_state(state, PARTS, batch_size=2)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_model_writes_is_what_the_registry_says(kind: str) -> None:
    model = tiny_model(kind)
    ids = random_ids(3, 70)
    with torch.inference_mode():
        _, state = model.feed(ids, model.new_state(3), lengths=[0, 7, 70])
    check_state(state, model.state_parts(), batch_size=3)
    with pytest.raises(ValueError, match=r"^n: expected shape \(1,\), got \(3,\)"):
        check_state(state, model.state_parts(), batch_size=1)
