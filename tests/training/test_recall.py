"""What is measured of a model is what a reader of the table takes it for."""

import json
import re
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import recall as benchmark
from bmojo_neuron import BMojoConfig, BMojoForCausalLM
from bmojo_neuron.model import default_model_path
from bmojo_neuron.state import State
from bmojo_neuron.training.dialogues import DialogueSource, Split, evaluation_dialogue
from bmojo_neuron.training.loop import Training
from bmojo_neuron.training.recall import measure, measure_all, perplexity, without_eidetic
from bmojo_neuron.training.release import install, model_card, recall_table, release
from tests.training.conftest import Trainer

FAR = (4096, 6144, 8192, 16384, 32768, 65536)


class Reader:
    """Answers right where the name's token id is even, and holds the values of every third name."""

    def __init__(self, source: DialogueSource) -> None:
        self.config = SimpleNamespace(has_eidetic=True)
        self._source = source
        self._rows: list[list[int]] = []

    def new_state(self, rows: int) -> State:
        self._rows = [[] for _ in range(rows)]
        return {}

    def feed(self, ids: Tensor, state: State, donate: bool) -> tuple[Tensor, State]:
        logits = torch.zeros(len(ids), 2000)
        position = torch.full((len(ids), 5), -1, dtype=torch.int32)
        for row, (seen, new) in enumerate(zip(self._rows, ids.tolist(), strict=True)):
            seen += new
            name = seen[-3]  # name | newline | Answer:
            stated = seen.index(name) + 2  # name | is | value
            assert seen[stated - 3 : stated] == self._source.note(name, 0)[:3].tolist()
            logits[row, seen[stated] + name % 2] = 1
            if name % 3 == 0:
                position[row, 2] = stated
        return logits, {
            "layers.0.eidetic_position": torch.full_like(position, -1),
            "layers.1.eidetic_position": position,
            "layers.1.eidetic_score": torch.zeros(len(ids), 5),
        }


@pytest.mark.parametrize("split", ["heldout_pairs", "heldout_names"])
@pytest.mark.parametrize(("distance", "notes"), [(40, 1), (100, 4)])
def test_measure_counts_right_and_held_answers(
    distance: int, notes: int, split: Split, unbroken: Training
) -> None:
    source = unbroken.heldout
    reader = Reader(source)
    result = measure(
        reader,  # type: ignore[arg-type]
        source,
        distance,
        split,
        dialogues=20,
        notes=notes,
        seed=3,
    )
    rng = np.random.default_rng([3, distance])
    names = []
    for _ in range(20):
        dialogue = evaluation_dialogue(rng, source, distance=distance, notes=notes, split=split)
        names += dialogue.tokens[np.flatnonzero(dialogue.is_answer) - 3].tolist()
    assert asdict(result) == {
        "distance": distance,
        "split": split,
        "eidetic": True,
        "questions": 20 * notes,
        "accuracy": np.mean([name % 2 == 0 for name in names]),
        "held": np.mean([name % 3 == 0 for name in names]),
    }
    assert 0 < result.accuracy < 1


def tiny_model(**options: object) -> BMojoForCausalLM:
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 1200}
    memory = {"num_attention_heads": 2, "window": 16, "eidetic_size": 16, "initializer_range": 0.2}
    return BMojoForCausalLM(BMojoConfig.bmojo(**{**sizes, **memory, **options})).eval()


@torch.no_grad()
def test_without_eidetic_is_the_same_model_with_no_slots() -> None:
    model = tiny_model()
    off, expected = without_eidetic(model), tiny_model(eidetic_size=0)
    expected.load_state_dict(model.state_dict(), strict=False)
    ids = torch.randint(0, 1200, (2, 100), generator=torch.Generator().manual_seed(0))
    logits, state = off.feed(ids, off.new_state(2), all_tokens=True)
    assert torch.equal(logits, expected.feed(ids, expected.new_state(2), all_tokens=True)[0])
    assert not [name for name in state if "eidetic" in name]
    on, _ = model.feed(ids, model.new_state(2), all_tokens=True)
    torch.testing.assert_close(on[:, :16], logits[:, :16], atol=1e-4, rtol=1e-4)
    assert (on[:, 32:] - logits[:, 32:]).abs().max() > 1e-3


