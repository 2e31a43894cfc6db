"""Recall by distance, and where it ends; and what else the model can do.

    python benchmarks/recall.py [--model DIR] [--quick | --write]

Names and values are words that no note of training held, filler is text that training never saw.
Takes about half an hour on one core.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.ngram import KneserNey
from benchmarks.recall_page import plot, render, snippet
from benchmarks.report import RESULTS, ROOT, environment, require_green, write
from bmojo_neuron import BMojoForCausalLM
from bmojo_neuron.linear import prepack
from bmojo_neuron.model import default_model_path
from bmojo_neuron.state import State, StatePart
from bmojo_neuron.training.corpus import Text, load_corpus
from bmojo_neuron.training.dialogues import DialogueSource, Filler, sample_dialogue
from bmojo_neuron.training.forms import CORRECTIONS, NOTES, QUESTIONS, in_case, shown
from bmojo_neuron.training.recall import Plan, measure, perplexity, with_slots
from bmojo_neuron.training.words import Words
from serving.sessions import Session

README = ROOT / "README.md"
WAYS = ("cut at random", "cut at random, evicted at each cut")
PROMPTS = (
    "In the beginning",
    "And the king said unto his servants,",
    "The house stood on a hill, and",
    "Once upon a time there was",
    "A computer is",
    "She looked at the sea and",
)


@dataclass(frozen=True)
class Programme:
    """What is measured: plans by name and filler, and the rest."""

    far: Plan
    farther: Plan
    known: Plan
    off: Plan
    corrected: Plan
    leads: tuple[int, ...]
    late: Plan
    counts: tuple[int, ...]
    several: Plan
    slots: tuple[int, ...]
    few: Plan
    forms: Plan
    cut_length: int = 1024
    cut_dialogues: int = 16
    pieces: int = 12


FULL = Programme(
    far=Plan((1, 4, 16, 64, 256, 1024), rows=16, untold=4),
    farther=Plan((1024, 2048, 4096), rows=4),
    known=Plan((1, 4, 16, 64, 256), rows=32, kept_out=False),
    off=Plan((0, 1, 4, 16, 64), rows=32),
    corrected=Plan((0, 16, 256), rows=16, corrected=4),
    leads=(16_384, 65_536),
    late=Plan((16,), rows=16),
    counts=(1, 2, 4, 8, 16, 32, 64, 128),
    several=Plan((16,)),
    slots=(8, 16, 32, 64, 128, 256),
    few=Plan((64,), rows=32),
    forms=Plan((16,), rows=16),
)
QUICK = Programme(
    far=Plan((16, 256, 1024), rows=1, untold=1),
    farther=Plan((1024, 2048), rows=1),
    known=Plan((1,), rows=2, kept_out=False),
    off=Plan((0, 4), rows=2),
    corrected=Plan((0, 16), rows=2, corrected=4),
    leads=(16_384, 65_536),
    late=Plan((16,), rows=1),
    counts=(1, 8),
    several=Plan((16,)),
    slots=(8, 256),
    few=Plan((4,), rows=2),
    forms=Plan((1,), rows=2),
    cut_length=128,
    cut_dialogues=2,
)
FARTHER = "documentation"  # the filler on which the end is looked for


class Bench:
    """A model and what it is told and asked.

    Args:
        model: in evaluation mode.
        tokenizer: its own.
        corpus: texts by kind.
    """

    def __init__(
        self,
        model: BMojoForCausalLM,
        tokenizer: PreTrainedTokenizerBase,
        corpus: dict[str, Text],
    ) -> None:
        self.model, self.tokenizer, self.corpus = model, tokenizer, corpus
        self.fillers = {
            kind: Filler(tokenizer, text.heldout)
            for kind, text in corpus.items()
            if kind in ("bible", "documentation", "code")
        }
        fillers = {kind: (filler, 1.0) for kind, filler in self.fillers.items()}
        self.source = DialogueSource(tokenizer, Words(corpus), fillers)

    def ask(self, plan: Plan, kind: str, model: BMojoForCausalLM | None = None) -> list[Any]:
        """The cells of a plan, as dicts."""
        cells = measure(model or self.model, self.source, self.fillers[kind], plan)
        return [asdict(cell) for cell in cells]

    def recall(self, plan: Programme) -> dict[str, Any]:
        """Every walk of the programme."""
        off = with_slots(self.model, 0)
        jobs: list[tuple[str, str, Any]] = []
        for kind in self.fillers:
            jobs.append(("far", kind, (plan.far, kind)))
            for lead in plan.leads:
                jobs.append(("late", f"{kind} {lead}", (replace(plan.late, lead=lead), kind)))
            jobs.append(("corrected", kind, (plan.corrected, kind)))
        jobs.append(("farther", FARTHER, (plan.farther, FARTHER)))
        jobs.append(("known", "bible", (plan.known, "bible")))
        jobs.append(("off", "bible", (plan.off, "bible", off)))
        for count in plan.counts:
            rows = max(1, min(64, 128 // count))
            jobs.append(
                ("notes", str(count), (replace(plan.several, notes=count, rows=rows), "bible"))
            )
        for slots in plan.slots:
            jobs.append(("slots", str(slots), (plan.few, "bible", with_slots(self.model, slots))))
        for form, told in self.forms(plan.forms):
            jobs.append(("forms", form, (told, "bible")))
        out: dict[str, Any] = {}
        for part, key, args in tqdm(jobs, desc="recall"):
            out.setdefault(part, {})[key] = self.ask(*args)
        return out

    def forms(self, plan: Plan) -> Iterator[tuple[str, Plan]]:
        """Each phrasing of a note, a correction, a question, and the plain ones in other cases."""
        for form, _ in NOTES:
            yield shown(form), replace(plan, note=form)
        for form, _ in CORRECTIONS[len(NOTES) :]:
            yield shown(form), replace(plan, correction=form, corrected=plan.notes)
        for form, _ in QUESTIONS:
            yield shown(form), replace(plan, question=form)
        for case in (str.lower, str.upper):
            note, question = in_case(plan.note, case), in_case(plan.question, case)
            yield f"{shown(note)} {shown(question)}", replace(plan, note=note, question=question)

    def language(self, orders: tuple[int, ...] = (2, 3, 5)) -> dict[str, Any]:
        """Perplexity of held-out text, the model's and that of n-grams of the same text."""
        out: dict[str, Any] = {}
        vocabulary, bos = self.model.config.vocab_size, self.source.bos

        def tokens(documents: list[str]) -> list[list[int]]:
            ids: list[list[int]] = self.tokenizer(documents, add_special_tokens=False)["input_ids"]
            return ids

        for kind, filler in tqdm(self.fillers.items(), desc="perplexity"):
            train, heldout = tokens(self.corpus[kind].train), tokens(self.corpus[kind].heldout)
            characters = sum(len(document) for document in self.corpus[kind].heldout)
            row = {
                f"kneser_ney_{n}": KneserNey(train, n, vocabulary, bos).perplexity(heldout)
                for n in orders
            }
            mine = perplexity(self.model, filler.text)
            per_character = math.log2(mine) * len(filler.tokens) / characters
            out[kind] = row | {"model": mine, "bits_per_character": per_character}
        return out

    @torch.no_grad()
    def transcripts(self, length: int = 60) -> list[tuple[str, str]]:
        """What the model makes of ordinary beginnings, sampled once with a fixed seed."""
        out: list[tuple[str, str]] = []
        for prompt in PROMPTS:
            torch.manual_seed(0)
            ids = self.tokenizer(prompt, return_tensors="pt")
            network: Any = self.model
            said = network.generate(
                **ids, max_new_tokens=length, do_sample=True, temperature=0.7, top_p=0.9, top_k=0
            )
            said = said[0, ids["input_ids"].shape[1] :]
            out.append((prompt, str(self.tokenizer.decode(said, skip_special_tokens=True))))
        return out

    def run(self, plan: Programme) -> dict[str, Any]:
        """All of it; see `recall_page.render` for what is in the result."""
        return {
            "environment": environment(),
            "window": self.model.config.window,
            "eidetic_size": self.model.config.eidetic_size,
            "parameters": self.model.num_parameters(),
            "filler": {kind: len(filler.tokens) for kind, filler in self.fillers.items()},
            "recall": self.recall(plan),
            "language": self.language(),
            "transcripts": self.transcripts(),
            "cuts": measure_cuts(self.model, self.source, plan),
        }


