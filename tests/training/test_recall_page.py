"""The benchmark of recall: its programme, its page, its picture and the README's lines."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from benchmarks import recall as benchmark
from benchmarks import recall_page as page
from benchmarks.report import RESULTS
from bmojo_neuron.state import State
from bmojo_neuron.training.corpus import Text
from bmojo_neuron.training.recall import Plan
from tests.training.conftest import tiny_model

TINY = benchmark.Programme(
    far=Plan((0, 1, 2), rows=2, untold=1),
    farther=Plan((2, 3), rows=1),
    known=Plan((1, 2), rows=1, kept_out=False),
    off=Plan((0, 2), rows=2),
    corrected=Plan((0, 1), rows=2, corrected=2),
    leads=(40, 80),
    late=Plan((1,), rows=1),
    counts=(1, 2),
    several=Plan((1,)),
    slots=(4, 16),
    few=Plan((1,), rows=1),
    forms=Plan((1,), rows=1),
    cut_length=100,
    cut_dialogues=2,
)
GOALS = {0: 16, 1: 256, 2: 1024}  # the tiny programme's distances as those of the goals
LEADS = {"40": "16384", "80": "65536"}


@pytest.fixture(scope="module")
def bench(small: dict[str, Text], small_tokenizer: PreTrainedTokenizerFast) -> benchmark.Bench:
    model = tiny_model(bos_token_id=small_tokenizer.bos_token_id)
    return benchmark.Bench(model, small_tokenizer, small)


@pytest.fixture(scope="module")
def measured(bench: benchmark.Bench) -> dict[str, Any]:
    return json.loads(json.dumps(bench.run(TINY)))


def renamed(result: dict[str, Any]) -> dict[str, Any]:
    """A tiny result as if its distances and leads were those of the goals."""
    result = copy.deepcopy(result)
    recall = result["recall"]
    for part in ("far", "corrected", "off"):
        for cells in recall[part].values():
            for cell in cells:
                names = GOALS if part == "far" else {0: 0, 1: 16, 2: 16}
                cell["windows"] = names[cell["windows"]]
    recall["late"] = {
        f"{key.split()[0]} {LEADS[key.split()[1]]}": cells for key, cells in recall["late"].items()
    }
    return result


@pytest.fixture
def result(measured: dict[str, Any]) -> dict[str, Any]:
    return renamed(measured)


def test_the_programme_is_measured_whole(measured: dict[str, Any]) -> None:
    recall = measured["recall"]
    kinds = ["bible", "documentation", "code"]
    assert list(measured["filler"]) == list(recall["far"]) == list(recall["corrected"]) == kinds
    for cells in recall["far"].values():
        assert [(cell["windows"], cell["asked"], cell["questions"]) for cell in cells] == [
            (windows, asked, count)
            for windows in (0, 1, 2)
            for asked, count in (("told", 8), ("untold", 2))
        ]
    assert list(recall["late"]) == [f"{kind} {lead}" for kind in kinds for lead in (40, 80)]
    assert list(recall["notes"]) == ["1", "2"]
    assert [cells[0]["questions"] for cells in recall["notes"].values()] == [64, 128]
    assert list(recall["slots"]) == ["4", "16"]
    assert {cell["held"] for cell in recall["off"]["bible"]} == {None}
    assert [cell["asked"] for cell in recall["corrected"]["code"]] == ["told", "corrected"] * 2
    for row in measured["language"].values():
        assert row["kneser_ney_2"] > 1
        assert row["model"] > 100
        assert row["bits_per_character"] > 1
    assert [prompt for prompt, _ in measured["transcripts"]] == list(benchmark.PROMPTS)
    assert measured["parameters"] == tiny_model().num_parameters()


def test_the_page_shows_what_was_measured(result: dict[str, Any]) -> None:
    recall = result["recall"]
    recall["far"]["code"][2] |= {"right": 0.75, "several": None, "held": 0.5, "unknown": 0.125}
    recall["far"]["code"][3] |= {"right": 0.5}
    text = page.render(result)
    assert "| 256 | 8 | 75.0% (40.9%-92.9%) | - | 50.0% | 50.0% (9.5%-90.5%) | 12.5% |" in text
    assert f"| code | 65,536 | {page.show(recall['late']['code 65536'][0])} | " in text
    assert f"(bible {result['filler']['bible']:,}, documentation " in text
    assert f"The model has {result['parameters']:,} parameters." in text
    language = result["language"]["code"]
    assert f"| code | {language['model']:.1f} | {language['bits_per_character']:.3f} | " in text
    assert "\n> **In the beginning**" in text
    assert "2 dialogues of 100 tokens are fed whole, in 12 random pieces" in text
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert len(headings) == len(set(headings)) == 14


def verdicts(result: dict[str, Any]) -> dict[str, str]:
    return {what: verdict for what, _, _, verdict in page.goals(result)}


def perfect(result: dict[str, Any]) -> dict[str, Any]:
    """Every cell at its best."""
    for part, by_key in result["recall"].items():
        for cells in by_key.values():
            for cell in cells:
                good = {"right": 0.0 if part == "off" else 1.0, "several": 1.0, "held": 1.0}
                cell |= good | {"unknown": float(cell["asked"] == "untold"), "older": 0.0}
    result["language"]["bible"] |= {"model": 50.0, "kneser_ney_5": 61.0}
    return result


def test_every_goal_can_be_met_and_missed(result: dict[str, Any]) -> None:
    recall = perfect(result)["recall"]
    assert set(verdicts(result).values()) == {"met"}
    assert len(verdicts(result)) == 15

    spoilt: list[tuple[str, Any, str, float]] = [
        ("16 windows", recall["far"]["code"][0], "right", 0.94),
        ("256 windows", recall["far"]["documentation"][2], "right", 0.89),
        ("1,024 windows", recall["far"]["bible"][4], "right", 0.84),
        ("16 windows, one to eight notes", recall["notes"]["2"][0], "right", 0.94),
        (
            "told at token 16,384, asked 16 windows on",
            recall["late"]["code 16384"][0],
            "right",
            0.89,
        ),
        (
            "told at token 65,536, asked 16 windows on",
            recall["late"]["bible 65536"][0],
            "right",
            0.89,
        ),
        ("corrected, at once: newer", recall["corrected"]["code"][1], "right", 0.94),
        ("corrected, 16 windows on: newer", recall["corrected"]["bible"][3], "right", 0.94),
        ("value of several tokens, 16 windows", recall["far"]["bible"][0], "several", 0.89),
        ("never told: unknown, 16 windows", recall["far"]["code"][1], "right", 0.89),
        ("told, but answered by unknown", recall["far"]["code"][0], "unknown", 0.03),
        ("held at 1,024 windows", recall["far"]["documentation"][4], "held", 0.97),
        ("memory off, beyond the window", recall["off"]["bible"][1], "right", 0.06),
        ("perplexity per token, held-out books", result["language"]["bible"], "model", 50.1),
        (
            "of a 5-gram's on the same tokens",
            result["language"]["bible"],
            "kneser_ney_5",
            60.0,
        ),
    ]
    for what, cell, field, value in spoilt:
        before = cell[field]
        cell[field] = value
        assert [name for name, verdict in verdicts(result).items() if verdict != "met"] == [what]
        cell[field] = before


def test_what_was_not_measured_is_told(result: dict[str, Any]) -> None:
    """A quick look may ask no value of several tokens; a model without memory holds nothing."""
    for cells in perfect(result)["recall"]["far"].values():
        for cell in cells:
            cell |= {"several": None, "held": None}
    rows = {row[0]: row[2:] for row in page.goals(result)}
    assert rows["value of several tokens, 16 windows"] == ["-", "not measured"]
    assert rows["held at 1,024 windows"] == ["-", "not measured"]
    assert "| - | not measured |" in page.render(result)


def test_the_picture_has_every_line(result: dict[str, Any], tmp_path: Path) -> None:
    page.plot(result, tmp_path / "recall.svg")
    text = (tmp_path / "recall.svg").read_text()
    for label in ("told, bible", "told, code", "told, farther", "memory off", "untold, bible"):
        assert f"<!-- {label} -->" in text
    page.plot(result, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == text


def test_the_snippet_stands_between_its_marks(result: dict[str, Any]) -> None:
    result["recall"]["far"]["bible"][2]["right"] = 0.5
    readme = "before\n<!-- results:recall -->\nold\n<!-- /results -->\nafter\n"
    text = page.snippet(result, readme)
    assert text.startswith("before\n<!-- results:recall -->\n\n![Recall by distance](")
    assert text.endswith(f"{page.LEGEND}\n<!-- /results -->\nafter\n")
    assert "old" not in text.replace("told", "").replace("hold", "")
    assert "| windows | tokens | bible | documentation | code | off |" in text
    assert f"| 256 | {256 * result['window']:,} | 50.0% (21.5%-78.5%) | " in text
    assert page.snippet(result, text) == text


def test_wilson_interval() -> None:
    low, high = page.wilson(0.9, 100)  # of the textbook: 0.8256 to 0.9448
    assert (low, high) == (pytest.approx(0.8256, abs=1e-4), pytest.approx(0.9448, abs=1e-4))
    assert page.wilson(1.0, 256) == (pytest.approx(0.9852, abs=1e-4), pytest.approx(1.0))


def test_cuts_and_eviction_change_no_answer(bench: benchmark.Bench) -> None:
    plan = replace(TINY, cut_length=200, cut_dialogues=4)
    cuts = benchmark.measure_cuts(bench.model, bench.source, plan)
    assert cuts["answer_tokens"] > 20
    assert list(cuts["same"].values()) == [cuts["answer_tokens"]] * 2
    assert all(0 <= value < 1e-3 for value in cuts["largest_logit_difference"].values())


def test_a_state_lost_between_pieces_would_show(
    bench: benchmark.Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(state: State, _: object) -> tuple[State, int]:
        return {name: torch.zeros_like(part) for name, part in state.items()}, 1

    monkeypatch.setattr(benchmark, "through_bytes", forgetful)
    cuts = benchmark.measure_cuts(bench.model, bench.source, TINY)
    assert cuts["largest_logit_difference"][benchmark.WAYS[1]] > 0.01


def test_the_full_and_the_quick_programme_measure_every_goal() -> None:
    for plan in (benchmark.FULL, benchmark.QUICK):
        assert {16, 256, 1024} <= set(plan.far.windows)
        assert {16_384, 65_536} <= set(plan.leads)
        assert {0, 16} <= set(plan.corrected.windows)
        assert plan.late.windows == plan.several.windows == (16,)
        assert plan.far.untold
        assert {1, 8} <= set(plan.counts)
        assert plan.corrected.corrected
        assert any(windows >= 4 for windows in plan.off.windows)
    assert max(benchmark.FULL.counts) == 128
    assert max(benchmark.FULL.farther.windows) > 1024


def committed() -> dict[str, Any]:
    result: dict[str, Any] = json.loads((RESULTS / "recall.json").read_text())
    return result


def test_the_readme_shows_the_committed_result() -> None:
    result, readme = committed(), benchmark.README.read_text()
    assert page.BLOCK.search(readme) is not None
    assert page.snippet(result, readme) == readme
    assert (RESULTS / "recall.md").read_text() == page.render(result)


def test_the_committed_result_goes_on_past_the_end_of_memory() -> None:
    recall = committed()["recall"]
    for cells in recall["far"].values():
        assert page.find(cells, 1024) is not None
    assert max(cell["windows"] for cell in recall["farther"]["documentation"]) > 1024
