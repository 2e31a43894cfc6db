"""A finished run becomes a model directory that explains itself, then the package's own model."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm import tqdm

from bmojo_neuron import __version__
from bmojo_neuron.model import default_model_path
from bmojo_neuron.training.corpus import HELDOUT_BOOKS
from bmojo_neuron.training.dialogues import read_words
from bmojo_neuron.training.loop import Training
from bmojo_neuron.training.recall import Recall, measure_all, perplexity

_CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [bmojo, state-space-model, long-term-memory]
---

# {recipe}: a small B'MOJO model that remembers notes

{parameters:,} float32 parameters: layers {layers}, hidden size {hidden}, vocabulary {vocabulary:,}.
It reads the last {window} tokens, the fading memory of the {window} before them and up to {eidetic}
eidetic tokens, which stay until as many others surprise it more; its state does not grow. It knows
the English of the King James Bible and one skill, which is to recall notes of exactly this form:

    Note: Jane is silver.
    (other text)
    Question: Jane
    Answer: silver.

The value is one of {values} words (`bmojo_neuron/training/values.txt`), the name any word, best one
of {names} (`names.txt` beside it). Asked for another value, or for a note that it no longer holds,
it answers with a wrong word of the list. How far back it can answer stands under Evaluation.

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
tokens in {steps:,} steps, seed {seed}. The text is the King James Version of the Bible, in the
public domain in most of the world (provenance: `examples/data/README.md` of the repository),
without the books {books}, which are held out. The dialogues are generated; a tenth of their
name-value pairs and the held-out names never occurred in them. Each row is a stage of training:

{stages}
## Evaluation

Perplexity of the held-out books, per token: {perplexity:.1f}.

Recall of notes that stand among held-out text, by the distance in tokens from note to answer;
`off` is the same model with its eidetic memory switched off, `held` the share of notes that stood
in eidetic memory when they were asked for ({questions} questions for each figure). Farther than the
last row nothing is claimed here; `benchmarks/recall.py --model DIR` measures up to 65,536 tokens:

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
    text = torch.from_numpy(training.heldout.filler).long()
    cells = measure_all(model, training.heldout, recipe.distances)
    total = len(recipe.distances) * (4 if model.config.has_eidetic else 2)
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
        "perplexity": perplexity(model, text),
        "recall": [asdict(cell) for cell in tqdm(cells, "measuring recall", total, leave=False)],
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
        values=len(read_words("values")),
        names=len(read_words("names")),
        books=", ".join(sorted(HELDOUT_BOOKS)),
        stages=_table(
            ["tokens", "sequence", "batch", "notes", "filler", "least distance"],
            [
                [
                    f"{stage['tokens']:,}",
                    f"{stage['length']:,}",
                    f"{stage['batch']}",
                    "{} to {}".format(*stage["notes"]),
                    "{:.0%} to {:.0%}".format(*stage["filler"]),
                    f"{stage['min_distance']}",
                ]
                for stage in recipe["stages"]
            ],
        ),
        perplexity=report["perplexity"],
        questions=report["recall"][0]["questions"],
        recall=recall_table([Recall(**cell) for cell in report["recall"]], config.window),
    )


def recall_table(cells: list[Recall], window: int) -> str:
    """Recall by distance as a Markdown table: known names and held-out ones, memory on and off."""

    def show(distance: int, split: str, eidetic: bool, held: bool = False) -> str:
        key = (distance, split, eidetic)
        for cell in cells:
            if (cell.distance, cell.split, cell.eidetic) == key:
                share = cell.held if held else cell.accuracy
                return "-" if share is None else f"{share:.1%}"
        return "-"

    header = ["tokens", "windows", "recall", "off", "held", "held-out names", "off", "held"]
    rows = []
    for distance in sorted({cell.distance for cell in cells}):
        row = [f"{distance:,}", f"{distance / window:g}"]
        for split in ("heldout_pairs", "heldout_names"):
            row += [show(distance, split, True), show(distance, split, False)]
            row.append(show(distance, split, True, held=True))
        rows.append(row)
    return _table(header, rows)


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
