import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, TaskType, get_peft_model
from transformers import Trainer, TrainingArguments

from bmojo_neuron import BMojoForCausalLM
from tests.ecosystem.conftest import without_autocast
from tests.model.batches import MIXED, uncached
from tests.model.conftest import random_ids, tiny_model
from tests.model.test_transformers import Repetitions

CAUSAL_LM = TaskType.CAUSAL_LM


def lora(model: BMojoForCausalLM, **options):
    config = LoraConfig(task_type=CAUSAL_LM, target_modules="all-linear", r=4, **options)
    return get_peft_model(model, config)


@pytest.mark.parametrize("init", [True, "pissa", "olora"], ids=["default", "pissa", "olora"])
def test_lora_starts_from_the_model(kind: str, init: bool | str) -> None:
    """peft: LoRA on "all-linear", default, PiSSA and OLoRA: untrained, the model's own logits"""
    ids = random_ids(2, 30)
    expected = uncached(tiny_model(kind), ids)
    model = lora(tiny_model(kind), init_lora_weights=init).eval()
    torch.testing.assert_close(uncached(model, ids), expected, atol=2e-4, rtol=1e-4)


def test_lora_reaches_every_linear_layer(kind: str) -> None:
    """peft: LoRA on "all-linear": every adapter has a gradient"""
    model = lora(tiny_model(kind)).train()
    ids = random_ids(2, 30)
    model(ids, labels=ids).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if "lora_B" in name}
    assert gradients
    assert all(grad is not None and grad.abs().max() > 0 for grad in gradients.values())


def test_lora_trains_evaluates_and_merges(tmp_path: Path) -> None:
    """peft: LoRA in Trainer, bf16, evaluation: learns; merge_and_unload keeps the logits"""
    model = lora(tiny_model(MIXED))
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        bf16=True,
        per_device_train_batch_size=8,
        max_steps=24,
        learning_rate=3e-2,
        logging_steps=8,
        eval_strategy="steps",
        eval_steps=24,
        report_to=[],
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    data = Repetitions()
    trainer = Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    evaluated = next(e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e)
    batch = torch.stack([data[i]["input_ids"] for i in range(len(data))])
    model = without_autocast(trainer).eval()
    with torch.no_grad():
        assert evaluated == pytest.approx(model(batch, labels=batch).loss.item(), rel=0.05)
        expected = uncached(model, batch)
        merged = model.merge_and_unload()
        assert type(merged) is BMojoForCausalLM
        torch.testing.assert_close(uncached(merged, batch), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_prompt_tuning_prepends_its_embeddings(kind: str) -> None:
    """peft: Prompt tuning: logits and generated tokens are those after the learnt embeddings"""
    base = tiny_model(kind)
    plain = copy.deepcopy(base)
    config = PromptTuningConfig(task_type=CAUSAL_LM, num_virtual_tokens=5)
    model = get_peft_model(base, config).eval()
    ids = random_ids(2, 30)
    mask = torch.ones_like(ids)
    prompt = model.get_prompt(batch_size=2)
    embeds = torch.cat([prompt, plain.get_input_embeddings()(ids)], dim=1)
    expected = plain(inputs_embeds=embeds, use_cache=False).logits
    got = model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    new = model.generate(input_ids=ids, attention_mask=mask, **options)[:, ids.shape[1] :]
    assert torch.equal(new, plain.generate(inputs_embeds=embeds, **options))


def test_prefix_tuning_is_refused() -> None:
    """peft: Prefix tuning: keys and values of a prefix are no state of this model"""
    config = PrefixTuningConfig(
        task_type=CAUSAL_LM,
        num_virtual_tokens=5,
        num_layers=2,
        token_dim=32,
        num_attention_heads=4,
    )
    model = get_peft_model(tiny_model("bmojo"), config)
    ids = random_ids(2, 30)
    with pytest.raises(ValueError, match=r"expected a BMojoCache .*, got (Dynamic|\w+)Cache"):
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
