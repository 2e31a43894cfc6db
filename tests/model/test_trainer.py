"""transformers' Trainer: resumes what it began, smooths the right labels, spares what must not
decay.
"""

import pytest
import torch
from torch.nn.functional import log_softmax
from transformers import Trainer, TrainingArguments, set_seed

from bmojo_neuron import BMojoForCausalLM, BMojoForSequenceClassification
from tests.model.batches import LENGTHS, MIXED, WIDTH, pad_pattern
from tests.model.conftest import random_ids, tiny_config, tiny_model

DATA = [{"input_ids": row, "labels": row} for row in random_ids(24, 20)]


def trainer(model: BMojoForCausalLM, out, **options) -> Trainer:
    settings = {
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    arguments = TrainingArguments(output_dir=str(out), **(settings | options))
    return Trainer(model=model, args=arguments, train_dataset=DATA, eval_dataset=DATA)


def test_a_resumed_run_ends_as_an_unbroken_one(kind, tmp_path):
    """Bit for bit, from a checkpoint that Trainer itself wrote and reads."""
    options = {"max_steps": 4, "save_steps": 2, "seed": 3, "weight_decay": 0.1}
    set_seed(3)
    unbroken = trainer(BMojoForCausalLM(tiny_config(kind)), tmp_path, **options)
    unbroken.train()
    set_seed(5)
    resumed = trainer(BMojoForCausalLM(tiny_config(kind)), tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 4
    for name, value in unbroken.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def smoothed(logits: torch.Tensor, ids: torch.Tensor, valid: torch.Tensor, share: float) -> float:
    """The definition: (1 - share) of the next token's loss, share of the mean over all tokens."""
    losses = -log_softmax(logits[:, :-1].double(), dim=-1)
    right = losses.gather(2, ids[:, 1:, None]).squeeze(2)
    return ((1 - share) * right + share * losses.mean(-1))[valid[:, 1:]].mean().item()


@pytest.mark.parametrize("pattern", [None, "left", "right"])
def test_label_smoothing_asks_for_the_next_token(pattern, tmp_path):
    """Not for the token itself, which is what a trainer does that does not know the model."""
    model = tiny_model(MIXED)
    ids = random_ids(len(LENGTHS), WIDTH)
    valid = torch.ones_like(ids) if pattern is None else pad_pattern(pattern)
    batch = {
        "input_ids": ids,
        "attention_mask": valid,
        "labels": ids.masked_fill(valid == 0, -100),
    }
    with torch.no_grad():
        logits = model(ids, attention_mask=valid).logits
        loss = trainer(model, tmp_path, label_smoothing_factor=0.2).compute_loss(model, batch)
    assert loss.item() == pytest.approx(smoothed(logits, ids, valid.bool(), 0.2), rel=1e-4)


def test_training_with_smoothed_labels_does_not_learn_to_copy(tmp_path):
    set_seed(0)
    model = BMojoForCausalLM(tiny_config(MIXED, initializer_range=0.1))
    cycle = [{"input_ids": (ids := torch.arange(24) % 7 + 3 + i), "labels": ids} for i in range(8)]
    run = trainer(model, tmp_path, label_smoothing_factor=0.1, max_steps=60, save_strategy="no")
    run.train_dataset = cycle
    run.train()
    ids = torch.stack([row["input_ids"] for row in cycle])
    with torch.no_grad():
        likeliest = model.eval()(ids).logits.argmax(-1)
    assert (likeliest[:, 8:-1] == ids[:, 9:]).float().mean() > 0.9


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trainer_with_gradient_checkpointing_takes_the_same_steps(checkpointing, tmp_path):
    losses = []
    for on in (False, checkpointing):
        set_seed(0)
        run = trainer(
            tiny_model(MIXED), tmp_path, max_steps=3, logging_steps=1, save_strategy="no",
            activation_checkpointing=on,
        )  # fmt: skip
        run.train()
        losses.append([entry["loss"] for entry in run.state.log_history if "loss" in entry])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_trainer_trains_a_classifier(smoothing, tmp_path):
    """Its generic head hands the options of the loss to the base model."""
    set_seed(0)
    model = BMojoForSequenceClassification(tiny_config(MIXED, num_labels=2, initializer_range=0.1))
    rows = random_ids(16, 12)
    data = [{"input_ids": row, "label": int(row[-1] > 25)} for row in rows]
    run = trainer(
        model, tmp_path, max_steps=40, save_strategy="no", label_smoothing_factor=smoothing,
        gradient_accumulation_steps=2,
    )  # fmt: skip
    run.train_dataset = data
    run.train()
    with torch.no_grad():
        likeliest = model.eval()(rows).logits.argmax(-1)
    assert torch.equal(likeliest, torch.tensor([row["label"] for row in data]))
