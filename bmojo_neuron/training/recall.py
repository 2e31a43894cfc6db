"""How well a model recalls notes, by distance, and whether eidetic memory held them.

A session is told notes and then reads filler; at each distance copies of its state are asked, and
it reads on. So one walk through a long text measures every distance, and no question changes what
the next one meets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bmojo_neuron.causal_lm import BMojoForCausalLM
from bmojo_neuron.configuration import BMojoConfig
from bmojo_neuron.state import State
from bmojo_neuron.training.dialogues import DialogueSource, Filler
from bmojo_neuron.training.forms import CORRECTIONS, NOTES, QUESTIONS, VALUE, Form
from bmojo_neuron.training.words import UNKNOWN

Asked = Literal["told", "corrected", "untold"]
PIECE = 4096  # tokens of filler fed at once
ROWS = 64  # copies asked at once


@dataclass(frozen=True)
class Plan:
    """What is told and when it is asked.

    Attributes:
        windows: distances in windows of filler between the last thing told and the question.
        rows: sessions.
        notes: told in each.
        corrected: of these, how many are told anew with another value right after.
        untold: names asked in each that were never told.
        lead: tokens of filler before the notes.
        kept_out: names and values are words that no note of training held; else words of the kind
            that training drew.
        seed: the same one gives the same sessions to every model.
        note, correction, question: the forms in which all is told, corrected and asked.
    """

    windows: tuple[int, ...]
    rows: int = 32
    notes: int = 4
    corrected: int = 0
    untold: int = 0
    lead: int = 0
    kept_out: bool = True
    seed: int = 0
    note: Form = NOTES[0][0]
    correction: Form = CORRECTIONS[0][0]
    question: Form = QUESTIONS[0][0]


@dataclass(frozen=True)
class Cell:
    """What one kind of question came to at one distance.

    Attributes:
        windows: the distance.
        asked: `told` names, `corrected` ones, `untold` ones.
        questions: how many.
        right: share answered exactly: by all tokens of the newest value (UNKNOWN for untold names)
            and the full stop.
        several: the same among values of several tokens; None without any.
        older: share of corrected names answered by the value before.
        unknown: share answered by UNKNOWN.
        held: share of told and corrected names whose value's tokens all stood in some layer's
            eidetic memory; None for a model without.
    """

    windows: int
    asked: Asked
    questions: int
    right: float
    several: float | None
    older: float
    unknown: float
    held: float | None


@dataclass
class _Note:
    name: str
    value: str
    asked: Asked = "told"
    older: str | None = None
    places: range = range(0)  # positions of the value's tokens


@torch.no_grad()
def measure(
    model: BMojoForCausalLM, source: DialogueSource, filler: Filler, plan: Plan
) -> Iterator[Cell]:
    """Walk `plan.rows` sessions through the filler and ask; cells come distance by distance."""
    rng = np.random.default_rng(plan.seed)
    sessions = [_notes(rng, source, plan) for _ in range(plan.rows)]
    told = [_tell(source, notes, plan) for notes in sessions]
    longest = max(len(tokens) for tokens in told)
    leads = [_lead(rng, source, filler, plan.lead + longest - len(t)) for t in told]
    tokens = np.stack([np.concatenate(parts) for parts in zip(leads, told, strict=True)])
    for notes, lead in zip(sessions, leads, strict=True):
        for note in notes:
            note.places = range(note.places.start + len(lead), note.places.stop + len(lead))
    state = _feed(model, tokens, model.new_state(plan.rows))
    window = model.config.window
    gap = max(plan.windows) * window
    text = np.stack([filler.stretch(rng, gap) for _ in range(plan.rows)])
    at = 0
    for windows in sorted(plan.windows):
        state = _feed(model, text[:, at : windows * window], state)
        at = windows * window
        yield from _ask(model, source, state, sessions, plan, windows)


def _notes(rng: np.random.Generator, source: DialogueSource, plan: Plan) -> list[_Note]:
    notes: list[_Note] = []
    while len(notes) < plan.notes + plan.untold:
        name = source.words.name(rng, plan.kept_out)
        if name.lower() in {note.name.lower() for note in notes}:
            continue
        asked: Asked = "told" if len(notes) < plan.notes else "untold"
        value = source.words.value(rng, plan.kept_out) if asked == "told" else UNKNOWN
        notes.append(_Note(name, value, asked))
    for note in notes[: plan.corrected]:
        note.asked, note.older = "corrected", note.value
        while note.value == note.older:
            note.value = source.words.value(rng, plan.kept_out)
    return notes


def _tell(source: DialogueSource, notes: list[_Note], plan: Plan) -> NDArray[np.int32]:
    """All notes, then the corrections, as tokens; says where each value stands."""
    parts: list[NDArray[np.int32]] = []
    at = 0
    stated = [note for note in notes if note.asked != "untold"]
    corrected = [note for note in stated if note.asked == "corrected"]
    for i, note in enumerate([*stated, *corrected]):
        first = i < len(stated)
        value = note.older if first and note.older is not None else note.value
        form = plan.note if first else plan.correction
        said = source.say((*form, "\n"), note.name, value)
        where = np.flatnonzero(said.is_value) + at
        note.places = range(int(where[0]), int(where[-1]) + 1)
        parts.append(said.tokens)
        at += len(said.tokens)
    return np.concatenate(parts)


def _lead(
    rng: np.random.Generator, source: DialogueSource, filler: Filler, length: int
) -> NDArray[np.int32]:
    """bos and so much filler, which ends with a line."""
    text = filler.stretch(rng, length)
    if length:
        text[-1] = source.ids("\n")[0]
    return np.concatenate([np.array([source.bos], np.int32), text])


def _feed(model: BMojoForCausalLM, tokens: NDArray[np.int32], state: State) -> State:
    for at in range(0, tokens.shape[1], PIECE):
        piece = torch.from_numpy(tokens[:, at : at + PIECE])
        _, state = model.feed(piece, state, donate=True)
    return state


def _ask(
    model: BMojoForCausalLM,
    source: DialogueSource,
    state: State,
    sessions: list[list[_Note]],
    plan: Plan,
    windows: int,
) -> Iterator[Cell]:
    """Ask every name of every session, each of a copy of its state."""
    asked = [(row, note) for row, notes in enumerate(sessions) for note in notes]
    answers: list[str] = []
    for first in range(0, len(asked), ROWS):
        part = asked[first : first + ROWS]
        rows = torch.tensor([row for row, _ in part])
        prompts = [_question(source, plan.question, note.name) for _, note in part]
        copies = {name: tensor.index_select(0, rows) for name, tensor in state.items()}
        expected = {text for _, note in part for text in (note.value, note.older) if text}
        longest = max(len(source.ids(f" {text}")) for text in expected)
        answers += answer(model, source, copies, prompts, longest + 1)
    memories = [part for name, part in state.items() if name.endswith("eidetic_position")]
    for kind in ("told", "corrected", "untold"):
        which = [i for i, (_, note) in enumerate(asked) if note.asked == kind]
        if not which:
            continue
        right = [answers[i] == f" {asked[i][1].value}." for i in which]
        long = [len(source.ids(f" {asked[i][1].value}")) > 1 for i in which]
        several = [ok for ok, is_long in zip(right, long, strict=True) if is_long]
        held = None
        if memories and kind != "untold":
            held = _share(
                any(set(asked[i][1].places) <= set(m[asked[i][0]].tolist()) for m in memories)
                for i in which
            )
        yield Cell(
            windows,
            kind,
            len(which),
            _share(right),
            _share(several) if several else None,
            _share(answers[i] == f" {asked[i][1].older}." for i in which),
            _share(answers[i] == f" {UNKNOWN}." for i in which),
            held,
        )


def _share(hits: Iterator[bool] | list[bool]) -> float:
    return float(np.mean(list(hits)))


def _question(source: DialogueSource, form: Form, name: str) -> NDArray[np.int32]:
    """On a line of its own, up to where the value belongs."""
    return source.say(("\n", *form[: form.index(VALUE)]), name, "").tokens


def answer(
    model: BMojoForCausalLM,
    source: DialogueSource,
    state: State,
    prompts: list[NDArray[np.int32]],
    length: int,
) -> list[str]:
    """What each row says greedily after its prompt, up to the full stop or `length` tokens."""
    lengths = [len(prompt) for prompt in prompts]
    tokens = np.zeros((len(prompts), max(lengths)), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    logits, state = model.feed(torch.from_numpy(tokens), state, lengths=lengths)
    said = []
    for i in range(length):
        said.append(logits.argmax(-1).int())
        if i + 1 < length:
            logits, state = model.feed(said[-1].unsqueeze(1), state, donate=True)
    texts = source.tokenizer.batch_decode(torch.stack(said, dim=1))
    return [text[: text.index(".") + 1] if "." in text else text for text in texts]


def with_slots(model: BMojoForCausalLM, slots: int) -> BMojoForCausalLM:
    """The same weights with so many slots of eidetic memory, 0: off; in evaluation mode."""
    config = BMojoConfig.from_dict(model.config.to_dict() | {"eidetic_size": slots})
    other = BMojoForCausalLM(config)
    nn.Module.to(other, model.device, model.dtype)
    names = other.state_dict().keys()
    other.load_state_dict({n: t for n, t in model.state_dict().items() if n in names})
    other.train(False)
    return other


@torch.no_grad()
def perplexity(
    model: BMojoForCausalLM, tokens: Tensor, length: int = 1024, stretches: int | None = None
) -> float:
    """Perplexity per token of a text, each stretch from an empty state.

    Args:
        model: in evaluation mode.
        tokens: (T,) int64, T >= length; what does not fill a last stretch is left out.
        length: of a stretch, at least 2. Before it stands the model's bos token; where it has none,
            the first token is given, not predicted.
        stretches: how many, the first ones; None: all.

    Raises:
        ValueError: fewer tokens than one stretch has.
    """
    if len(tokens) < length:
        raise ValueError(f"tokens: expected at least {length:,}, got {len(tokens)}")
    rows = tokens[: len(tokens) // length * length].view(-1, 1, length)[:stretches]
    if model.config.bos_token_id is not None:
        bos = tokens.new_full((len(rows), 1, 1), model.config.bos_token_id)
        rows = torch.cat([bos, rows], dim=2)
    losses = [model(row, labels=row, use_cache=False).loss for row in rows]
    return float(torch.stack(losses).mean().exp())
