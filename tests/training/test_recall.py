"""What is measured of a model is what a reader of the table takes it for."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from bmojo_neuron import BMojoConfig
from bmojo_neuron.model import default_model_path
from bmojo_neuron.state import State
from bmojo_neuron.training import recall
from bmojo_neuron.training.corpus import Text
from bmojo_neuron.training.dialogues import DialogueSource, Filler
from bmojo_neuron.training.loop import Training
from bmojo_neuron.training.recall import Cell, Plan, measure, perplexity, with_slots
from bmojo_neuron.training.release import install, model_card, recall_table, release
from bmojo_neuron.training.words import UNKNOWN, Words, is_kept_out
from tests.training.conftest import Trainer, text_of, tiny_model

WINDOW = 16
NOTE = re.compile(r"^(?:Note|(Correction)): (.+?) is (.+)\.$", re.MULTILINE)
SAYS = ("newest", "first", "unknown", "another")  # what the reader answers, by name
HOLDS = (0, 0, 1)  # how many layers hold a value, by name


@dataclass
class Asked:
    """One question, as the reader met it."""

    distance: int  # tokens between what told last and the question's line
    start: int  # token at which the first note begins
    name: str
    notes: dict[str, list[str]]  # values of each name, newest last
    said: str


@dataclass
class Reader:
    """Reads the text of its tokens, answers by `SAYS`, and holds values by `HOLDS`."""

    source: DialogueSource
    says: tuple[str, ...] = SAYS
    asked: list[Asked] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.config = SimpleNamespace(window=WINDOW)

    def new_state(self, rows: int) -> State:
        position = torch.full((rows, 200), -1, dtype=torch.int32)
        return {
            "seen": torch.zeros(rows, 0, dtype=torch.int32),
            "layers.0.eidetic_position": position,
            "layers.1.eidetic_position": position,
        }

    def feed(
        self, ids: Tensor, state: State, lengths: list[int] | None = None, donate: bool = False
    ) -> tuple[Tensor, State]:
        lengths = [ids.shape[1]] * len(ids) if lengths is None else lengths
        rows = [
            [*seen[seen >= 0].tolist(), *new[:length].tolist()]
            for seen, new, length in zip(state["seen"], ids, lengths, strict=True)
        ]
        longest = max(map(len, rows))
        seen = torch.tensor([row + [-1] * (longest - len(row)) for row in rows], dtype=torch.int32)
        position = torch.full((len(rows), 200), -1, dtype=torch.int32)
        logits = torch.zeros(len(rows), len(self.source.tokenizer))
        for i, row in enumerate(rows):
            held = self.held(row)
            position[i, : len(held)] = torch.tensor(held, dtype=torch.int32)
            logits[i, self.next_token(row)] = 1
        state = {**state, "seen": seen, "layers.1.eidetic_position": position}
        return logits, state

    def text(self, row: list[int]) -> str:
        """What was read, a newline for bos."""
        return "\n" + text_of(self.source.tokenizer, row[1:])

    def policy(self, name: str) -> str:
        return self.says[sum(name.encode()) % len(self.says)]

    def held(self, row: list[int]) -> list[int]:
        text = self.text(row)
        places: list[int] = []
        for found in NOTE.finditer(text):
            if HOLDS[sum(found[2].encode()) % len(HOLDS)]:
                before = self.source.ids(text[: found.end(2)] + " is")
                value = self.source.ids(f" {found[3]}")
                places += range(len(before), len(before) + len(value))
        return places

    def next_token(self, row: list[int]) -> int:
        text = self.text(row)
        head, question, rest = text.rpartition("\nQuestion: ")
        if not question:
            return 0
        name, answered = rest.split("\nAnswer:")
        notes: dict[str, list[str]] = {}
        found = list(NOTE.finditer(head))
        for note in found:
            notes.setdefault(note[2], []).append(note[3])
        values = notes.get(name, [UNKNOWN])
        value = {"newest": values[-1], "first": values[0], "unknown": UNKNOWN}.get(
            self.policy(name), "water"
        )
        if not answered:
            told = self.source.ids(head[: found[-1].end() + 1])
            start = len(self.source.ids(head[: found[0].start()]))
            distance = len(self.source.ids(head)) - len(told)
            self.asked.append(Asked(distance, start, name, notes, f" {value}."))
        target = self.source.ids(f" {value}.")
        done = len(self.source.ids(answered)) if answered else 0
        return int(target[done]) if done < len(target) else 0


@pytest.fixture(scope="module")
def source(
    small: dict[str, Text], small_tokenizer: PreTrainedTokenizerFast, words: Words
) -> DialogueSource:
    filler = Filler(small_tokenizer, small["bible"].heldout)
    return DialogueSource(small_tokenizer, words, {"bible": (filler, 1.0)})


@pytest.fixture(scope="module")
def filler(source: DialogueSource) -> Filler:
    return source.fillers["bible"][0]


def cells_of(reader: Any, source: DialogueSource, filler: Filler, plan: Plan) -> list[Cell]:
    return list(measure(reader, source, filler, plan))


PLANS = [
    Plan((0, 3), rows=12, notes=4, untold=2),
    Plan((2,), rows=12, notes=3, corrected=2, lead=40),
    Plan((1,), rows=2, notes=40, kept_out=False, seed=5),
]


@pytest.mark.parametrize("plan", PLANS, ids=["untold", "corrected", "many"])
def test_measure_counts_what_the_reader_said(
    source: DialogueSource, filler: Filler, plan: Plan
) -> None:
    reader = Reader(source)
    cells = cells_of(reader, source, filler, plan)
    per_window = plan.rows * (plan.notes + plan.untold)
    assert len(reader.asked) == per_window * len(plan.windows)
    seen = []
    for i, windows in enumerate(sorted(plan.windows)):
        part = reader.asked[i * per_window : (i + 1) * per_window]
        for kind in ("told", "corrected", "untold"):
            of_kind = [one for one in part if kind_of(one) == kind]
            if of_kind:
                seen.append(expected_cell(reader, windows, kind, of_kind))
    assert cells == seen
    assert sum(cell.questions for cell in cells) == len(reader.asked)
    assert all(0 < cell.right < 1 for cell in cells)


def kind_of(one: Asked) -> str:
    values = one.notes.get(one.name)
    return "untold" if values is None else "told" if len(values) == 1 else "corrected"


def expected_cell(reader: Reader, windows: int, kind: Any, asked: list[Asked]) -> Cell:
    def share(hits: list[bool]) -> float:
        return pytest.approx(sum(hits) / len(hits))  # type: ignore[return-value]

    right, several, older, unknown, held = [], [], [], [], []
    for one in asked:
        values = one.notes.get(one.name, [UNKNOWN])
        right.append(one.said == f" {values[-1]}.")
        if len(reader.source.ids(f" {values[-1]}")) > 1:
            several.append(right[-1])
        older.append(len(values) > 1 and one.said == f" {values[0]}.")
        unknown.append(one.said == f" {UNKNOWN}.")
        held.append(bool(HOLDS[sum(one.name.encode()) % len(HOLDS)]))
    return Cell(
        windows,
        kind,
        len(asked),
        share(right),
        share(several) if several else None,
        share(older),
        share(unknown),
        None if kind == "untold" else share(held),
    )


@pytest.mark.parametrize("plan", PLANS, ids=["untold", "corrected", "many"])
def test_questions_stand_on_their_own_line_at_the_distance(
    source: DialogueSource, filler: Filler, plan: Plan
) -> None:
    reader = Reader(source)
    cells_of(reader, source, filler, plan)
    assert {one.distance for one in reader.asked} == {windows * WINDOW for windows in plan.windows}
    starts = {one.start for one in reader.asked}
    assert min(starts) == 1 + plan.lead
    for one in reader.asked:
        for text in (one.name, *[value for values in one.notes.values() for value in values]):
            words = re.sub(r"^(the|my) |'s\b", "", text).split(" ")
            assert all(is_kept_out(word) == plan.kept_out for word in words), text


@pytest.mark.parametrize(
    ("says", "right", "unknown"), [("newest", 1.0, 0.0), ("another", 0.0, 0.0), ("unknown", 0, 1)]
)
def test_a_perfect_reader_is_right_and_a_wrong_one_is_not(
    source: DialogueSource, filler: Filler, says: str, right: float, unknown: float
) -> None:
    plan = Plan((0, 2), rows=4, notes=3, corrected=1)
    for cell in cells_of(Reader(source, (says,)), source, filler, plan):
        assert (cell.right, cell.unknown, cell.older) == (right, unknown, 0.0)
        assert cell.several in (None, right)
    for cell in cells_of(Reader(source, ("first",)), source, filler, plan):
        expected = (1.0, 0.0) if cell.asked == "told" else (0.0, 1.0)
        assert (cell.right, cell.older) == expected


def test_a_value_that_was_longer_before_is_waited_for(
    source: DialogueSource, filler: Filler
) -> None:
    for seed in range(12):
        plan = Plan((0,), rows=1, notes=1, corrected=1, seed=seed)
        (cell,) = cells_of(Reader(source, ("first",)), source, filler, plan)
        assert cell.older == 1.0


def test_questions_do_not_change_the_walk(
    source: DialogueSource, filler: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, answer = tiny_model(), recall.answer
    asked: list[tuple[State, list[str]]] = []

    def listening(*args: Any) -> list[str]:
        before = {name: part.clone() for name, part in args[2].items()}
        asked.append((before, answer(*args)))
        return asked[-1][1]

    monkeypatch.setattr(recall, "answer", listening)
    plan = Plan((0, 1, 4), rows=3, notes=2, untold=1)
    first = [cell for cell in measure(model, source, filler, plan) if cell.windows == 4]
    second = list(measure(model, source, filler, replace(plan, windows=(4,))))
    assert first == second
    (left, said), (right, said_alone) = asked[-2:]
    assert said == said_alone
    assert left.keys() == right.keys()
    for name, part in left.items():
        torch.testing.assert_close(part, right[name], atol=1e-4, rtol=1e-4)
    assert torch.equal(left["layers.1.eidetic_position"], right["layers.1.eidetic_position"])


def test_rows_that_are_asked_in_parts_are_asked_alike(
    source: DialogueSource, filler: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan((1,), rows=6, notes=4, corrected=1, untold=1)
    whole = cells_of(Reader(source), source, filler, plan)
    monkeypatch.setattr(recall, "ROWS", 7)
    monkeypatch.setattr(recall, "PIECE", 11)
    assert cells_of(Reader(source), source, filler, plan) == whole


@torch.no_grad()
def test_without_slots_it_is_the_same_model_with_memory_off() -> None:
    model = tiny_model()
    off, expected = with_slots(model, 0), tiny_model(eidetic_size=0)
    expected.load_state_dict(model.state_dict(), strict=False)
    ids = torch.randint(0, 1200, (2, 100), generator=torch.Generator().manual_seed(0))
    logits, state = off.feed(ids, off.new_state(2), all_tokens=True)
    assert torch.equal(logits, expected.feed(ids, expected.new_state(2), all_tokens=True)[0])
    assert not [name for name in state if "eidetic" in name]
    on, state = model.feed(ids, model.new_state(2), all_tokens=True)
    torch.testing.assert_close(on[:, :16], logits[:, :16], atol=1e-4, rtol=1e-4)
    assert (on[:, 32:] - logits[:, 32:]).abs().max() > 1e-3
    assert state["layers.1.eidetic_position"].shape == (2, 16)
    same, _ = with_slots(model, 16).feed(ids, model.new_state(2), all_tokens=True)
    assert torch.equal(same, on)
    more = with_slots(model, 64)
    assert more.new_state(1)["layers.1.eidetic_position"].shape == (1, 64)
    assert not any(one.training for one in (off, more))


def test_without_memory_nothing_is_held(source: DialogueSource, filler: Filler) -> None:
    cells = list(measure(with_slots(tiny_model(), 0), source, filler, Plan((1,), rows=2)))
    assert [cell.held for cell in cells] == [None]


@torch.no_grad()
def test_perplexity_by_hand(source: DialogueSource) -> None:
    model = tiny_model(bos_token_id=source.bos)
    ids = torch.randint(0, 1200, (2 * 1024 + 6,), generator=torch.Generator().manual_seed(0))
    losses = []
    for row in (ids[:1024], ids[1024:2048]):  # the last six fill no stretch
        given = torch.tensor([source.bos, *row[:-1].tolist()]).unsqueeze(0)
        logits, _ = model.feed(given, model.new_state(), all_tokens=True)
        chances = logits[0].double().log_softmax(-1)
        losses.append(-chances[torch.arange(1024), row].mean().item())
    assert perplexity(model, ids) == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)
    assert perplexity(model, ids, stretches=1) == pytest.approx(np.exp(losses[0]), rel=1e-5)
    with pytest.raises(ValueError, match="tokens: expected at least 1,024, got 1000"):
        perplexity(model, ids[:1000])


def test_release_and_install(unbroken: Training, tmp_path: Path) -> None:
    report = release(unbroken, "tiny")
    source = unbroken.out / "model"
    assert json.loads((source / "report.json").read_text()) == json.loads(json.dumps(report))
    assert report["tokens"] == 8 * 128
    assert report["recipe"]["name"] == "tiny"
    told = [cell for cell in report["recall"] if cell["asked"] == "told"]
    assert [cell["windows"] for cell in told] == [1, 4, 16, 64, 256]
    card = (source / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert f"per token: {report['perplexity']:.1f}." in card
    assert f"{report['parameters']:,} parameters" in card
    assert "1,024\ntokens in 8 steps, seed 20240711" in card
    assert "| 512 | 64 | 2 | 1 to 2 | 0% to 40% | 45% |" in card
    assert "    Remember that Jane is silver.\n" in card
    assert "    Note: Jane is now silver.\n" in card
    assert "    Question: who is Jane? / Answer: silver.\n" in card
    assert {cell["questions"] for cell in report["recall"]} == {64}
    assert "(64 questions for each figure)" in card

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


def test_a_table_has_one_line_per_distance() -> None:
    def cells() -> Iterator[Cell]:
        for windows, right, held in ((16, 0.5, 0.25), (1024, 0.125, None)):
            yield Cell(windows, "told", 8, right, None, 0.0, 0.0, held)
            if held is not None:
                yield Cell(windows, "untold", 8, 0.75, None, 0.0, 0.75, None)

    assert recall_table(list(cells())).splitlines()[2:] == [
        "| 16 | 50.0% | 25.0% | 75.0% |",
        "| 1,024 | 12.5% | - | - |",
    ]
