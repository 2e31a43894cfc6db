"""The loss: of the next token, and of the innovation; in batches and in parts of batches."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments

from bmojo_neuron import BMojoForCausalLM
from tests.model.batches import LENGTHS, MIXED, WIDTH, pad_pattern, uncached
from tests.model.conftest import random_ids, tiny_model

Gradients = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def test_loss_is_the_cross_entropy_of_the_next_token(model):
    ids = random_ids(2, 20)
    labels = ids.clone()
    labels[0, :7] = -100
    expected = cross_entropy(uncached(model, ids)[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(model(ids, labels=labels).loss, expected)


@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_training_adds_the_innovation_loss(weight):
    model = tiny_model(MIXED, innovation_loss_weight=weight)
    ids = random_ids(2, 20)
    plain = model(ids, labels=ids).loss
    _, nothing = model.model.full(ids)
    assert nothing is None
    model.train()
    _, innovation = model.model.full(ids)
    assert innovation.shape == (2,)
    assert (innovation > 0).all()
    torch.testing.assert_close(model(ids, labels=ids).loss, plain + weight * innovation.mean())


def test_the_innovation_loss_trains_the_predictor_and_the_first_average_alone():
    model = tiny_model(MIXED).train()
    with torch.enable_grad():
        _, innovation = model.model.full(random_ids(2, 20))
        innovation.sum().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    eidetic = "model.layers.1.layer.eidetic."
    assert trained == {eidetic + "predictor_bias", eidetic + "innovation_log_bias"}


def test_the_first_average_is_trained_to_be_the_mean_innovation():
    model = tiny_model(MIXED).train()
    eidetic = model.model.layers[1].layer.eidetic
    optimizer = torch.optim.SGD([eidetic.innovation_log_bias], lr=0.5)
    f = torch.randn(4, 40, model.config.hidden_size)
    with torch.enable_grad():
        for _ in range(60):
            optimizer.zero_grad()
            eidetic.innovation_loss(f, f.new_zeros(4, 4, f.shape[2]), None).mean().backward()
            optimizer.step()
    before = torch.cat([torch.zeros(4, 1, f.shape[2]), f[:, :-1]], dim=1)  # foretold: no change
    error = (f - before).square().mean((1, 2))
    assert eidetic.innovation_log_bias.item() == pytest.approx(error.log().mean().item(), abs=1e-3)


# Gradient accumulation


def in_training(**changes) -> BMojoForCausalLM:
    return tiny_model(MIXED, innovation_loss_weight=1.0, **changes).train()


def gradients(model: BMojoForCausalLM, *batches: dict) -> tuple[float, Gradients]:
    """Of the sum of the batches' losses."""
    model.zero_grad()
    total = 0.0
    with torch.enable_grad():
        for batch in batches:
            loss = model(**batch).loss
            loss.backward()
            total += loss.item()
    return total, {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_same_step(a: tuple[float, Gradients], b: tuple[float, Gradients]) -> None:
    assert a[0] == pytest.approx(b[0], rel=1e-4)
    for name, gradient in a[1].items():
        torch.testing.assert_close(gradient, b[1][name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("aligned", [False, True], ids=["labels", "shift_labels"])
@pytest.mark.parametrize("answers", [(20, 20, 20, 20), (19, 3, 0, 11)], ids=["all", "unequal"])
@pytest.mark.parametrize("rows", [1, 2])
def test_parts_of_a_batch_add_up_to_the_batch(answers, rows, aligned):
    """As Trainer accumulates: every part is told how many tokens the whole batch predicts."""
    model, ids = in_training(), random_ids(4, 20)
    labels = ids.clone()
    for row, count in enumerate(answers):
        labels[row, : 20 - count] = -100
    items = (labels[:, 1:] != -100).sum()
    batch = {"input_ids": ids, "labels": labels}
    if aligned:
        batch["shift_labels"] = torch.cat([labels[:, 1:], torch.full((4, 1), -100)], dim=1)
    parts = [
        {name: part[row : row + rows] for name, part in batch.items()} | {"num_items_in_batch": n}
        for row, n in zip(range(0, 4, rows), [items, items.item()] * 2, strict=False)
    ]
    assert_same_step(gradients(model, *parts), gradients(model, batch))


# Padding


@pytest.mark.parametrize("at_padding", ["ignored", "junk"])
@pytest.mark.parametrize("pattern", ["right", "left", "holes"])
def test_padding_changes_neither_loss_nor_gradients(pattern, at_padding):
    """Nor does a row of nothing but padding, nor what stands at padding."""
    model, mask = in_training(), pad_pattern(pattern)
    mask = torch.cat([mask, torch.zeros_like(mask[:1])])
    ids = random_ids(len(mask), WIDTH, seed=5)
    labels = ids if at_padding == "junk" else ids.masked_fill(mask == 0, -100)
    padded = gradients(model, {"input_ids": ids, "attention_mask": mask, "labels": labels})
    rows = [ids[row, mask[row].bool()].unsqueeze(0) for row in range(len(LENGTHS))]
    items = sum(LENGTHS) - len(LENGTHS)
    solo = [{"input_ids": row, "labels": row, "num_items_in_batch": items} for row in rows]
    assert_same_step(padded, gradients(model, *solo))


def test_the_innovation_of_a_row_is_that_of_its_valid_tokens():
    model, ids = in_training(), random_ids(3, 20)
    _, innovation = model.model.full(ids, [20, 7, 0])
    _, first = model.model.full(ids)
    _, second = model.model.full(ids[:, :7])
    expected = torch.stack([first[0], second[1], torch.zeros(())])
    torch.testing.assert_close(innovation, expected)


def test_nothing_but_padding_is_no_loss():
    model, ids = in_training(), random_ids(2, 20)
    batch = {"input_ids": ids, "labels": ids, "attention_mask": torch.zeros_like(ids)}
    loss, steps = gradients(model, batch | {"num_items_in_batch": 7})
    assert loss == 0
    assert not any(gradient.any() for gradient in steps.values())


# Trainer


class Rows(torch.utils.data.Dataset):
    """Eight texts, each with more of its tokens to be predicted than the one before."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = random_ids(1, 20, seed=index)[0]
        return {"input_ids": ids, "labels": ids.masked_fill(torch.arange(20) < 14 - index, -100)}


def test_trainer_takes_the_same_step_however_it_accumulates(tmp_path):
    def trained(batch_size: int) -> Gradients:
        model = in_training()
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=8 // batch_size,
            max_steps=1,
            optim="sgd",
            learning_rate=1.0,
            max_grad_norm=0.0,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        with torch.enable_grad():
            Trainer(model=model, args=arguments, train_dataset=Rows()).train()
        return model.state_dict()

    whole = trained(8)
    for name, weight in trained(1).items():
        torch.testing.assert_close(weight, whole[name], atol=1e-4, rtol=1e-4, msg=name)
