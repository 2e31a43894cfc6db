"""Recall by distance, with eidetic memory and without, and whether cuts or eviction change it.

    python benchmarks/recall.py [--model DIR] [--quick | --write]

Dialogues are held out: their name-value pairs never stood in training, nor did their filler; names
that never stood in a training note are reported apart. Takes about ten minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from tqdm import tqdm
from transformers import AutoTokenizer

from benchmarks.report import RESULTS, ROOT, environment, footer, require_green, table, write
from bmojo_neuron import BMojoForCausalLM
from bmojo_neuron.linear import prepack
from bmojo_neuron.model import default_model_path
from bmojo_neuron.state import State, StatePart
from bmojo_neuron.training.corpus import load_corpus
from bmojo_neuron.training.dialogues import DialogueSource, evaluation_dialogue
from bmojo_neuron.training.recall import Recall, measure_all, perplexity
from serving.sessions import Session

README = ROOT / "README.md"
BLOCK = re.compile(r"(?<=<!-- results:recall -->\n).*?(?=<!-- /results -->)", re.DOTALL)
SPLITS = {
    "heldout_pairs": "Known names with values never shown for them",
    "heldout_names": "Names never shown in a note",
}
GOAL_WINDOWS, GOAL_ON, GOAL_OFF = 16, 0.90, 0.30
WAYS = ("cut at random", "cut at random, evicted at each cut")

PREFACE = """\
Each dialogue states four notes (`Note: Jane is silver.`), goes on with held-out text and asks for
all four, each at exactly the given distance in tokens from the value in the note to the value in
the answer. Values are drawn from a list of {values}. An answer is right if the right value is the
most likely of all {vocabulary:,} tokens. The held-out text has {filler:,} tokens; a longer distance
goes on with its beginning.
"Off" is the same checkpoint with its eidetic memory switched off; "held" is the share of notes
whose value stood among the {eidetic_size} tokens of eidetic memory when it was asked for (it may
also still be in the window of {window}). In parentheses: 95 % intervals (Wilson). Held-out
perplexity: {perplexity:.1f} per token.
"""

CUTS = """\
{dialogues} dialogues at distance {distance:,} are fed whole, in {pieces} random pieces, and in the
same pieces with the session turned into bytes ({size:,.0f} KiB) and back between them.
"""

# The README's lines, apart from the table.
FIGURE = "![Recall by distance](docs/results/recall.svg)"
LEGEND = """\
Recall of held-out notes by distance. Off: the same checkpoint without its eidetic memory; held: the
share of notes that stood in it; questions: how many each figure rests on; in parentheses: 95 %
intervals. [docs/results/recall.md](docs/results/recall.md) says how it was measured. Held-out
perplexity: {perplexity:.1f} per token.
"""


@dataclass(frozen=True)
class Plan:
    """What is measured: (distance, questions per cell) and the dialogues that are cut."""

    cells: tuple[tuple[int, int], ...] = (
        *((32, 256), (64, 256), (128, 256), (256, 256), (512, 256), (1024, 256)),
        *((2048, 128), (4096, 128), (6144, 128), (8192, 128)),
        *((16384, 64), (32768, 32), (65536, 16)),
    )
    cut_distance: int = 1024
    cut_dialogues: int = 16
    pieces: int = 12


QUICK = Plan(((32, 16), (64, 16), (128, 16)), cut_distance=128, cut_dialogues=2)


def wilson(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a binomial share observed in `count` trials."""
    z = 1.959964
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return (middle - half) / scale, (middle + half) / scale


def measure(model: BMojoForCausalLM, source: DialogueSource, plan: Plan) -> dict[str, Any]:
    """All of it; see `render` for what is in the result."""
    cells: list[dict[str, Any]] = []
    with tqdm(total=4 * len(plan.cells), desc="recall") as bar:
        for distance, questions in plan.cells:
            for cell in measure_all(model, source, [distance], questions=questions):
                cells.append(asdict(cell))
                bar.update()
    return {
        "environment": environment(),
        "window": model.config.window,
        "eidetic_size": model.config.eidetic_size,
        "vocabulary": model.config.vocab_size,
        "values": len(source.values),
        "filler": len(source.filler),
        "perplexity": perplexity(model, torch.from_numpy(source.filler).long()),
        "recall": cells,
        "cuts": measure_cuts(model, source, plan),
    }


@torch.no_grad()
def measure_cuts(model: BMojoForCausalLM, source: DialogueSource, plan: Plan) -> dict[str, Any]:
    """Feed dialogues whole, in random pieces, and through a session's bytes between the pieces.

    Returns:
        How many answers were asked, and for each of WAYS: how many of them are the same token as
        when the dialogue is fed whole, and the largest difference of any logit of any token.
    """
    rng = np.random.default_rng(1)
    same, difference, asked = dict.fromkeys(WAYS, 0), dict.fromkeys(WAYS, 0.0), 0
    sessions: list[int] = []
    for _ in tqdm(range(plan.cut_dialogues), desc="cuts"):
        dialogue = evaluation_dialogue(rng, source, distance=plan.cut_distance, notes=4)
        tokens = torch.from_numpy(dialogue.tokens).unsqueeze(0)
        before = torch.from_numpy(np.flatnonzero(dialogue.is_answer) - 1)
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
        "distance": plan.cut_distance,
        "dialogues": plan.cut_dialogues,
        "pieces": plan.pieces,
        "questions": asked,
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


def find(result: dict[str, Any], distance: int, split: str, eidetic: bool) -> Recall | None:
    """The cell of a result, if it was measured."""
    for cell in result["recall"]:
        if (cell["distance"], cell["split"], cell["eidetic"]) == (distance, split, eidetic):
            return Recall(**cell)
    return None


