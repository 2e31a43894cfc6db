"""A dialogue is read a sequence at a time, and the model goes on from where it stood."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bmojo_neuron.training.batches import Batch, Dialogues
from bmojo_neuron.training.losses import scores
from tests.training.conftest import Trainer

SPANS = 4
FIELDS = ("tokens", "answers", "values")


@pytest.fixture
def long(tiny: Trainer) -> Trainer:
    """A run of one stage, whose dialogues are four sequences of 32 tokens."""
    stage = replace(tiny.recipe.stages[1], length=32, tokens=11 * 64, spans=SPANS, text=0.0)
    return Trainer(replace(tiny.recipe, stages=(stage,)))


def seen_by(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """What the steps of any run read."""
    seen: list[Batch] = []
    original = Dialogues.go_on

    def spied(self: Dialogues, state: object) -> None:
        seen.append(self.sequences)
        original(self, state)  # type: ignore[arg-type]

    monkeypatch.setattr(Dialogues, "go_on", spied)
    return seen


def test_steps_read_dialogues_from_beginning_to_end(
    long: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = long.start(tmp_path)
    seen = seen_by(monkeypatch)
    run.run()
    stage, seed = run.recipe.stages[0], run.recipe.seed
    assert len(seen) == 11  # two dialogues and most of a third
    for first in (0, 4, 8):
        whole = Dialogues(run.source, stage, seed, first).batch
        assert whole.tokens.shape == (stage.batch, SPANS * 32)
        for field in FIELDS:
            read = torch.cat([getattr(one, field) for one in seen[first : first + SPANS]], dim=1)
            assert torch.equal(read, getattr(whole, field)[:, : read.shape[1]])
    assert not torch.equal(seen[0].tokens, seen[4].tokens)


def test_what_a_step_sees_is_what_the_whole_dialogue_shows(
    long: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hidden states and scores, sequence by sequence, against the full form at once."""
    run = long.start(tmp_path)
    run.model.train()
    base = run.model.model
    hidden: list[Tensor] = []
    feed = type(base).feed

    def spied(self: object, *args: object, **kwargs: object) -> tuple[Tensor, object]:
        h, state = feed(self, *args, **kwargs)  # type: ignore[arg-type]
        hidden.append(h)
        return h, state

    monkeypatch.setattr(type(base), "feed", spied)
    dialogues = Dialogues(run.source, run.recipe.stages[0], 1, 0)
    with scores(run.model) as found:
        for _ in range(SPANS):
            run._dialogue_loss(dialogues, np.random.default_rng(0))
    assert dialogues.through
    whole = Dialogues(run.source, run.recipe.stages[0], 1, 0).batch.tokens
    with scores(run.model) as expected:
        (h,), _ = base.full(whole)
    torch.testing.assert_close(torch.cat(hidden, 1), h, atol=1e-5, rtol=1e-4)
    ((score,),) = expected
    torch.testing.assert_close(torch.cat(found[0], 1), score, atol=1e-4, rtol=1e-4)


def test_the_gradient_stays_within_a_sequence(long: Trainer, tmp_path: Path) -> None:
    run = long.start(tmp_path)
    dialogues = Dialogues(run.source, run.recipe.stages[0], 1, 0)
    for _ in range(2):
        loss, _ = run._dialogue_loss(dialogues, np.random.default_rng(0))
        assert dialogues.state is not None
        assert not any(part.requires_grad for part in dialogues.state.values())
        run.optimizer.zero_grad()
        loss.backward()  # also the second time: nothing is left of the first graph
        moved = [name for name, p in run.model.named_parameters() if p.grad is not None]
        assert "model.layers.1.layer.qkv.k_proj.weight" in moved


def test_text_between_two_sequences_does_not_part_them(
    long: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = replace(long.recipe.stages[0], text=0.5)
    run = Trainer(replace(long.recipe, stages=(stage,))).start(tmp_path)
    seen = seen_by(monkeypatch)
    run.run()
    assert SPANS < len(seen) < 11
    whole = [Dialogues(run.source, stage, run.recipe.seed, step).batch.tokens for step in range(11)]
    read = torch.cat([one.tokens for one in seen[:SPANS]], dim=1)
    assert any(torch.equal(read, one) for one in whole)


def test_a_stage_begins_dialogues_of_its_own(
    long: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = replace(long.recipe.stages[0], tokens=2 * 64)  # ends halfway through its dialogue
    second = replace(first, notes=(2, 2))
    run = Trainer(replace(long.recipe, stages=(first, second))).start(tmp_path)
    seen = seen_by(monkeypatch)
    run.run()
    fresh = Dialogues(run.source, second, run.recipe.seed, 2).batch
    read = torch.cat([one.tokens for one in seen[2:]], dim=1)
    assert torch.equal(read, fresh.tokens[:, :64])


def test_a_run_stopped_within_a_dialogue_goes_on_in_it(long: Trainer, tmp_path: Path) -> None:
    whole = long.start(tmp_path / "whole")
    whole.run()
    while (cut := long.start(tmp_path / "cut")).step < len(cut.steps):
        cut.run(max_minutes=0)
    left, right = cut.model.state_dict(), whole.model.state_dict()
    assert not [name for name in left if not torch.equal(left[name], right[name])]
    assert cut.under_way is not None
    assert whole.under_way is not None
    assert (cut.under_way.begun, cut.under_way.read) == (8, 3)
    assert cut.under_way.state is not None
    assert whole.under_way.state is not None
    for name, part in whole.under_way.state.items():
        assert torch.equal(cut.under_way.state[name], part), name
