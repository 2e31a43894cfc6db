"""Which parameters weight decay spares, as Trainer of transformers reads their names."""

from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments

from bmojo_neuron import BMojoForCausalLM, BMojoForSequenceClassification, BMojoModel
from tests.model.conftest import KINDS, tiny_config

SPARED = (
    *("a_log_bias", "skip_bias", "dt_bias", "predictor_bias", "innovation_log_bias", "score_bias"),
    "conv.bias",
)
MATRICES = (
    *("_proj.weight", "conv.weight", "dt_weight"),
    *("embed_tokens.weight", "lm_head.weight", "score.weight"),
)


def arguments(path: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(path), weight_decay=0.1, report_to=[], use_cpu=True, disable_tqdm=True
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", [BMojoForCausalLM, BMojoForSequenceClassification, BMojoModel])
def test_trainer_decays_matrices_and_nothing_else(head: type, kind: str, tmp_path: Path) -> None:
    model = head(tiny_config(kind, tie_word_embeddings=False))
    trainer = Trainer(model=model, args=arguments(tmp_path))
    decayed = set(trainer.get_decay_parameter_names(model))
    names = dict(model.named_parameters())
    spared = names.keys() - decayed
    assert decayed == {name for name in names if name.endswith(MATRICES)}
    assert all(name.endswith((*SPARED, "_proj.bias", "norm", "norm.weight")) for name in spared)
    assert all(names[name].dim() == 2 for name in decayed)
    optimizer = trainer.create_optimizer()
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert {name: decay[id(p)] for name, p in names.items()} == {
        name: 0.1 if name in decayed else 0.0 for name in names
    }


def test_every_spared_name_is_one_of_the_model() -> None:
    names = [name for name, _ in BMojoForCausalLM(tiny_config("bmojo")).named_parameters()]
    for spared in SPARED:
        assert any(name.endswith(f".{spared}") for name in names), spared


def test_a_step_with_no_gradient_shrinks_matrices_alone(tmp_path: Path) -> None:
    model = BMojoForCausalLM(tiny_config("bmojo"))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = Trainer(model=model, args=arguments(tmp_path)).create_optimizer()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        shrunk = before[name] * (1 - 5e-5 * 0.1) if name.endswith(MATRICES) else before[name]
        torch.testing.assert_close(p.detach(), shrunk, rtol=1e-7, atol=0, msg=name)
