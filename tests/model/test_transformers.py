"""The model as any causal LM of transformers: saved, loaded, in pipelines, trained."""

import copy
import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    pipeline,
    set_seed,
)

from bmojo_neuron import BMojoConfig, BMojoForCausalLM
from bmojo_neuron.model import default_model_path
from tests.model.batches import MIXED, uncached
from tests.model.conftest import random_ids, tiny_config, tiny_model


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def scrambled(kind: str, **changes) -> BMojoForCausalLM:
    """A model none of whose parameters has its initial value, as after training."""
    model = tiny_model(kind, **changes)
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


# Saving and loading


def test_save_and_load_give_the_same_bits(kind, tmp_path):
    model = scrambled(kind)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is BMojoForCausalLM
    assert not loaded.training
    ids = random_ids(2, 30)
    assert torch.equal(uncached(loaded, ids), uncached(model, ids))
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_are_one_tensor_after_loading(tied, tmp_path):
    model = scrambled(MIXED, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_config_round_trip(tmp_path):
    """Every field, from values that are not the defaults, through JSON and back."""
    changed = BMojoConfig(
        vocab_size=77,
        hidden_size=48,
        intermediate_size=0,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        block_types=["attention", "mamba2", "bmojo", "sliding_attention"],
        max_position_embeddings=999,
        rms_norm_eps=1e-5,
        initializer_range=0.1,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0},
        qk_norm=False,
        attention_bias=True,
        mlp_bias=True,
        window=16,
        tie_fading_projections=False,
        selection_period=4,
        eidetic_size=3,
        eidetic_half_life=9.5,
        eidetic_position="absolute",
        eidetic_score_bias=False,
        innovation_taps=2,
        innovation_windows=5,
        innovation_loss_weight=0.3,
        mixer="mamba",
        mamba_inner_size=40,
        mamba_state_size=5,
        mamba_dt_rank=7,
        mamba_conv_size=2,
        mamba_conv_bias=False,
        mamba_proj_bias=True,
        mamba2_num_heads=6,
        mamba2_num_kv_heads=3,
        mamba2_num_x_heads=6,
        mamba2_num_c_heads=2,
        mamba2_head_dim=10,
        mamba2_state_size=8,
        mamba2_conv_size=3,
        mamba2_conv_bias=False,
        mamba2_proj_bias=True,
        mamba2_qk_norm=False,
        mamba2_rope=True,
        mamba2_dt_min=0.01,
        mamba2_dt_max=0.5,
        mamba2_norm_groups=3,
        mamba2_norm_eps=1e-4,
        gdn_conv_size=3,
        gdn_short_conv=False,
        gdn_conv_bias=True,
        gdn_gate=False,
        gdn_negative_eigenvalues=True,
        gdn_norm_eps=1e-4,
        gka_conv_size=3,
        gka_v_conv=False,
        gka_gate=False,
        gka_norm_eps=1e-4,
        gka_num_iter=7,
        gka_ridge=0.1,
        gka_alpha_connection=False,
        gka_beta_gate=False,
        gka_forgetting_gate=False,
        gka_forgetting_gate_kk=False,
        gka_rescale=False,
        use_cache=False,
        bos_token_id=5,
        eos_token_id=6,
        pad_token_id=7,
    )
    changed.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    default = BMojoConfig()
    own = BMojoConfig.__annotations__.keys() - {"keys_to_ignore_at_inference"}
    for name in own:
        assert getattr(loaded, name) == getattr(changed, name), name
        assert getattr(changed, name) != getattr(default, name), f"{name}: test another value"
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["block_types"] == ["attention", "mamba2", "bmojo", "sliding_attention"]
    assert written["model_type"] == "bmojo"


def test_the_backend_is_no_part_of_the_checkpoint(tmp_path):
    BMojoForCausalLM(tiny_config(MIXED), backend="torch").save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, backend="torch")
    loaded.save_pretrained(tmp_path)
    assert "backend" not in (tmp_path / "config.json").read_text()
    with pytest.raises(ValueError, match=r"backend: expected one of .*torch.*, got 'cpu'"):
        AutoModelForCausalLM.from_pretrained(tmp_path, backend="cpu")