@torch.no_grad()
def measure_cuts(
    model: BMojoForCausalLM, source: DialogueSource, plan: Programme
) -> dict[str, Any]:
    """Feed dialogues whole, in random pieces, and through a session's bytes between the pieces.

    Returns:
        How many tokens the answers have, and for each of WAYS: how many of them are the same as
        when the dialogue is fed whole, and the largest difference of any logit of any token.
    """
    rng = np.random.default_rng(1)
    same, difference, asked = dict.fromkeys(WAYS, 0), dict.fromkeys(WAYS, 0.0), 0
    sessions: list[int] = []
    for _ in tqdm(range(plan.cut_dialogues), desc="cuts"):
        dialogue = sample_dialogue(
            rng, source, length=plan.cut_length, notes=4, filler=0.5, changed=0.2, untold=0.1
        )
        tokens = torch.from_numpy(dialogue.tokens).unsqueeze(0)
        before = torch.from_numpy(np.flatnonzero(dialogue.is_answer[1:]))
        whole, _ = model.feed(tokens, model.new_state(), all_tokens=True)
        asked += len(before)
        borders = 1 + rng.choice(tokens.shape[1] - 1, plan.pieces - 1, replace=False)
        for way in WAYS:
            state, parts = model.new_state(), []
            for piece in torch.tensor_split(tokens, sorted(borders.tolist()), dim=1):
                logits, state = model.feed(piece, state, all_tokens=True)
                parts.append(logits)
                if way == WAYS[1]:
                    state, size = through_bytes(state, model.state_parts())
                    sessions.append(size)
            cut = torch.cat(parts, dim=1)
            same[way] += int((answers(cut, before) == answers(whole, before)).sum())
            difference[way] = max(difference[way], float((cut - whole).abs().max()))
    return {
        "length": plan.cut_length,
        "dialogues": plan.cut_dialogues,
        "pieces": plan.pieces,
        "answer_tokens": asked,
        "same": same,
        "largest_logit_difference": difference,
        "session_bytes": max(sessions),
    }


