"""A run that was stopped, at any moment, ends as one that was not."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from bmojo_neuron.training import loop
from bmojo_neuron.training.loop import Training
from bmojo_neuron.training.optimizer import optimizer_tensors
from bmojo_neuron.training.recipe import RECIPES
from tests.training.conftest import Trainer


def tensors(training: Training) -> dict[str, Tensor]:
    """Weights and the optimiser's state."""
    weights = dict(training.model.state_dict())
    return weights | optimizer_tensors(training.optimizer)


def assert_equal(left: Training, right: Training) -> None:
    a, b = tensors(left), tensors(right)
    assert a.keys() == b.keys()
    assert not [name for name in a if not torch.equal(a[name], b[name])]


def log_of(out: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def rates_of(training: Training) -> list[float]:
    """The learning rate of every step of the plan, in units of the peak."""
    rates = []
    for step, stage in enumerate(training.steps):
        training.step = step
        rates.append(training._lr(stage) / training.recipe.peak_lr)
    return rates


def test_a_run_stopped_after_every_step_ends_as_an_unbroken_one(
    tiny: Trainer, unbroken: Training, tmp_path: Path
) -> None:
    stops = 0
    while (training := tiny.start(tmp_path / "broken")).step < len(training.steps):
        assert training.step == stops
        training.run(max_minutes=0)
        stops += 1
    assert stops == len(unbroken.steps) == 8
    assert_equal(training, unbroken)
    broken, whole = log_of(tmp_path / "broken"), log_of(unbroken.out)
    assert [row["step"] for row in broken] == [row["step"] for row in whole]
    assert all(row.items() <= full.items() for row, full in zip(broken, whole, strict=True))


def kill(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def cut_short(_: object, path: Path) -> None:
    path.write_bytes(b"half a fi")
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("where", "how"),
    [
        ("bmojo_neuron.training.run.shutil.rmtree", kill),
        ("bmojo_neuron.causal_lm.BMojoForCausalLM.save_pretrained", kill),
        ("transformers.PreTrainedTokenizerFast.save_pretrained", kill),
        ("bmojo_neuron.training.run.save_file", cut_short),
        ("pathlib.Path.replace", kill),
    ],
)
def test_a_kill_while_saving_leaves_the_checkpoint_before(
    where: str,
    how: object,
    tiny: Trainer,
    unbroken: Training,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "killed"
    for _ in range(2):
        tiny.start(out).run(max_minutes=0)
    with monkeypatch.context() as patch:
        patch.setattr(where, how)
        with pytest.raises(KeyboardInterrupt):
            tiny.start(out).run(max_minutes=0)
    training = tiny.start(out)
    assert training.step == 2
    training.run()
    assert_equal(training, unbroken)
    assert log_of(out)[-1] == log_of(unbroken.out)[-1]


def test_a_kill_between_checkpoints_goes_back_to_the_last(
    tiny: Trainer, unbroken: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, step = tmp_path / "killed", Training._train_step
    training = tiny.start(out)

    def fail_at_six(self: Training, stage: loop.Stage) -> dict[str, float]:
        if self.step == 6:
            raise KeyboardInterrupt
        return step(self, stage)

    clock: Iterator[float] = iter([0, 0, 0, 10_000, *[10_000] * 99])  # saves after the third step
    with monkeypatch.context() as patch:
        patch.setattr(Training, "_train_step", fail_at_six)
        patch.setattr(loop.time, "monotonic", lambda: next(clock))
        with pytest.raises(KeyboardInterrupt):
            training.run()
    assert [row["step"] for row in log_of(out)] == [1, 2, 3, 4, 5, 6]
    training = tiny.start(out)
    assert training.step == 3
    assert [row["step"] for row in log_of(out)] == [1, 2, 3]
    training.run()
    assert_equal(training, unbroken)
    assert log_of(out)[-1] == log_of(unbroken.out)[-1]


def test_a_fresh_start_replaces_the_old_checkpoint_only_with_its_own(
    tiny: Trainer, tmp_path: Path
) -> None:
    tiny.start(tmp_path).run()
    fresh = tiny.start(tmp_path, resume=False)
    assert fresh.step == 0
    assert tiny.start(tmp_path).step == 8
    fresh.run(max_minutes=0)
    assert tiny.start(tmp_path).step == 1


def test_the_log_has_losses_and_recall(unbroken: Training) -> None:
    rows = log_of(unbroken.out)
    assert [row["step"] for row in rows] == list(range(1, 9))
    new = [dict(row.items() - before.items()) for before, row in pairwise([{}, *rows])]
    losses = [{"text", "answer", "selection"} & row.keys() for row in new]
    assert [row == {"text"} for row in losses] == [kind == "t" for kind in "dttdddtt"]
    assert losses[0] == losses[3] == {"answer"}  # the first stage has no selection loss
    assert losses[4] | losses[5] == {"answer", "selection"}  # of one dialogue
    measured = {"perplexity", "told@0", "told@2", "held@0", "held@2"}
    assert [row["step"] for row in rows if measured & row.keys()] == [3, 6]
    assert measured <= rows[2].keys() & rows[5].keys()
    assert all(0 <= rows[2][name] <= 1 for name in measured - {"perplexity"})
    assert 100 < rows[2]["perplexity"] < 1500  # hardly trained: about its 1,200 tokens


def test_progress_tells_loss_speed_and_remaining_time(
    tiny: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.start(tmp_path).run()
    last = [line for line in capsys.readouterr().err.split("\r") if "tok/s" in line][-1]
    assert "1.02k/1.02k" in last
    assert "<00:00" in last
    assert "text=" in last
    assert "answer=" in last


def test_the_losses_fall(tiny: Trainer, tmp_path: Path) -> None:
    first, _ = tiny.recipe.stages
    stage = replace(first, tokens=60 * 128, notes=(1, 1), filler=(0, 0), copies=0.0, text=0.5)
    recipe = replace(tiny.recipe, stages=(stage,), peak_lr=1e-2, evaluate_every=1000)
    Trainer(recipe).start(tmp_path).run()
    rows = log_of(tmp_path)
    for name in ("text", "answer"):
        losses = [row[name] for row in rows if name in row]
        assert sum(losses[-8:]) < 0.95 * sum(losses[:8]), name


def test_text_steps_drop_and_dialogue_steps_do_not(tiny: Trainer, tmp_path: Path) -> None:
    first, _ = tiny.recipe.stages
    for text, other in ((1.0, "text"), (0.0, "answer")):
        recipe = replace(tiny.recipe, stages=(replace(first, text=text, tokens=128),))
        rows = []
        for share in (0.0, 0.5):
            run = Trainer(replace(recipe, dropout=share)).start(tmp_path / f"{other}{share}")
            run.run()
            rows.append(log_of(run.out)[0])
        assert (rows[0][other] == rows[1][other]) == (other == "answer")
        assert rows[0].keys() == {"step", other}


def test_a_step_without_questions_tells_no_loss_of_answers(tiny: Trainer, tmp_path: Path) -> None:
    first, _ = tiny.recipe.stages
    silent = replace(first, length=4, batch=2, tokens=8, text=0.0, copies=0.0, until=1e3)
    run = Trainer(replace(tiny.recipe, stages=(silent,), attempts=1)).start(tmp_path)
    run.run()
    assert log_of(tmp_path) == [{"step": 1}]
    assert run.answer is None


def test_every_kind_of_text_is_read_whether_or_not_it_is_filler(
    tiny: Trainer, tmp_path: Path
) -> None:
    recipe = replace(tiny.recipe, text_kinds={"prose": 1.0}, filler_kinds={"bible": 1.0})
    run = Trainer(recipe).start(tmp_path)
    rows = run.texts(recipe.stages[0], np.random.default_rng(0))
    assert rows.shape == (4, 32)
    assert (rows[:, 0] == run.source.bos).all()
    prose = run.tokenizer.decode(run.texts_alone["prose"][0].tokens)
    assert all(run.tokenizer.decode(row[1:]) in prose for row in rows)


def test_a_stage_ends_when_its_answers_are_learnt(tiny: Trainer, tmp_path: Path) -> None:
    first, second = tiny.recipe.stages
    recipe = replace(tiny.recipe, stages=(replace(first, until=1e3), second))
    whole = Trainer(recipe).start(tmp_path / "whole")
    whole.run()
    assert whole.taken == [1, second.steps]  # any loss was low enough for the first stage
    assert whole.step == len(whole.steps) == 1 + second.steps
    assert log_of(whole.out)[-1]["step"] == whole.step

    cut = Trainer(recipe).start(tmp_path / "cut")
    cut.run(max_minutes=0)
    cut = Trainer(recipe).start(cut.out)  # a resumed run knows what was dropped
    assert cut.taken == whole.taken
    cut.run()
    assert_equal(cut, whole)


def test_a_run_that_does_not_learn_starts_again_with_another_seed(
    tiny: Trainer, tmp_path: Path
) -> None:
    first, second = tiny.recipe.stages
    stages = (replace(first, until=0.0), second)  # out of reach
    run = Trainer(replace(tiny.recipe, stages=stages, attempts=2)).start(tmp_path / "tried")
    run.run()
    assert run.attempt == 1
    assert run.taken == [first.steps, second.steps]  # the last attempt goes on regardless
    assert [row["step"] for row in log_of(run.out)] == list(range(1, len(run.steps) + 1))

    recipe = replace(tiny.recipe, seed=tiny.recipe.seed + 1)
    other = Trainer(recipe).start(tmp_path / "second seed")
    other.run()
    assert_equal(run, other)

    cut = Trainer(run.recipe).start(tmp_path / "cut")
    while cut.attempt < 1:
        cut = Trainer(run.recipe).start(cut.out)
        cut.run(max_minutes=0)
    cut = Trainer(run.recipe).start(cut.out)  # a resumed run knows its attempt
    assert cut.attempt == 1
    cut.run()
    assert_equal(cut, run)


def test_a_resumed_run_averages_on(tiny: Trainer, tmp_path: Path) -> None:
    first = tiny.start(tmp_path)
    first.run(max_minutes=0)
    assert tiny.start(tmp_path).answer == first.answer is not None


def test_a_checkpoint_is_a_model(unbroken: Training) -> None:
    position = json.loads((unbroken.out / "training.json").read_text())
    folder = unbroken.out / position["checkpoint"]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = AutoTokenizer.from_pretrained(folder)("In the beginning", return_tensors="pt")
    with torch.no_grad():
        expected = unbroken.model(**ids, use_cache=False).logits
        assert torch.equal(model(**ids, use_cache=False).logits, expected)


def test_the_default_recipe_warms_up_with_copies_and_grows_in_distance() -> None:
    stages = RECIPES["default"].stages
    lengths = [stage.length * stage.spans for stage in stages]
    longest = lengths.index(max(lengths))
    assert lengths[: longest + 1] == sorted(lengths[: longest + 1])
    assert max(lengths) >= 16_384
    assert stages[0].copies == max(stage.copies for stage in stages)
    assert [stage.until is None for stage in stages] == [False] + [True] * (len(stages) - 1)
    assert all(stage.steps > 10 for stage in stages)


def test_a_stage_with_a_rate_of_its_own_stands_outside_the_cosine(
    tiny: Trainer, tmp_path: Path
) -> None:
    first, second = tiny.recipe.stages
    recipe = replace(tiny.recipe, warmup=1)
    plain = Trainer(recipe).start(tmp_path / "plain")
    longer = replace(recipe, stages=(first, second, replace(second, lr=0.123)))
    behind = Trainer(longer).start(tmp_path / "behind")
    for run in (plain, behind):
        run.step = first.steps
    assert behind._lr(second) == plain._lr(second)
    assert behind._lr(longer.stages[-1]) == 0.123


def test_the_rate_rises_to_its_peak_and_falls_to_a_hundredth(tiny: Trainer, tmp_path: Path) -> None:
    run = tiny.start(tmp_path)
    rates = rates_of(run)
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert 0.01 < rates[-1] < 0.1


def test_behind_a_first_stage_with_a_rate_of_its_own_the_cosine_is_whole(
    tiny: Trainer, tmp_path: Path
) -> None:
    first, second = tiny.recipe.stages
    own = replace(first, tokens=9 * 128, lr=0.123)
    second = replace(second, tokens=20 * 128)
    alone = Trainer(replace(tiny.recipe, stages=(second,))).start(tmp_path / "alone")
    run = Trainer(replace(tiny.recipe, stages=(own, second))).start(tmp_path / "behind")
    rates = rates_of(run)
    assert rates[:9] == [0.123 / run.recipe.peak_lr] * 9
    assert rates[9:] == rates_of(alone)