@pytest.mark.parametrize("how", ["load", "cast"])
def test_half_precision_keeps_recurrent_state_and_positions_exact(how, tmp_path):
    model = scrambled(MIXED)
    ids = random_ids(1, 40)
    if how == "load":
        model.save_pretrained(tmp_path)
        half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    else:
        half = copy.deepcopy(model).to(torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    logits, state = half.feed(ids, half.new_state(1))
    assert logits.dtype == torch.bfloat16
    assert torch.isfinite(logits).all()
    exact = {name for name, part in state.items() if part.dtype == torch.float32}
    assert {"layers.0.ssm", "layers.1.predictor", "layers.1.eidetic_score"} <= exact
    far = torch.tensor([[100_003]], dtype=torch.int32)  # bfloat16 knows no such number
    exact_angles = model.model.rotary(far, torch.float32)
    for got, angle in zip(half.model.rotary(far, torch.bfloat16), exact_angles, strict=True):
        torch.testing.assert_close(got.float(), angle, atol=4e-3, rtol=0)
    rounded = copy.deepcopy(half).float()  # the same weights, exact arithmetic
    expected, _ = rounded.feed(ids, rounded.new_state(1))
    assert (logits.float() - expected).square().mean() < 0.01 * expected.square().mean()


# The tools around it


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, one token per byte, three special ones in front."""
    special = ["<bos>", "<eos>", "<pad>"]
    words = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    bos, eos, padding = special
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=padding,
        padding_side="left",
    )


def test_text_generation_pipeline(tmp_path):
    tokenizer = byte_tokenizer()
    tiny_model(MIXED, vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    generator = pipeline("text-generation", model=str(tmp_path))
    options = {"max_new_tokens": 12, "do_sample": False, "return_full_text": False}
    texts = ["In the beginning", "And"]
    batch = generator(texts, batch_size=2, **options)
    for text, ((answer,)) in zip(texts, batch, strict=True):
        inputs = tokenizer(text, return_tensors="pt")
        expected = generator.model.generate(**inputs, max_new_tokens=12, do_sample=False)
        new = expected[0, inputs.input_ids.shape[1] :]
        assert len(new) == 12 or new[-1] == tokenizer.eos_token_id
        assert answer["generated_text"] == tokenizer.decode(new, skip_special_tokens=True)
    assert any(answer["generated_text"] for (answer,) in batch)


def test_the_embedded_tokenizer_starts_with_bos():
    """As the dialogues that the embedded model learnt from do."""
    tokenizer = AutoTokenizer.from_pretrained(default_model_path())
    ids = tokenizer("In the").input_ids
    assert ids[0] == tokenizer.bos_token_id == 0
    assert 0 not in ids[1:]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "In the"


class Repetitions(torch.utils.data.Dataset):
    """Short cycles of tokens: easily learnt."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = (torch.arange(24) % 4) + 3 + index % 5
        return {"input_ids": ids, "labels": ids}


def test_trainer_learns_saves_and_reloads(tmp_path):
    with torch.enable_grad():
        set_seed(0)
        model = BMojoForCausalLM(tiny_config(MIXED, initializer_range=0.1))
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=8,
            per_device_eval_batch_size=8,
            max_steps=24,
            learning_rate=1e-2,
            logging_steps=8,
            save_steps=24,
            eval_strategy="steps",
            eval_steps=24,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        data = Repetitions()
        trainer = Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    evaluated = next(e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e)
    batch = torch.stack([data[i]["input_ids"] for i in range(len(data))])
    model.eval()
    assert evaluated == pytest.approx(model(batch, labels=batch).loss.item(), rel=1e-3)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-24")
    assert torch.equal(uncached(loaded, batch), uncached(model, batch))
