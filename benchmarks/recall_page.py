"""The page, the picture and the README's lines of `benchmarks/recall.py`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.report import footer, table

BLOCK = re.compile(r"(?<=<!-- results:recall -->\n).*?(?=<!-- /results -->)", re.DOTALL)

PREFACE = """\
A session is told notes (`Note: Jane is silver.`), reads filler and is asked (`Question: Jane`,
`Answer:`), each question of a copy of its state. Names and values are one or two words of one or
more tokens each, numbers among them, all kept out of every note of training by a fixed rule; the
filler is text that training never saw: books of the Bible, Python's FAQ, and this repository's
server. What is longer than the filler goes on with its beginning ({fillers} tokens). An answer is
right if the model, always taking the likeliest token, says all tokens of the newest value and a
full stop. "Held": the share of values of which all tokens stood among the {eidetic_size} of eidetic
memory (those still in the window of {window} count only if they do too). In parentheses: 95 %
intervals (Wilson). The model has {parameters:,} parameters.
"""

CUTS = """\
{dialogues} dialogues of {length:,} tokens are fed whole, in {pieces} random pieces, and in the
same pieces with the session turned into bytes ({size:,.0f} KiB) and back between them.
"""

LANGUAGE = """\
Perplexity per token of held-out text, and that of interpolated Kneser-Ney n-grams of the same
training text and tokens.
"""

FIGURE = "![Recall by distance](docs/results/recall.svg)"
LEGEND = """\
Words that no note of training held, told among text that training never saw; off: without eidetic
memory; in parentheses: 95 % intervals. [docs/results/recall.md](docs/results/recall.md) has
corrections, late notes, many notes, untold names, few slots, perplexity, and where it ends.
"""


def wilson(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a binomial share observed in `count` trials."""
    z = 1.959964
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return (middle - half) / scale, (middle + half) / scale


def find(cells: list[dict[str, Any]], windows: int, asked: str = "told") -> dict[str, Any] | None:
    """The cell of a distance and a kind of question."""
    for cell in cells:
        if (cell["windows"], cell["asked"]) == (windows, asked):
            return cell
    return None


def show(cell: dict[str, Any] | None, what: str = "right") -> str:
    """Share and interval."""
    if cell is None or cell[what] is None:
        return "-"
    low, high = wilson(cell[what], cell["questions"])
    return f"{cell[what]:.1%} ({low:.1%}-{high:.1%})"


def percent(cell: dict[str, Any] | None, what: str) -> str:
    """Share alone."""
    return "-" if cell is None or cell[what] is None else f"{cell[what]:.1%}"


def least(
    result: dict[str, Any], part: str, windows: int, what: str, asked: str = "told"
) -> float | None:
    """The worst over all fillers; None where it was not measured."""
    recall = result["recall"][part]
    cells = [find(cells, windows, asked) for cells in recall.values()]
    values = [cell[what] for cell in cells if cell is not None and cell[what] is not None]
    return min(values, default=None)


