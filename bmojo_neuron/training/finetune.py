"""Fine-tuning: a checkpoint and a text in, a checkpoint out; stops and resumes anywhere.

Batches are drawn from a generator seeded by (seed, step), so a resumed run sees what an unbroken
one sees. Weights are float32 while they are trained.

Letters: B batch, T tokens of a sequence.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from bmojo_neuron.checkpoints.convert import copy_others
from bmojo_neuron.loading import load_pretrained
from bmojo_neuron.text import PromptEncoder
from bmojo_neuron.training.distillation import Distillation
from bmojo_neuron.training.optimizer import adamw, clip_gradients, warmup_cosine
from bmojo_neuron.training.recall import perplexity
from bmojo_neuron.training.run import LOG_EVERY, SAVE_EVERY, Run

HELDOUT = 0.05  # share of the text, at its end, and at most so many sequences of it:
HELDOUT_MOST = 128
WEIGHT_DECAY = 0.05
CLIP = 1.0


@dataclass(frozen=True)
class Options:
    """How to train.

    Attributes:
        steps: of the optimiser.
        batch: sequences per step, B.
        length: tokens per sequence, T.
        lr: AdamW's learning rate after a tenth of the steps (100 at most), from where it falls on a
            cosine to a hundredth.
        seed: of the batches.
        parse_special_tokens: names of special tokens in the text are these tokens.

    Raises:
        ValueError: a field is out of range.
    """

    steps: int = 1000
    batch: int = 4
    length: int = 1024
    lr: float = 3e-4
    seed: int = 0
    parse_special_tokens: bool = False

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch", 1), ("length", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"lr: expected a positive number, got {self.lr}")


class Finetuning:
    """One run: model, optimiser, text, and where it stands.

    Args:
        init: directory of the model to start from, of any family, with its tokenizer.
        text: UTF-8 file; the end of it is held out.
        out: directory of the run, made if it is not there.
        options: how to train.
        distill: directory of the Transformer that `init` was primed from: train the replaced layers
            alone, each to answer as the base's does. None: train all of the model on the next
            token.
        resume: go on from the checkpoint in `out`, if there is one.

    Raises:
        FileNotFoundError: the text is not there.
        ValueError: a directory is not whole, the base is of another shape, the text is not UTF-8 or
            too short, or the run in `out` was started with other options.
    """

    def __init__(
        self,
        init: Path,
        text: Path,
        out: Path,
        options: Options | None = None,
        distill: Path | None = None,
        resume: bool = True,
    ) -> None:
        self.init, self.out, self.options = init, out, options or Options()
        if not text.is_file():
            raise FileNotFoundError(f"text: expected a file, found none at {str(text)!r}")
        content = text.read_bytes()
        self.model, tokenizer = load_pretrained(init)
        if tokenizer is None:
            raise ValueError(
                f"init: expected a directory with a tokenizer, to turn the text into tokens, got "
                f"{str(init)!r}, which has none; copy that of the model's base there"
            )
        self.tokenizer = tokenizer
        self.dtype = self.model.dtype
        encode = PromptEncoder(self.tokenizer)
        ids = encode(
            _decoded(content, text), parse_special_tokens=self.options.parse_special_tokens
        )
        self.tokens, self.heldout = split(torch.tensor(ids), self.options.length)
        self._warn_of_short_sequences()
        self.distillation = None if distill is None else Distillation(self.model, distill)
        self.settings = asdict(self.options) | {
            "init": str(init.resolve()),
            "distill": None if distill is None else str(distill.resolve()),
            "text": hashlib.sha256(content).hexdigest(),
        }

        self._run, self.step, self.seconds = Run(out), 0, 0.0
        position = self._run.position("step", "seconds", "settings", "before") if resume else None
        if position is not None:
            self._check_settings(position["settings"])
        self.before = position["before"] if position else self._perplexity()
        nn.Module.to(self.model, torch.float32)
        self.optimizer = adamw(self.model, self.options.lr, WEIGHT_DECAY)
        if position is not None:
            self.step, self.seconds = position["step"], position["seconds"]
            self._run.load(self.model, self.optimizer)
        self._run.cut_log(self.step)

    def run(self, max_minutes: float | None = None) -> None:
        """Train to the last step, or for `max_minutes`.

        Raises:
            ValueError: the loss is no number any more.
        """
        started = saved = time.monotonic()
        earlier, options = self.seconds, self.options
        size = options.batch * options.length
        with tqdm(
            total=options.steps * size,
            initial=self.step * size,
            unit="tok",
            unit_scale=True,
            smoothing=0.05,
            dynamic_ncols=True,
        ) as bar:
            while self.step < options.steps:
                report = self._train_step()
                self.step += 1
                now = time.monotonic()
                self.seconds = earlier + now - started
                bar.set_postfix(loss=report["loss"], refresh=False)
                bar.update(size)
                if self.step % LOG_EVERY == 0 or self.step in (1, options.steps):
                    self._run.write(self.step, self.seconds, report)
                if now - saved > SAVE_EVERY:
                    self._save()
                    saved = now
                if max_minutes is not None and now - started > 60 * max_minutes:
                    break
        self._save()

    def finish(self) -> dict[str, Any]:
        """Write `model/` in the run's directory, in the dtype of the checkpoint that it was.

        The directory holds weights, configuration, tokenizer, chat template and `report.json`.

        Returns:
            The report: how it was trained, held-out perplexity before and after.
        """
        nn.Module.to(self.model, self.dtype)
        report = self.settings | {
            "tokens": self.step * self.options.batch * self.options.length,
            "seconds": round(self.seconds),
            "heldout_tokens": len(self.heldout),
            "perplexity_before": self.before,
            "perplexity": self._perplexity(),
        }
        folder, part = self.out / "model", self.out / "model.part"
        shutil.rmtree(part, ignore_errors=True)
        self.model.save_pretrained(part)
        copy_others(self.init, part)
        (part / "report.json").write_text(json.dumps(report, indent=1) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
        return report

    def batch(self) -> Tensor:
        """Stretches (B, T) of the text from anywhere in it, by seed and step."""
        options = self.options
        rng = np.random.default_rng([options.seed, self.step])
        starts = rng.integers(len(self.tokens) - options.length + 1, size=options.batch)
        return torch.stack([self.tokens[at : at + options.length] for at in starts])

    def _train_step(self) -> dict[str, Any]:
        self.model.train()
        loss, report = self._loss(self.batch())
        if not loss.isfinite():
            raise ValueError(
                f"lr: expected one with which the loss stays finite, got {self.options.lr}: it is "
                f"{loss.item()} at step {self.step}; start over with less"
            )
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr()
        clip_gradients(self.model, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {"loss": _short(loss)} | report

    def _loss(self, tokens: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """The loss, innovation included, and what to tell of it."""
        if self.distillation is None:
            loss: Tensor = self.model(tokens, labels=tokens, use_cache=False).loss
            return loss, {}
        errors, innovation = self.distillation.errors(tokens)
        loss = torch.stack(list(errors.values())).mean()
        if innovation is not None:
            loss = loss + self.model.config.innovation_loss_weight * innovation.mean()
        return loss, {"layers": {str(i): _short(error) for i, error in errors.items()}}

    def _lr(self) -> float:
        options = self.options
        warmup = min(100, -(-options.steps // 10))
        return warmup_cosine(options.lr, self.step, warmup, options.steps)

    def _perplexity(self) -> float:
        self.model.train(False)
        return perplexity(self.model, self.heldout, self.options.length)

    def _save(self) -> None:
        position = {
            "step": self.step,
            "seconds": self.seconds,
            "settings": self.settings,
            "before": self.before,
        }
        self._run.save(self.model, self.tokenizer, self.optimizer, position)

    def _check_settings(self, saved: dict[str, Any]) -> None:
        changed = [
            f"{name} {saved.get(name)!r}, not {value!r}"
            for name, value in self.settings.items()
            if saved.get(name) != value
        ]
        if changed:
            raise ValueError(
                f"out: expected the options with which the run in {str(self.out)!r} was started "
                f"({', '.join(changed)}); choose another directory, or start over with --no-resume"
            )

    def _warn_of_short_sequences(self) -> None:
        c, length = self.model.config, self.options.length
        if {"bmojo", "bmojo_f"} & set(c.block_types) and length <= c.window:
            warnings.warn(
                f"length: {length} tokens are no more than the window of {c.window}, so fading and "
                "eidetic memory are never read and do not learn; several windows are better",
                stacklevel=3,
            )


def split(tokens: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """What to train on, and whole sequences of `length` at the end of the text to hold out.

    Raises:
        ValueError: the text has not enough tokens for one sequence of each.
    """
    sequences = len(tokens) // length
    if sequences < 2:
        raise ValueError(
            f"text: expected at least two sequences of {length} tokens, one of them to be held "
            f"out, got {len(tokens)} tokens; give more text or shorter sequences"
        )
    held = length * min(max(1, int(HELDOUT * sequences)), HELDOUT_MOST)
    return tokens[:-held], tokens[-held:]


def _decoded(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"text: expected UTF-8 in {str(path)!r}, got byte {content[error.start]:#04x} at "
            f"{error.start}; convert it first (iconv -t UTF-8)"
        ) from error


def _short(x: Tensor) -> float:
    return float(f"{x.item():.4g}")
