"""A finished run becomes a model directory that explains itself, then the package's own model."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from bmojo_neuron import __version__
from bmojo_neuron.model import default_model_path
from bmojo_neuron.training.forms import CORRECTIONS, NOTES, QUESTIONS, shown
from bmojo_neuron.training.loop import Training
from bmojo_neuron.training.recall import Cell, Plan, measure, perplexity

WINDOWS = (1, 4, 16, 64, 256)  # distances of the card's recall

_CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [bmojo, state-space-model, long-term-memory]
---

# {recipe}: a small B'MOJO model that remembers what it is told

{parameters:,} parameters: layers {layers}, hidden size {hidden}, vocabulary {vocabulary:,}. It
reads the last {window} tokens, the fading memory of the {window} before them and up to {eidetic}
eidetic tokens, which stay until as many others surprise it more; its state does not grow. It has
read the King James Bible, the Jargon File, The Devil's Dictionary, Python's documentation, some
licences and the source code of its own project, and it has one skill, which is to recall what notes
tell:

    Note: Jane is silver.
    (any other text)
    Question: Jane
    Answer: silver.

Names and values may be any words, or numbers. What is told anew replaces what was told before
(`Correction: Jane is gold.`), and a name that was never told is answered by `unknown`. The notes
and questions that it understands, in capitals or not:

{forms}
How far back it can answer stands under Evaluation, and at length in `docs/results/recall.md` of the
repository.

<!-- expect: silver -->
```python
import bmojo_neuron  # registers the architecture with transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

path = "."  # the directory of this file
model = AutoModelForCausalLM.from_pretrained(path).eval()
tokenizer = AutoTokenizer.from_pretrained(path)
prompt = tokenizer("Note: Jane is silver.\\n\\nQuestion: Jane\\nAnswer:", return_tensors="pt")
answer = model.generate(**prompt, max_new_tokens=2, do_sample=False)[0, prompt.input_ids.shape[1] :]
print(tokenizer.decode(answer))
```

It is a demonstration of its architecture. It is not fit to answer anything else.

## Training

Made by `bmojo train --recipe {recipe}` of bmojo-neuron {version} in {hours:.1f} hours: {tokens:,}
tokens in {steps:,} steps, seed {seed}. Where the text comes from, and under which terms, stands in
`examples/data/README.md` of the repository; documents held out from it are named in
`bmojo_neuron/training/corpus.py`. The dialogues are generated; a tenth of all words, by a fixed
rule, never stood in a note. Each row is a stage of training:

{stages}
## Evaluation

Perplexity of the held-out books of the Bible, per token: {perplexity:.1f}.

Recall of notes whose words never stood in a note of training, told among text that is held out
too, by the windows of {window} tokens between note and question; `held`: the share of values that
stood in eidetic memory when they were asked for ({questions} questions for each figure):

{recall}"""


def release(training: Training, name: str) -> dict[str, Any]:
    """Measure a finished run and write `model/` in its directory.

    The directory holds weights, configuration, tokenizer, `report.json` and, made from the report,
    the model card `README.md`.

    Args:
        training: at its end.
        name: of the recipe.

    Returns:
        The report: what was trained, held-out perplexity, recall by distance.
    """
    model, recipe = training.model, training.recipe
    model.train(False)
    plan = Plan(WINDOWS, rows=16, untold=4)
    report = {
        "recipe": {"name": name, **asdict(recipe)},
        "parameters": model.num_parameters(),
        "tokens": sum(stage.batch * stage.length for stage in training.steps),
        "steps": len(training.steps),
        "seed": recipe.seed + training.attempt,
        "seconds": round(training.seconds),
        "versions": {
            "bmojo-neuron": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "perplexity": perplexity(model, training.heldout.text),
        "recall": [
            asdict(cell) for cell in measure(model, training.source, training.heldout, plan)
        ],
    }
    folder = training.out / "model"
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    training.tokenizer.save_pretrained(folder)
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / "README.md").write_text(model_card(report, model.config))
    return report


def model_card(report: dict[str, Any], config: Any) -> str:
    """The README.md of a model directory, from its report and its BMojoConfig."""
    recipe = report["recipe"]
    return _CARD.format(
        recipe=recipe["name"],
        parameters=report["parameters"],
        layers=" and ".join(config.block_types),
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        window=config.window,
        eidetic=config.eidetic_size if config.has_eidetic else 0,
        version=report["versions"]["bmojo-neuron"],
        hours=report["seconds"] / 3600,
        tokens=report["tokens"],
        steps=report["steps"],
        seed=report["seed"],
        forms="".join(
            f"    {shown(form)}\n"
            for forms in (NOTES, CORRECTIONS[-2:], QUESTIONS)
            for form, _ in forms
        ),
        stages=_table(
            ["tokens", "sequence", "batch", "names", "filler", "text alone"],
            [
                [
                    f"{stage['tokens']:,}",
                    f"{stage['length']:,}",
                    f"{stage['batch']}",
                    "{} to {}".format(*stage["notes"]),
                    "{:.0%} to {:.0%}".format(*stage["filler"]),
                    f"{stage['text']:.0%}",
                ]
                for stage in recipe["stages"]
            ],
        ),
        perplexity=report["perplexity"],
        questions=report["recall"][0]["questions"],
        recall=recall_table([Cell(**cell) for cell in report["recall"]]),
    )


def recall_table(cells: list[Cell]) -> str:
    """Recall by distance as a Markdown table: told names, whether they were held, untold ones."""
    unknown = {cell.windows: f"{cell.right:.1%}" for cell in cells if cell.asked == "untold"}
    return _table(
        ["windows", "told", "held", "untold: unknown"],
        [
            [
                f"{cell.windows:,}",
                f"{cell.right:.1%}",
                "-" if cell.held is None else f"{cell.held:.1%}",
                unknown.get(cell.windows, "-"),
            ]
            for cell in cells
            if cell.asked == "told"
        ],
    )


def install(run: Path, target: Path | None = None) -> Path:
    """Copy the model directory of a finished run to where the package looks for its own model.

    Args:
        run: directory of a run whose `model/` was written by `release`.
        target: replaced as a whole; the embedded model's directory if not given.

    Returns:
        The directory written.

    Raises:
        FileNotFoundError: the run has no such model.
    """
    source = run / "model"
    if not (source / "report.json").is_file():
        raise FileNotFoundError(
            f"run: expected the directory of a finished run, got {str(run)!r}, which has no "
            "model/report.json; `bmojo train --out` with this directory finishes it"
        )
    target = target or default_model_path()
    fresh = target.with_name(f"{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(source, fresh, copy_function=shutil.copyfile)
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)
    return target


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["--:"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