def distances(result: dict[str, Any]) -> list[int]:
    """What was measured, from near to far."""
    return sorted({cell["distance"] for cell in result["recall"]})


def questions(cell: Recall | None) -> str:
    """How many a cell rests on."""
    return "-" if cell is None else str(cell.questions)


def held(cell: Recall | None) -> str:
    """Share that stood in eidetic memory."""
    return "-" if cell is None or cell.held is None else f"{cell.held:.1%}"


def show(cell: Recall | None) -> str:
    """Share and interval."""
    if cell is None:
        return "-"
    low, high = wilson(cell.accuracy, cell.questions)
    return f"{cell.accuracy:.1%} ({low:.1%}-{high:.1%})"


def goals(result: dict[str, Any]) -> Iterator[list[str]]:
    """The goals: what, goal, measured, whether it is reached."""
    distance = GOAL_WINDOWS * result["window"]
    on, off = (find(result, distance, "heldout_pairs", memory) for memory in (True, False))
    what = f"recall at {GOAL_WINDOWS} windows"
    if on is not None:
        yield [what, f">= {GOAL_ON:.0%}", show(on), verdict(on.accuracy >= GOAL_ON)]
    if off is not None:
        met = verdict(off.accuracy <= GOAL_OFF)
        yield [f"{what}, memory off", f"<= {GOAL_OFF:.0%}", show(off), met]
    cuts = result["cuts"]
    for way in WAYS:
        same, asked = cuts["same"][way], cuts["questions"]
        yield [f"same answers, {way}", "all", f"{same} of {asked}", verdict(same == asked)]


def verdict(met: bool) -> str:
    """For the last column."""
    return "met" if met else "not met"


def render(result: dict[str, Any]) -> str:
    """The result as a page of Markdown."""
    page = [
        "# Recall\n",
        PREFACE.format(**result),
        "## Goals\n",
        table(["measured", "goal", "result", ""], goals(result)),
    ]
    for split, title in SPLITS.items():
        rows = []
        for distance in distances(result):
            on, off = (find(result, distance, split, memory) for memory in (True, False))
            windows = f"{distance / result['window']:g}"
            row = [f"{distance:,}", windows, show(on), show(off), held(on), questions(on)]
            rows.append(row)
        header = ["distance", "windows", "recall", "off", "held", "questions"]
        page += [f"## {title}\n", table(header, rows)]
    cuts = result["cuts"]
    page += [
        "## Cuts and eviction\n",
        CUTS.format(**cuts, size=cuts["session_bytes"] / 1024),
        table(
            ["fed", "same answers as whole", "largest difference of a logit"],
            [
                [
                    way,
                    f"{cuts['same'][way]} of {cuts['questions']}",
                    f"{cuts['largest_logit_difference'][way]:.1e}",
                ]
                for way in WAYS
            ],
        ),
        footer(result["environment"]),
    ]
    return "\n".join(page)


def snippet(result: dict[str, Any]) -> str:
    """The block of the README."""
    header = ["tokens", "windows", "questions", "recall", "off", "held", "held-out names"]
    rows = table(header, (row_of(result, distance) for distance in distances(result)))
    return f"\n{FIGURE}\n\n{rows}\n{LEGEND.format(**result)}\n"


def row_of(result: dict[str, Any], distance: int) -> list[str]:
    """The README's row for one distance."""
    on, off = (find(result, distance, "heldout_pairs", memory) for memory in (True, False))
    return [
        f"{distance:,}",
        f"{distance / result['window']:g}",
        questions(on),
        show(on),
        show(off),
        held(on),
        show(find(result, distance, "heldout_names", True)),
    ]


def plot(result: dict[str, Any], path: Path) -> None:
    """Recall against distance in windows: memory on and off, known and held-out names."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "recall"
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    for split, marker in (("heldout_pairs", "o"), ("heldout_names", "s")):
        for eidetic, colour in ((True, "tab:blue"), (False, "tab:grey")):
            cells = [
                c for d in distances(result) if (c := find(result, d, split, eidetic)) is not None
            ]
            at = [cell.distance / result["window"] for cell in cells]
            shares = [cell.accuracy for cell in cells]
            bounds = [wilson(cell.accuracy, cell.questions) for cell in cells]
            errors = [
                [max(0.0, share - low) for share, (low, _) in zip(shares, bounds, strict=True)],
                [max(0.0, high - share) for share, (_, high) in zip(shares, bounds, strict=True)],
            ]
            names = "known names" if split == "heldout_pairs" else "held-out names"
            axis.errorbar(
                at,
                shares,
                errors,
                label=f"{names}, memory {'on' if eidetic else 'off'}",
                marker=marker,
                color=colour,
                linestyle="-" if split == "heldout_pairs" else ":",
                capsize=2,
            )
    axis.set_xscale("log", base=2)
    ticks = [distance / result["window"] for distance in distances(result)]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_xlabel(f"distance of the note, in windows of {result['window']} tokens")
    axis.set_ylabel("recall")
    axis.set_ylim(-0.03, 1.03)
    axis.legend(frameon=False, fontsize="small")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


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
    source = DialogueSource(AutoTokenizer.from_pretrained(path), load_corpus().heldout)
    result = measure(model, source, QUICK if args.quick else Plan())
    page = render(result)
    print(page)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if args.write:
        figure = RESULTS / "recall.svg"
        page = page.replace("## Goals", f"![recall]({figure.name})\n\n## Goals", 1)
        print(f"written: {write('recall', result, page)}")
        plot(result, figure)
        README.write_text(BLOCK.sub(lambda _: snippet(result), README.read_text()))


if __name__ == "__main__":
    main()