def goals(result: dict[str, Any]) -> Iterator[list[str]]:
    """The goals: what, goal, measured (on the worst of the fillers), whether it is reached."""
    recall = result["recall"]

    def above(what: str, goal: float, value: float | None) -> list[str]:
        if value is None:
            return [what, f">= {goal:.0%}", "-", "not measured"]
        return [what, f">= {goal:.0%}", f"{value:.1%}", "met" if value >= goal else "not met"]

    def below(what: str, goal: float, value: float) -> list[str]:
        return [what, f"<= {goal:.0%}", f"{value:.1%}", "met" if value <= goal else "not met"]

    for windows, goal in ((16, 0.95), (256, 0.9), (1024, 0.85)):
        yield above(f"{windows:,} windows", goal, least(result, "far", windows, "right"))
    few = [recall["notes"][n][0]["right"] for n in ("1", "2", "4", "8") if n in recall["notes"]]
    yield above("16 windows, one to eight notes", 0.95, min(few))
    for lead in ("16384", "65536"):
        cells = [c[0]["right"] for key, c in recall["late"].items() if key.endswith(f" {lead}")]
        yield above(f"told at token {int(lead):,}, asked 16 windows on", 0.9, min(cells))
    for windows, when in ((0, "at once"), (16, "16 windows on")):
        newer = least(result, "corrected", windows, "right", "corrected")
        yield above(f"corrected, {when}: newer", 0.95, newer)
    yield above("value of several tokens, 16 windows", 0.9, least(result, "far", 16, "several"))
    unknown = least(result, "far", 16, "right", "untold")
    yield above("never told: unknown, 16 windows", 0.9, unknown)
    lost = [find(cells, 16) for cells in recall["far"].values()]
    yield below("told, but answered by unknown", 0.02, max(c["unknown"] for c in lost if c))
    yield above("held at 1,024 windows", 0.98, least(result, "far", 1024, "held"))
    off = [cell["right"] for cell in recall["off"]["bible"] if cell["windows"] >= 4]
    yield below("memory off, beyond the window", 0.05, max(off))
    bible = result["language"]["bible"]
    met = "met" if bible["model"] <= 50 else "not met"
    yield ["perplexity per token, held-out books", "<= 50", f"{bible['model']:.1f}", met]
    share = bible["model"] / bible["kneser_ney_5"]
    yield below("of a 5-gram's on the same tokens", 50 / 60.5, share)


def render(result: dict[str, Any]) -> str:
    """The result as a page of Markdown."""
    recall = result["recall"]
    fillers = ", ".join(f"{kind} {count:,}" for kind, count in result["filler"].items())
    page = ["# Recall\n", PREFACE.format(**(result | {"fillers": fillers}))]
    page += [
        "## Goals\n",
        table(["measured, on the worst filler", "goal", "result", ""], goals(result)),
    ]
    for kind, cells in recall["far"].items():
        page += [f"## Told first, {kind}\n", table(_FAR, _far(cells))]
    farther = [
        [*_windows(cell), show(cell), percent(cell, "held")]
        for cell in recall["farther"]["documentation"]
    ]
    page += ["## Where it ends\n", table(["windows", "questions", "recall", "held"], farther)]
    late = []
    for key, cells in recall["late"].items():
        kind, lead = key.rsplit(" ", 1)
        late.append([kind, f"{int(lead):,}", show(cells[0]), percent(cells[0], "held")])
    page += [
        "## Told late, asked 16 windows on\n",
        table(["filler", "told at token", "recall", "held"], late),
        "## Corrected\n",
        table(
            ["filler", "windows", "newer", "older"],
            [
                [kind, f"{cell['windows']:,}", show(cell), percent(cell, "older")]
                for kind, cells in recall["corrected"].items()
                for cell in cells
            ],
        ),
        "## Words of the kind that training drew, and memory off\n",
        table(
            ["windows", "trained words", "memory off"],
            [
                [
                    f"{n:,}",
                    show(find(recall["known"]["bible"], n)),
                    show(find(recall["off"]["bible"], n)),
                ]
                for n in sorted(
                    {c["windows"] for part in ("known", "off") for c in recall[part]["bible"]}
                )
            ],
        ),
        "## Many notes, 16 windows\n",
        table(
            ["notes", "questions", "recall", "held"],
            [
                [n, str(c[0]["questions"]), show(c[0]), percent(c[0], "held")]
                for n, c in recall["notes"].items()
            ],
        ),
        "## Each phrasing, 16 windows\n",
        table(
            ["told or asked", "questions", "recall"],
            [
                [f"`{form}`", str(c[0]["questions"]), show(c[0])]
                for form, c in recall["forms"].items()
            ],
        ),
        "## Few slots, four notes, 64 windows\n",
        table(
            ["slots", "recall", "held"],
            [[n, show(c[0]), percent(c[0], "held")] for n, c in recall["slots"].items()],
        ),
        "## Language\n",
        LANGUAGE,
        table(
            ["text", "model", "bits per character", "2-gram", "3-gram", "5-gram"],
            [
                [kind, f"{row['model']:.1f}", f"{row['bits_per_character']:.3f}"]
                + [f"{row[f'kneser_ney_{n}']:.1f}" for n in (2, 3, 5)]
                for kind, row in result["language"].items()
            ],
        ),
        "What it makes of ordinary beginnings (temperature 0.7, top-p 0.9, seed 0, unedited):\n",
        *(_quote(prompt, said) for prompt, said in result["transcripts"]),
        "## Cuts and eviction\n",
        CUTS.format(**result["cuts"], size=result["cuts"]["session_bytes"] / 1024),
        table(
            ["fed", "tokens of answers as when whole", "largest difference of a logit"],
            [
                [way, f"{same} of {result['cuts']['answer_tokens']}", f"{largest:.1e}"]
                for (way, same), largest in zip(
                    result["cuts"]["same"].items(),
                    result["cuts"]["largest_logit_difference"].values(),
                    strict=True,
                )
            ],
        ),
        footer(result["environment"]),
    ]
    return "\n".join(page)