@torch.no_grad()
def test_perplexity_by_hand() -> None:
    model = tiny_model()
    ids = torch.randint(0, 1200, (70,), generator=torch.Generator().manual_seed(0))
    losses = []
    for row in (ids[:32], ids[32:64]):  # the last six fill no stretch
        state = model.new_state()
        for given, target in pairwise(row):
            logits, state = model.feed(given.view(1, 1), state)
            losses.append(-logits.double().log_softmax(-1)[0, target].item())
    assert perplexity(model, ids, length=32) == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)


def test_all_cells_are_measured_on_the_same_dialogues(unbroken: Training) -> None:
    model = unbroken.model.eval()
    cells = list(measure_all(model, unbroken.heldout, [32, 64], questions=10))
    assert [(cell.distance, cell.split, cell.eidetic) for cell in cells] == [
        (distance, split, eidetic)
        for distance in (32, 64)
        for split in ("heldout_pairs", "heldout_names")
        for eidetic in (True, False)
    ]
    assert {cell.questions for cell in cells} == {12}
    assert [cell.held is None for cell in cells] == [False, True] * 4
    off = without_eidetic(model)
    assert len(list(measure_all(off, unbroken.heldout, [32], questions=4))) == 2


def test_release_and_install(unbroken: Training, tmp_path: Path) -> None:
    unbroken.recipe = replace(unbroken.recipe, distances=(32, 64))
    report = release(unbroken, "tiny")
    source = unbroken.out / "model"
    assert json.loads((source / "report.json").read_text()) == json.loads(json.dumps(report))
    assert report["tokens"] == 8 * 128
    assert report["recipe"]["name"] == "tiny"
    assert len(report["recall"]) == 8
    card = (source / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert f"per token: {report['perplexity']:.1f}." in card
    assert f"{report['parameters']:,} float32 parameters" in card
    assert "1,024\ntokens in 8 steps, seed 20240706" in card
    assert "| 512 | 64 | 2 | 1 to 3 | 20% to 60% | 1 |" in card
    assert "(256 questions for each figure)" in card

    target = tmp_path / "package" / "default_model"
    target.mkdir(parents=True)
    (target / "stale").touch()
    assert install(unbroken.out, target) == target
    assert {path.name for path in target.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors", "report.json"),
        *("tokenizer.json", "tokenizer_config.json", "README.md"),
    }
    assert [path.name for path in target.parent.iterdir()] == ["default_model"]
    model = AutoModelForCausalLM.from_pretrained(target)
    assert torch.equal(model.model.embed_tokens.weight, unbroken.model.model.embed_tokens.weight)
    assert AutoTokenizer.from_pretrained(target)("x")["input_ids"][0] == model.config.bos_token_id


def test_the_shipped_card_is_what_the_template_gives() -> None:
    path = default_model_path()
    report = json.loads((path / "report.json").read_text())
    card = model_card(report, BMojoConfig.from_pretrained(path))
    assert (path / "README.md").read_text() == card
    (code,) = re.findall(r"^```python\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)
    compile(code, "README.md", "exec")


def test_install_refuses_a_run_that_is_not_through(tiny: Trainer, tmp_path: Path) -> None:
    tiny.start(tmp_path / "run").run(max_minutes=0)
    with pytest.raises(FileNotFoundError, match="run: expected the directory of a finished run"):
        install(tmp_path / "run", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_table_has_one_line_per_distance(unbroken: Training) -> None:
    cells = list(measure_all(unbroken.model.eval(), unbroken.heldout, [32, 64], questions=4))
    cells[0] = replace(cells[0], accuracy=0.5, held=0.25)
    table = recall_table(cells, window=16).splitlines()
    assert len(table) == 4
    assert table[2].startswith("| 32 | 2 | 50.0% | ")
    assert [word.strip() for word in table[2].split("|")][5] == "25.0%"


def test_wilson_interval() -> None:
    low, high = benchmark.wilson(0.9, 100)  # of the textbook: 0.8256 to 0.9448
    assert (low, high) == (pytest.approx(0.8256, abs=1e-4), pytest.approx(0.9448, abs=1e-4))
    assert benchmark.wilson(1.0, 256) == (pytest.approx(0.9852, abs=1e-4), pytest.approx(1.0))


def test_cuts_and_eviction_change_no_answer(unbroken: Training) -> None:
    plan = benchmark.Plan(cut_distance=100, cut_dialogues=3)
    cuts = benchmark.measure_cuts(unbroken.model.eval(), unbroken.heldout, plan)
    assert cuts["questions"] == 12
    assert list(cuts["same"].values()) == [12, 12]
    assert all(0 <= value < 1e-4 for value in cuts["largest_logit_difference"].values())


def test_a_state_lost_between_pieces_would_show(
    unbroken: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(state: State, _: object) -> tuple[State, int]:
        return {name: torch.zeros_like(part) for name, part in state.items()}, 1

    monkeypatch.setattr(benchmark, "through_bytes", forgetful)
    plan = benchmark.Plan(cut_distance=100, cut_dialogues=1)
    cuts = benchmark.measure_cuts(unbroken.model.eval(), unbroken.heldout, plan)
    assert cuts["largest_logit_difference"][benchmark.WAYS[1]] > 0.01


def test_the_page_tells_which_goals_are_met(unbroken: Training, tmp_path: Path) -> None:
    model = unbroken.model.eval()
    plan = benchmark.Plan(((64, 4), (16 * 16, 4), (512, 4)), cut_distance=64, cut_dialogues=1)
    result = benchmark.measure(model, unbroken.heldout, plan)
    for cell in result["recall"]:
        if cell["distance"] == 256 and cell["split"] == "heldout_pairs":
            cell["accuracy"] = 0.95 if cell["eidetic"] else 0.5
    page = benchmark.render(result)
    assert "| recall at 16 windows | >= 90% | 95.0% (" in page
    assert [line[3] for line in benchmark.goals(result)] == ["met", "not met", "met", "met"]
    benchmark.plot(result, tmp_path / "recall.svg")
    assert "held-out names, memory off" in (tmp_path / "recall.svg").read_text()


def test_the_table_goes_on_past_the_end_of_memory() -> None:
    result = json.loads((benchmark.RESULTS / "recall.json").read_text())
    by_distance = {d: benchmark.find(result, d, "heldout_pairs", True) for d in FAR}
    assert None not in by_distance.values(), by_distance
    last = by_distance[FAR[-1]]
    assert last is not None
    row = benchmark.row_of(result, FAR[-1])
    assert row[:3] == ["65,536", "1024", str(last.questions)]
    low, high = benchmark.wilson(last.accuracy, last.questions)
    assert row[3] == f"{last.accuracy:.1%} ({low:.1%}-{high:.1%})"


def test_the_readme_shows_the_committed_result() -> None:
    shown = benchmark.BLOCK.search(benchmark.README.read_text())
    assert shown is not None, "README.md: expected <!-- results:recall --> and <!-- /results -->"
    committed = benchmark.RESULTS / "recall.json"
    if not committed.is_file():
        assert shown.group() == ""
        return
    result = json.loads(committed.read_text())
    assert shown.group() == benchmark.snippet(result)
    figure = f"![recall]({committed.with_suffix('.svg').name})\n\n"
    page = committed.with_suffix(".md").read_text()
    assert page.replace(figure, "", 1) == benchmark.render(result)