def answers(logits: Tensor, places: Tensor) -> Tensor:
    """The most likely tokens after `places` of (1, T, V) logits."""
    return logits[0, places].argmax(-1)


def through_bytes(state: State, parts: list[StatePart]) -> tuple[State, int]:
    """The state as the session store brings it back after an eviction, and its size meanwhile."""
    data = Session.first("alice", state, pending=None).to_bytes()
    return Session.from_bytes(data, parts).state, len(data)


def main() -> None:
    """Measure, print, and write the result where asked to.

    Raises:
        SystemExit: an option is wrong, or the tests of the ops fail.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, metavar="DIR", help="default: the embedded model")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the raw result there")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--quick", action="store_true", help="few questions, to try it out")
    only.add_argument(
        "--write", action="store_true", help="write docs/results/recall.* and the README's table"
    )
    args = parser.parse_args()
    path = default_model_path() if args.model is None else args.model
    if not (path / "config.json").is_file():
        parser.error(f"--model: expected a directory with a config.json, got {str(path)!r}")
    if args.write and args.model is not None:
        parser.error("--write: a result is of the embedded model; leave --model away or use --json")
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    require_green("tests/ops")

    model = BMojoForCausalLM.from_pretrained(path).eval()
    prepack(model)
    bench = Bench(model, AutoTokenizer.from_pretrained(path), load_corpus())
    result = bench.run(QUICK if args.quick else FULL)
    page = render(result)
    print(page)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if args.write:
        print(f"written: {write('recall', result, page)}")
        plot(result, RESULTS / "recall.svg")
        README.write_text(snippet(result, README.read_text()))


if __name__ == "__main__":
    main()
