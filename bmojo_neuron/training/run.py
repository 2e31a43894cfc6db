"""The directory of a run: it is stopped at any moment, by a kill too, and goes on whole.

A checkpoint is written into the slot that the last one does not use, and counts once
`training.json` names it: that file is replaced in one go, so a kill at any moment leaves the old
checkpoint or the new one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, load_model, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bmojo_neuron.causal_lm import BMojoForCausalLM
from bmojo_neuron.state import State
from bmojo_neuron.training.optimizer import load_optimizer, optimizer_tensors

SAVE_EVERY = 120.0  # seconds between two checkpoints
LOG_EVERY = 50  # steps between two lines of log.jsonl
SLOTS = ("checkpoint-0", "checkpoint-1")  # written in turn


class Run:
    """Checkpoints, position and log of one run.

    Args:
        out: directory of the run, made if it is not there.
    """

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out = out
        self._log, self._record = out / "log.jsonl", out / "training.json"
        self._slot = SLOTS[1]  # of the last checkpoint
        if self._record.is_file():
            self._slot = json.loads(self._record.read_text())["checkpoint"]

    def position(self, *names: str) -> dict[str, Any] | None:
        """What was saved with the last checkpoint; None before the first.

        Raises:
            ValueError: one of `names` is not in it: the directory is that of another kind of run.
        """
        if not self._record.is_file():
            return None
        position: dict[str, Any] = json.loads(self._record.read_text())
        if missing := [name for name in names if name not in position]:
            raise ValueError(
                f"out: expected the directory of a run of this kind, got {str(self.out)!r}, whose "
                f"training.json has no {', '.join(missing)}; choose another, or start over with "
                "--no-resume"
            )
        return position

    def load(self, model: BMojoForCausalLM, optimizer: torch.optim.Optimizer) -> None:
        """Fill model and optimiser from the last checkpoint."""
        folder = self.out / self._slot
        load_model(model, folder / "model.safetensors")
        load_optimizer(optimizer, load_file(folder / "optimizer.safetensors"))

    def state(self) -> State | None:
        """The state that the last checkpoint was saved with, if any."""
        file = self.out / self._slot / "state.safetensors"
        return load_file(file) if file.is_file() else None

    def save(
        self,
        model: BMojoForCausalLM,
        tokenizer: PreTrainedTokenizerBase,
        optimizer: torch.optim.Optimizer,
        position: dict[str, Any],
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write a checkpoint, from then on the last one; `state` is what the model goes on from."""
        slot = SLOTS[self._slot == SLOTS[0]]
        folder = self.out / slot
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        save_file(optimizer_tensors(optimizer), folder / "optimizer.safetensors")
        if state is not None:
            save_file({k: x.contiguous() for k, x in state.items()}, folder / "state.safetensors")
        fresh = self._record.with_suffix(".tmp")
        fresh.write_text(json.dumps(position | {"checkpoint": slot}) + "\n")
        fresh.replace(self._record)
        self._slot = slot

    def cut_log(self, step: int) -> None:
        """Forget what the log says of steps after `step`, which will be done again."""
        if self._log.is_file():
            lines = self._log.read_text().splitlines(keepends=True)
            done = [line for line in lines if json.loads(line)["step"] <= step]
            self._log.write_text("".join(done))

    def write(self, step: int, seconds: float, row: dict[str, Any]) -> None:
        """Add a line to the log."""
        with self._log.open("a") as file:
            file.write(json.dumps({"step": step, "seconds": round(seconds), **row}) + "\n")
