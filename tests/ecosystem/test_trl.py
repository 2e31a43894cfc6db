import copy
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from bmojo_neuron import BMojoForCausalLM
from tests.ecosystem.conftest import without_autocast
from tests.model.batches import MIXED
from tests.model.conftest import tiny_config
from tests.model.test_transformers import byte_tokenizer

TEXT = "the same words again and again"
OPTIONS = {
    "per_device_train_batch_size": 8,
    "max_steps": 16,
    "logging_steps": 1,
    "report_to": [],
    "use_cpu": True,
    "dataloader_pin_memory": False,
}


def new_model(kind: str = MIXED) -> BMojoForCausalLM:
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    return BMojoForCausalLM(tiny_config(kind, vocab_size=len(tokenizer), initializer_range=0.1))


def logged(trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def sft(folder: Path, model: BMojoForCausalLM | str, **options) -> SFTTrainer:
    arguments = SFTConfig(output_dir=str(folder), learning_rate=1e-2, **(OPTIONS | options))
    data = Dataset.from_dict({"text": [TEXT, TEXT[9:]] * 32})
    return SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        eval_dataset=data.select(range(8)),
        processing_class=byte_tokenizer(),
    )


def text_loss(model: BMojoForCausalLM) -> float:
    """Mean loss over the tokens of the two texts and the <eos> behind each."""
    tokenizer = byte_tokenizer()
    model.eval()
    losses = []
    for text in (TEXT, TEXT[9:]):
        ids = torch.tensor([[*tokenizer(text).input_ids, tokenizer.eos_token_id]])
        with torch.no_grad():
            score = model(ids).logits[0, :-1].log_softmax(-1)
        losses += (-score.gather(1, ids[0, 1:, None])).flatten().tolist()
    return sum(losses) / len(losses)


def test_sft_learns_with_default_settings(kind: str, tmp_path: Path) -> None:
    """trl: SFTTrainer, default settings (bf16, checkpointing): learns; loss as by hand"""
    trainer = sft(tmp_path, new_model(kind))
    assert trainer.args.gradient_checkpointing
    assert trainer.args.bf16
    before = text_loss(trainer.model)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(before, rel=0.02)
    trainer.train()
    losses = logged(trainer, "loss")
    assert losses[0] == pytest.approx(before, rel=0.05)
    assert losses[-1] < 0.5 * losses[0]
    evaluated = trainer.evaluate()["eval_loss"]
    assert evaluated == pytest.approx(text_loss(without_autocast(trainer)), rel=0.05)


def test_sft_loads_a_path(tmp_path: Path) -> None:
    """trl: SFTTrainer, told a path: the model saved there"""
    model = new_model()
    model.save_pretrained(tmp_path / "saved")
    trainer = sft(tmp_path, str(tmp_path / "saved"))
    assert type(trainer.model) is BMojoForCausalLM
    assert trainer.evaluate()["eval_loss"] == pytest.approx(text_loss(model), rel=0.02)


def test_sft_learns_from_wrapped_text(tmp_path: Path) -> None:
    """trl: SFTTrainer, packing_strategy="wrapped" (one running text cut into rows): learns"""
    trainer = sft(tmp_path, new_model(), packing=True, packing_strategy="wrapped", max_length=32)
    trainer.train()
    losses = logged(trainer, "loss")
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    "options", [{"packing": True, "max_length": 64}, {"padding_free": True, "max_length": None}]
)
def test_sft_on_packed_rows_is_refused(options: dict, tmp_path: Path) -> None:
    """trl: SFTTrainer, packing or padding_free: documents in one row would read each other"""
    with pytest.raises(ValueError, match=r"packed sequences"):
        sft(tmp_path, new_model(), **options).train()


PREFERENCE = {"prompt": "say: ", "chosen": "yes, yes", "rejected": "no no no"}


def completion_score(model: BMojoForCausalLM, completion: str) -> torch.Tensor:
    """Log probability of a completion and its <eos> after the prompt."""
    tokenizer = byte_tokenizer()
    after = torch.tensor([*tokenizer(completion).input_ids, tokenizer.eos_token_id])
    ids = torch.cat([torch.tensor(tokenizer(PREFERENCE["prompt"]).input_ids), after])
    with torch.no_grad():
        score = model(ids[None]).logits[0, -len(after) - 1 : -1].log_softmax(-1)
    return score.gather(1, after[:, None]).sum()


@pytest.mark.parametrize("reference", ["given", "own"])
def test_dpo_prefers_what_was_chosen(reference: str, tmp_path: Path) -> None:
    """trl: DPOTrainer, default settings, reference given or found by trl: margins as by hand"""
    first = new_model().eval()
    policy = first
    if reference == "own":  # which trl loads from where the policy came from
        first.save_pretrained(tmp_path / "first")
        policy = BMojoForCausalLM.from_pretrained(tmp_path / "first")
    data = Dataset.from_list([PREFERENCE] * 32)
    arguments = DPOConfig(output_dir=str(tmp_path), learning_rate=1e-3, **OPTIONS)
    trainer = DPOTrainer(
        model=copy.deepcopy(policy),
        ref_model=copy.deepcopy(first) if reference == "given" else None,
        args=arguments,
        train_dataset=data,
        eval_dataset=data.select(range(8)),
        processing_class=byte_tokenizer(),
    )
    trainer.train()
    assert logged(trainer, "loss")[0] == pytest.approx(0.6931, abs=2e-3)  # policy = reference
    margins = logged(trainer, "rewards/margins")
    assert margins[0] == pytest.approx(0.0, abs=0.02)
    assert margins[-1] > 1
    evaluated = trainer.evaluate()
    trained = without_autocast(trainer).eval()
    chosen, rejected = (
        completion_score(trained, text) - completion_score(first, text)
        for text in (PREFERENCE["chosen"], PREFERENCE["rejected"])
    )
    margin = arguments.beta * (chosen - rejected)
    assert evaluated["eval_rewards/margins"] == pytest.approx(margin.item(), rel=0.05)
    assert evaluated["eval_loss"] == pytest.approx(-logsigmoid(margin).item(), rel=0.1, abs=0.01)