_FAR = [
    "windows",
    "questions",
    "recall",
    "several tokens",
    "held",
    "untold: unknown",
    "told: unknown",
]


def _far(cells: list[dict[str, Any]]) -> Iterator[list[str]]:
    for cell in cells:
        if cell["asked"] == "told":
            untold = find(cells, cell["windows"], "untold")
            yield [
                *_windows(cell),
                show(cell),
                percent(cell, "several"),
                percent(cell, "held"),
                show(untold),
                percent(cell, "unknown"),
            ]


def _windows(cell: dict[str, Any]) -> list[str]:
    return [f"{cell['windows']:,}", str(cell["questions"])]


def _quote(prompt: str, said: str) -> str:
    lines = f"**{prompt}**{said}".split("\n")
    return "\n".join(f"> {line}" if line.strip() else ">" for line in lines) + "\n"


def snippet(result: dict[str, Any], readme: str) -> str:
    """The README with its block made anew."""
    recall = result["recall"]
    kinds = list(recall["far"])
    rows = [
        [f"{c['windows']:,}", f"{c['windows'] * result['window']:,}"]
        + [show(find(recall["far"][kind], c["windows"])) for kind in kinds]
        + [show(find(recall["off"]["bible"], c["windows"]))]
        for c in recall["far"][kinds[0]]
        if c["asked"] == "told"
    ]
    block = f"\n{FIGURE}\n\n{table(['windows', 'tokens', *kinds, 'off'], rows)}\n{LEGEND}\n"
    return BLOCK.sub(lambda _: block, readme)


def plot(result: dict[str, Any], path: Path) -> None:
    """Recall against distance in windows: by filler, untold names, memory off."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "recall"
    from matplotlib import pyplot

    recall = result["recall"]
    figure, axis = pyplot.subplots(figsize=(7, 3.8), layout="constrained")
    lines = [(f"told, {kind}", cells, "told", "-") for kind, cells in recall["far"].items()]
    lines.append(("told, farther", recall["farther"]["documentation"], "told", "--"))
    lines += [("corrected, bible", recall["corrected"]["bible"], "corrected", "-.")]
    lines += [("untold, bible", recall["far"]["bible"], "untold", ":")]
    lines += [("memory off", recall["off"]["bible"], "told", ":")]
    for label, cells, asked, style in lines:
        chosen = [cell for cell in cells if cell["asked"] == asked and cell["windows"]]
        shares = [cell["right"] for cell in chosen]
        bounds = [wilson(cell["right"], cell["questions"]) for cell in chosen]
        errors = [
            [max(0.0, share - low) for share, (low, _) in zip(shares, bounds, strict=True)],
            [max(0.0, high - share) for share, (_, high) in zip(shares, bounds, strict=True)],
        ]
        at = [cell["windows"] for cell in chosen]
        axis.errorbar(at, shares, errors, label=label, marker="o", linestyle=style, capsize=2)
    axis.set_xscale("log", base=4)
    axis.set_xlabel(f"filler between note and question, in windows of {result['window']} tokens")
    axis.set_ylabel("answered exactly")
    axis.set_ylim(-0.03, 1.03)
    axis.legend(frameon=False, fontsize="small")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
