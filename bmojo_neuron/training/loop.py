"""The training loop: dialogues and text in, a trained model out; stops and resumes anywhere.

Batches are drawn from a generator seeded by (recipe seed, step), so a resumed run sees what an
unbroken one sees.
"""

from __future__ import annotations

import bisect
import math
import time
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from bmojo_neuron.causal_lm import BMojoForCausalLM
from bmojo_neuron.configuration import BMojoConfig
from bmojo_neuron.training.batches import Dialogues, draw_texts
from bmojo_neuron.training.corpus import load_corpus
from bmojo_neuron.training.dialogues import DialogueSource, Filler
from bmojo_neuron.training.losses import dropout, scores, selection_loss
from bmojo_neuron.training.optimizer import adamw, clip_gradients, warmup_cosine
from bmojo_neuron.training.recall import Plan, measure, perplexity
from bmojo_neuron.training.recipe import AVERAGED, Recipe, Stage
from bmojo_neuron.training.run import LOG_EVERY, SAVE_EVERY, Run
from bmojo_neuron.training.tokenizer import train_tokenizer
from bmojo_neuron.training.words import Words, whole_words


class Training:
    """One run: model, optimiser, data, and where it stands.

    Args:
        recipe: what to train.
        out: directory of the run, made if it is not there.
        resume: go on from the checkpoint in `out`, if there is one.

    Raises:
        FileNotFoundError: the training text is not there.
    """

    step: int
    steps: list[Stage]  # the plan: the stage of each step
    taken: list[int]  # the plan's steps by stage
    under_way: Dialogues | None
    answer: float | None  # moving average of the answers' loss in this stage

    def __init__(self, recipe: Recipe, out: Path, resume: bool = True) -> None:
        self.recipe, self.out, self._run = recipe, out, Run(out)
        corpus = load_corpus()
        self.tokenizer: PreTrainedTokenizerFast = train_tokenizer(
            (document for text in corpus.values() for document in text.train),
            whole_words(),
            recipe.vocab_size,
        )
        texts = {
            kind: Filler(self.tokenizer, corpus[kind].train)
            for kind in recipe.filler_kinds | recipe.text_kinds
        }
        self.texts_alone, fillers = (
            {kind: (texts[kind], share) for kind, share in kinds.items()}
            for kinds in (recipe.text_kinds, recipe.filler_kinds)
        )
        self.source = DialogueSource(self.tokenizer, Words(corpus), fillers)
        self.heldout = Filler(self.tokenizer, corpus["bible"].heldout)
        self.seconds, self.attempt = 0.0, 0
        self._begin()
        names = ("step", "seconds", "answer", "taken", "attempt", "begun", "read")
        if resume and (position := self._run.position(*names)) is not None:
            self.step, self.seconds = position["step"], position["seconds"]
            self.answer, self.taken = position["answer"], position["taken"]
            self.attempt = position["attempt"]
            pairs = zip(recipe.stages, self.taken, strict=True)
            self.steps = [stage for stage, taken in pairs for _ in range(taken)]
            self._run.load(self.model, self.optimizer)
            if position["begun"] is not None:
                self.under_way = Dialogues(
                    self.source,
                    self.steps[position["begun"]],
                    recipe.seed + self.attempt,
                    position["begun"],
                    position["read"],
                    self._run.state(),
                )
        self._run.cut_log(self.step)

    def _begin(self) -> None:
        """Model, optimiser and plan as they stand before the first step of this attempt."""
        recipe = self.recipe
        torch.manual_seed(recipe.seed + self.attempt)
        config = BMojoConfig(
            vocab_size=len(self.tokenizer),
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
            **recipe.model,
        )
        self.model = BMojoForCausalLM(config)
        self.optimizer = adamw(self.model, recipe.peak_lr, recipe.weight_decay)
        self.steps = [stage for stage in recipe.stages for _ in range(stage.steps)]
        self.taken = [stage.steps for stage in recipe.stages]
        self.step = 0
        self.answer = None
        self.under_way = None

    def run(self, max_minutes: float | None = None) -> BMojoForCausalLM:
        """Train to the recipe's end, or for `max_minutes`; returns the model in evaluation mode."""
        started = saved = time.monotonic()
        earlier = self.seconds
        report: dict[str, float] = {}  # the last of each loss
        with tqdm(
            total=self._tokens(),
            initial=self._tokens(self.step),
            unit="tok",
            unit_scale=True,
            smoothing=0.05,
            dynamic_ncols=True,
        ) as bar:
            while self.step < len(self.steps):
                stage = self.steps[self.step]
                fresh = self._train_step(stage)
                report |= fresh
                self.step += 1
                if self._judge(stage, fresh.get("answer")) == "failed":
                    bar.write(f"answers not learnt from seed {self.recipe.seed + self.attempt}")
                    self.attempt += 1
                    self._begin()
                    bar.reset(self._tokens())
                    self._run.cut_log(self.step)
                    continue
                bar.total = self._tokens()
                now = time.monotonic()
                self.seconds = earlier + now - started
                bar.set_postfix(report, refresh=False)
                bar.update(stage.batch * stage.length)
                if self.step % self.recipe.evaluate_every == 0:
                    self._run.write(self.step, self.seconds, self._evaluate() | report)
                elif self.step % LOG_EVERY == 0:
                    self._run.write(self.step, self.seconds, report)
                if now - saved > SAVE_EVERY:
                    self.save()
                    saved = now
                if max_minutes is not None and now - started > 60 * max_minutes:
                    break
        self.save()
        self.model.train(False)
        return self.model

    def _tokens(self, steps: int | None = None) -> int:
        """Tokens of the first `steps` of the plan (default: of all)."""
        return sum(stage.batch * stage.length for stage in self.steps[:steps])

    def _judge(self, stage: Stage, answer: float | None) -> Literal["open", "learnt", "failed"]:
        """Average the answers' loss over the stage, and end the stage where it is learnt."""
        if answer is not None:
            before = answer if self.answer is None else self.answer
            self.answer = before + (answer - before) / AVERAGED
        over = self.step == len(self.steps) or self.steps[self.step] is not stage
        so_far = math.inf if self.answer is None else self.answer
        learnt = stage.until is not None and so_far < stage.until
        if learnt and not over:
            i = self.recipe.stages.index(stage)
            self.taken[i] = self.step - sum(self.taken[:i])
            rest = [s for s in self.steps[self.step :] if s is not stage]
            self.steps = self.steps[: self.step] + rest
        if learnt or over:
            self.answer = None  # the next stage asks something else
        if learnt:
            return "learnt"
        more = self.attempt + 1 < self.recipe.attempts
        return "failed" if over and stage.until is not None and more else "open"

    def dialogues(self, stage: Stage) -> Dialogues:
        """Those under way, or new ones where these are through or of another stage."""
        if self.under_way is None or self.under_way.through or self.under_way.stage is not stage:
            seed = self.recipe.seed + self.attempt
            self.under_way = Dialogues(self.source, stage, seed, self.step)
        return self.under_way

    def texts(self, stage: Stage, rng: np.random.Generator) -> Tensor:
        """Text alone (B, T), as many tokens as the stage's batch of dialogues."""
        length = self.recipe.text_length
        rows = max(1, stage.batch * stage.length // length)
        return draw_texts(rng, self.texts_alone, rows, length, self.source.bos)

    def _train_step(self, stage: Stage) -> dict[str, float]:
        recipe = self.recipe
        rng = np.random.default_rng([recipe.seed + self.attempt, self.step])
        torch.manual_seed(int(rng.integers(2**31)))
        self.model.train()
        if rng.random() < stage.text:
            loss, report = self._text_loss(self.texts(stage, rng))
        else:
            loss, report = self._dialogue_loss(self.dialogues(stage), rng)
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr(stage)
        clip_gradients(self.model, recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {name: round(value.item(), 3) for name, value in report.items()}

    def _text_loss(self, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with dropout(self.model, self.recipe.dropout):
            (h,), innovation = self.model.model.full(tokens)
        logits = self.model.lm_head(h[:, :-1].flatten(0, 1))
        text = cross_entropy(logits, tokens[:, 1:].flatten())
        return text + self._innovation_loss(innovation), {"text": text}

    def _dialogue_loss(
        self, dialogues: Dialogues, rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        stage, batch, base = dialogues.stage, dialogues.sequences, self.model.model
        innovation, state = None, dialogues.state
        with scores(self.model) as score:
            if stage.spans == 1:
                (h,), innovation = base.full(batch.tokens)
            else:
                state = base.new_state(stage.batch) if state is None else state
                h, state = base.feed(batch.tokens, state, all_tokens=True)
        dialogues.go_on(state)
        h, target = h[:, :-1].flatten(0, 1), batch.tokens[:, 1:].flatten()
        asked = batch.answers[:, 1:].flatten()
        drawn = torch.from_numpy(rng.random(len(target)) < self.recipe.text_loss_share)
        chosen = (asked | drawn).nonzero().squeeze(1)
        losses = cross_entropy(self.model.lm_head(h[chosen]), target[chosen], reduction="none")
        asked = asked[chosen]
        other, answer = losses[~asked].mean(), losses[asked].sum() / asked.sum().clamp(min=1)
        loss = stage.text_weight * other + answer + self._innovation_loss(innovation)
        report = {"answer": answer} if asked.any() else {}
        if stage.selection:
            missed = torch.stack(
                [selection_loss(torch.cat(parts, 1), batch.values) for parts in score]
            ).mean()
            loss = loss + stage.selection * missed
            report["selection"] = missed
        return loss, report

    def _innovation_loss(self, innovation: Tensor | None) -> Tensor | float:
        if innovation is None:
            return 0.0
        return self.model.config.innovation_loss_weight * innovation.mean()

    def _lr(self, stage: Stage) -> float:
        recipe = self.recipe
        if stage.lr is not None:
            return stage.lr
        without = [i for i, one in enumerate(self.steps) if one.lr is None]
        step = bisect.bisect_left(without, self.step)
        return warmup_cosine(recipe.peak_lr, step, recipe.warmup, len(without))

    def _evaluate(self) -> dict[str, float]:
        """Recall of words kept out of notes, and perplexity, both on the held-out Bible."""
        self.model.train(False)
        out: dict[str, float] = {
            "perplexity": perplexity(self.model, self.heldout.text, stretches=8)
        }
        plan = Plan(self.recipe.windows, rows=16)
        for cell in measure(self.model, self.source, self.heldout, plan):
            out[f"{cell.asked}@{cell.windows}"] = round(cell.right, 3)
            if cell.held is not None:
                out[f"held@{cell.windows}"] = round(cell.held, 3)
        return out

    def save(self) -> None:
        """Write model, tokenizer, optimiser and position as the checkpoint of this run."""
        under_way = self.under_way
        position = {
            "step": self.step,
            "seconds": self.seconds,
            "attempt": self.attempt,
            "answer": self.answer,
            "taken": self.taken,
            "begun": under_way.begun if under_way else None,
            "read": under_way.read if under_way else None,
        }
        state = under_way.state if under_way else None
        self._run.save(self.model, self.tokenizer, self.optimizer, position, state)
