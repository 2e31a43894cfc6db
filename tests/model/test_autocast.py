"""Mixed precision by autocast: every layer type runs, trains and evaluates."""

import copy

import pytest
import torch
from transformers import Trainer, TrainingArguments

from tests.model.batches import MODELS, pad_pattern
from tests.model.conftest import random_ids, tiny_model


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


@torch.no_grad()
@pytest.mark.parametrize("form", ["full", "cached", "padded"])
def test_logits_under_autocast_err_no_more_than_those_of_a_bfloat16_model(kind, form):
    """Than twice theirs, and where tokens are selected, which may flip in either, thrice."""
    model, ids = MODELS[kind], random_ids(3, 30)
    mask = pad_pattern("left") if form == "padded" else None
    valid = torch.ones(3, 30, dtype=torch.bool) if mask is None else mask.bool()
    options = {"attention_mask": mask, "use_cache": form == "cached"}
    exact = model(ids, **options).logits[valid]
    half = copy.deepcopy(model).to(torch.bfloat16)(ids, **options).logits[valid]
    with autocast():
        got = model(ids, **options).logits[valid]
    error, allowed = ((x.float() - exact).square().mean().sqrt() for x in (got, half))
    assert error <= (3 if model.config.has_eidetic else 2) * allowed


@torch.no_grad()
def test_states_keep_the_dtypes_of_the_registry(model):
    with autocast():
        _, state = model.feed(random_ids(2, 21), model.new_state(2))
        for _ in range(3):
            _, state = model.feed(random_ids(2, 1), state, donate=True)
    assert {name: part.dtype for name, part in state.items()} == {
        part.name: part.dtype for part in model.state_parts()
    }


@torch.no_grad()
def test_generation_under_autocast_continues_what_it_began(kind):
    model, ids = MODELS[kind], random_ids(1, 11)
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 2}
    with autocast():
        whole = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, **options
        )
        cache = model(ids).past_key_values
        rest = model.generate(
            whole[:, :12],
            attention_mask=torch.ones(1, 12),
            cache=cache,
            max_new_tokens=11,
            **options,
        )
    assert torch.equal(rest, whole)


def test_gradients_under_autocast_point_the_same_way(kind):
    ids = random_ids(2, 21)
    directions = []
    for mixed in (False, True):
        model = tiny_model(kind).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = model(ids, labels=ids).loss
        loss.backward()
        directions.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.cosine_similarity(*directions, dim=0) > 0.98


@pytest.mark.parametrize("kind", ["bmojo", "mamba2+bmojo", "attention"])
def test_trainer_in_bf16_evaluates_what_it_trains(kind, tmp_path):
    ids = random_ids(8, 20)
    data = [{"input_ids": row, "labels": row} for row in ids]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=4, per_device_eval_batch_size=4,
        max_steps=2, bf16=True, use_cpu=True, report_to=[], disable_tqdm=True,
        eval_strategy="steps", eval_steps=2, save_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(tiny_model(kind), arguments, train_dataset=data, eval_dataset=data)
    trainer.train()
    evaluated = next(e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e)
    with torch.no_grad():
        exact = trainer.model.eval()(ids, labels=ids).loss.item()
    assert evaluated == pytest.approx(exact, rel=2e-2)
