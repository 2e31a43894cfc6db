"""The model as any causal LM of transformers: load, pad, cache, generate, train."""

import copy
import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    pipeline,
    set_seed,
)

from bmojo_neuron import BMojoCache, BMojoConfig, BMojoForCausalLM
from bmojo_neuron.state import state_bytes
from tests.model.conftest import KINDS, random_ids, tiny_config, tiny_model
from tests.model.states import CLOSE

MODELS = {kind: tiny_model(kind) for kind in KINDS}
MIXED = "mamba2+bmojo"
GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 2}


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


def uncached(model: BMojoForCausalLM, ids: torch.Tensor, **kwargs) -> torch.Tensor:
    return model(ids, use_cache=False, **kwargs).logits


def greedy_by_hand(model: BMojoForCausalLM, ids: torch.Tensor, count: int) -> torch.Tensor:
    for _ in range(count):
        ids = torch.cat([ids, uncached(model, ids)[:, -1:].argmax(-1)], dim=1)
    return ids


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
    assert (loaded.lm_head.weight is loaded.embed_tokens.weight) == tied
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
        layer_types=["attention", "mamba2", "bmojo", "sliding_attention"],
        max_position_embeddings=999,
        rms_norm_eps=1e-5,
        initializer_range=0.1,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0},
        window=16,
        tie_fading_projections=False,
        selection_period=4,
        eidetic_size=3,
        eidetic_half_life=9.5,
        eidetic_position="absolute",
        eidetic_score_bias=False,
        innovation_taps=2,
        innovation_loss_weight=0.3,
        mamba2_num_heads=6,
        mamba2_num_kv_heads=3,
        mamba2_head_dim=10,
        mamba2_state_size=12,
        mamba2_conv_size=3,
        mamba2_qk_norm=False,
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
        if name != "mixer":  # there is but one
            assert getattr(changed, name) != getattr(default, name), f"{name}: test another value"
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["layer_types"] == ["attention", "mamba2", "bmojo", "sliding_attention"]
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
    exact_angles = model.rotary(far, torch.float32)
    for got, angle in zip(half.rotary(far, torch.bfloat16), exact_angles, strict=True):
        torch.testing.assert_close(got.float(), angle, atol=4e-3, rtol=0)
    rounded = copy.deepcopy(half).float()  # the same weights, exact arithmetic
    expected, _ = rounded.feed(ids, rounded.new_state(1))
    assert (logits.float() - expected).square().mean() < 0.01 * expected.square().mean()


# Padding and caching


LENGTHS = (30, 17, 5)
WIDTH = max(LENGTHS)


def pad_pattern(pattern: str) -> torch.Tensor:
    mask = torch.zeros(len(LENGTHS), WIDTH, dtype=torch.long)
    generator = torch.Generator().manual_seed(11)
    for row, length in enumerate(LENGTHS):
        places = {
            "right": torch.arange(length),
            "left": torch.arange(WIDTH - length, WIDTH),
            "holes": torch.randperm(WIDTH, generator=generator)[:length].sort().values,
        }
        mask[row, places[pattern]] = 1
    return mask


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("pattern", ["right", "left", "holes"])
def test_a_padded_row_gets_its_solo_logits(kind, pattern, use_cache):
    model, mask = MODELS[kind], pad_pattern(pattern)
    ids = random_ids(len(LENGTHS), WIDTH, seed=5)
    logits = model(ids, attention_mask=mask, use_cache=use_cache).logits
    assert logits.shape == (len(LENGTHS), WIDTH, model.config.vocab_size)
    for row in range(len(LENGTHS)):
        valid = mask[row].bool()
        expected = uncached(model, ids[row : row + 1, valid])[0]
        torch.testing.assert_close(logits[row, valid], expected, **CLOSE)


@pytest.mark.parametrize("full_mask", [False, True], ids=["mask of the piece", "mask of all"])
def test_continuing_in_pieces_equals_one_shot(kind, full_mask):
    model, mask = MODELS[kind], pad_pattern("left")
    ids = random_ids(len(LENGTHS), WIDTH, seed=6)
    expected = uncached(model, ids, attention_mask=mask)
    cache, pieces = None, []
    for start, end in ((0, 3), (3, 4), (4, 21), (21, 30)):
        out = model(
            ids[:, start:end],
            attention_mask=mask[:, 0 if full_mask else start : end],
            past_key_values=cache,
            use_cache=True,
        )
        cache = out.past_key_values
        assert isinstance(cache, BMojoCache)
        assert cache.get_seq_length() == end
        pieces.append(out.logits)
    valid = mask.bool()
    torch.testing.assert_close(torch.cat(pieces, dim=1)[valid], expected[valid], **CLOSE)


def test_a_cache_made_from_a_state_continues_it(model):
    ids = random_ids(1, 25)
    _, state = model.feed(ids[:, :20], model.new_state(1))
    out = model(ids[:, 20:], past_key_values=BMojoCache(state))
    torch.testing.assert_close(out.logits, uncached(model, ids)[:, 20:], **CLOSE)
    assert out.past_key_values.get_seq_length() == 25


def test_a_copied_cache_is_a_branch_of_its_own(model):
    ids = random_ids(1, 20)
    cache = model(ids).past_key_values
    branch = copy.deepcopy(cache)
    token = torch.tensor([[9]])
    first = model(token, past_key_values=cache).logits
    assert branch.get_seq_length() == 20
    torch.testing.assert_close(model(token, past_key_values=branch).logits, first, **CLOSE)


def test_no_cache_comes_back_unless_wanted(model):
    ids = random_ids(1, 5)
    assert model(ids, use_cache=False).past_key_values is None
    assert model(ids, labels=ids).past_key_values is None
    assert model(ids).past_key_values is not None


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("keep", [0, 1, 4, torch.tensor([2, 11, 5])], ids=str)
def test_logits_to_keep(keep, use_cache):
    model, ids = MODELS[MIXED], random_ids(2, 20)
    everything = uncached(model, ids)
    kept = everything[:, keep] if isinstance(keep, torch.Tensor) else everything[:, -keep:]
    logits = model(ids, use_cache=use_cache, logits_to_keep=keep).logits
    torch.testing.assert_close(logits, kept, **CLOSE)


@pytest.mark.parametrize("pattern", ["right", "left", "holes"])
def test_last_logits_of_a_padded_batch(pattern):
    """What `generate` asks for: the last column, for the rows that end in a valid token."""
    model, mask = MODELS[MIXED], pad_pattern(pattern)
    ids = random_ids(len(LENGTHS), WIDTH, seed=5)
    every = model(ids, attention_mask=mask, use_cache=True).logits
    last = model(ids, attention_mask=mask, use_cache=True, logits_to_keep=1).logits
    at_end = mask[:, -1].bool()
    assert at_end.any()
    torch.testing.assert_close(last[at_end], every[:, -1:][at_end], **CLOSE)


# Loss


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
    _, nothing = model.full(ids)
    assert nothing == 0
    model.train()
    _, innovation = model.full(ids)
    assert 0 < innovation <= 2  # |f - f'|^2 <= 2 (|f|^2 + |f'|^2)
    torch.testing.assert_close(model(ids, labels=ids).loss, plain + weight * innovation)


def test_the_innovation_loss_trains_the_predictor_alone():
    model = tiny_model(MIXED).train()
    with torch.enable_grad():
        _, innovation = model.full(random_ids(2, 20))
        innovation.backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {"layers.1.layer.eidetic.predictor"}


# Generation


def test_greedy_generation_equals_full_forwards(kind):
    """30 tokens, over three windows and selection boundaries, from a prompt across one."""
    model, ids = MODELS[kind], random_ids(1, 11)
    expected = greedy_by_hand(model, ids, 30)
    assert torch.equal(model.generate(ids, max_new_tokens=30, **GREEDY), expected)


@pytest.mark.parametrize("kind", [MIXED, "hybrid"])
def test_generation_without_a_cache(kind):
    model, ids = MODELS[kind], random_ids(2, 11)
    out = model.generate(ids, max_new_tokens=12, use_cache=False, **GREEDY)
    assert torch.equal(out, greedy_by_hand(model, ids, 12))


def test_left_padded_generation_equals_solo(kind):
    model, mask = MODELS[kind], pad_pattern("left")
    ids = random_ids(len(LENGTHS), WIDTH, seed=8)
    out = model.generate(ids, attention_mask=mask, max_new_tokens=14, **GREEDY)
    for row in range(len(LENGTHS)):
        alone = ids[row : row + 1, mask[row].bool()]
        solo = model.generate(alone, max_new_tokens=14, **GREEDY)
        assert torch.equal(out[row, WIDTH:], solo[0, alone.shape[1] :])


def test_generation_continues_a_cache(model):
    ids = random_ids(1, 40)
    expected = model.generate(ids, max_new_tokens=10, **GREEDY)
    cache = model(ids[:, :23]).past_key_values
    out = model.generate(ids, past_key_values=cache, max_new_tokens=10, **GREEDY)
    assert torch.equal(out, expected)
    assert cache.get_seq_length() == 49  # the last token was not fed


def test_a_generated_state_does_not_grow():
    model = MODELS[MIXED]
    options = {"return_dict_in_generate": True, **GREEDY}
    short = model.generate(random_ids(1, 5), max_new_tokens=2, **options).past_key_values
    long = model.generate(random_ids(1, 90), max_new_tokens=30, **options).past_key_values
    assert state_bytes(short.state) == state_bytes(long.state)


def test_sampling_is_reproducible():
    model, ids = MODELS[MIXED], random_ids(2, 9)

    def sample(seed: int) -> torch.Tensor:
        set_seed(seed)
        return model.generate(ids, max_new_tokens=20, do_sample=True, eos_token_id=None)

    assert torch.equal(sample(3), sample(3))
    assert not torch.equal(sample(3), sample(4))


def test_several_return_sequences():
    model, ids = MODELS[MIXED], random_ids(2, 9)
    set_seed(0)
    out = model.generate(
        ids, max_new_tokens=12, do_sample=True, num_return_sequences=3, eos_token_id=None
    )
    assert out.shape == (6, 21)
    assert torch.equal(out[:, :9], ids.repeat_interleave(3, dim=0))
    assert len({tuple(row.tolist()) for row in out[:3]}) > 1


@pytest.mark.parametrize("kind", [MIXED, "hybrid", "sliding_attention"])
def test_beam_search_moves_the_state_with_its_beams(kind):
    model, ids = MODELS[kind], random_ids(2, 11)
    options = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 15, **GREEDY}
    out = model.generate(ids, **options)
    assert torch.equal(out, model.generate(ids, use_cache=False, **options))
    assert len({tuple(row.tolist()) for row in out[:3]}) == 3


def test_generation_stops_at_the_end_token():
    model, ids = MODELS[MIXED], random_ids(1, 11)
    third = int(greedy_by_hand(model, ids, 3)[0, -1])
    out = model.generate(ids, max_new_tokens=20, **(GREEDY | {"eos_token_id": third}))
    assert out[0, -1] == third
    assert out.shape[1] <= 14


# What is refused


def test_assisted_generation_is_refused():
    model, ids = MODELS[MIXED], random_ids(1, 11)
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful"):
        model.generate(ids, assistant_model=tiny_model("mamba2"), max_new_tokens=4, **GREEDY)
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful"):
        model.generate(ids, prompt_lookup_num_tokens=3, max_new_tokens=4, **GREEDY)


def test_a_cache_cannot_be_cropped():
    cache = MODELS[MIXED](random_ids(1, 11)).past_key_values
    assert not cache.is_croppable
    with pytest.raises(ValueError, match=r"crop: .*cannot be rewound.*copy_state"):
        cache.crop(3)


@pytest.mark.parametrize("implementation", ["static", "dynamic", "offloaded", "quantized"])
def test_other_caches_are_refused(implementation):
    model, ids = MODELS[MIXED], random_ids(1, 11)
    with pytest.raises(ValueError, match=f"cache_implementation: .*BMojoCache.*{implementation}"):
        model.generate(ids, cache_implementation=implementation, max_new_tokens=2, **GREEDY)


def test_a_foreign_cache_is_refused():
    with pytest.raises(ValueError, match=r"past_key_values: expected a BMojoCache.*DynamicCache"):
        MODELS[MIXED](random_ids(1, 11), past_key_values=DynamicCache())


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")
def test_gradient_checkpointing_is_refused():
    with pytest.raises(ValueError, match=r"BMojoForCausalLM does not support .* checkpointing"):
        MODELS[MIXED].gradient_checkpointing_enable()


@pytest.mark.parametrize(
    ("ids", "kwargs", "message"),
    [
        (torch.zeros(5, dtype=torch.long), {}, r"input_ids: expected \(batch, tokens"),
        (torch.zeros(1, 0, dtype=torch.long), {}, r"input_ids: .*got shape \(1, 0\)"),
        (random_ids(2, 5), {"attention_mask": torch.ones(2, 4)}, r"attention_mask: .*got \(2, 4\)"),
        (random_ids(2, 5), {"attention_mask": torch.ones(1, 5)}, r"attention_mask: .*got \(1, 5\)"),
        (random_ids(2, 5), {"attention_mask": torch.ones(2, 1, 5, 5)}, "attention_mask: "),
        (random_ids(2, 5), {"labels": random_ids(2, 4)}, r"labels: .*\(2, 5\).*\(2, 4\)"),
        (random_ids(2, 5), {"labels": random_ids(2, 5), "logits_to_keep": 1}, "logits_to_keep: "),
        (random_ids(2, 5), {"output_attentions": True}, "output_attentions"),
        (random_ids(2, 5), {"output_hidden_states": True}, "output_hidden_states"),
        (random_ids(2, 5), {"position_ids": torch.tensor([[0, 1, 0, 1, 2]] * 2)}, "position_ids: "),
        (random_ids(2, 5), {"inputs_embeds": torch.ones(2, 5, 32)}, "inputs_embeds"),
        (random_ids(2, 5), {"return_dict": False}, "return_dict"),
        (random_ids(2, 5), {"no_such_argument": 1}, "no_such_argument"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_bad_input_is_refused_by_name(ids, kwargs, message):
    with pytest.raises(ValueError, match=message):
        MODELS[MIXED](ids, **kwargs)


def test_positions_that_say_what_the_mask_says_are_accepted():
    model, mask = MODELS[MIXED], pad_pattern("left")
    ids = random_ids(len(LENGTHS), WIDTH)
    positions = mask.cumsum(1) - 1
    expected = model(ids, attention_mask=mask, use_cache=False).logits
    given = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    assert torch.equal(given, expected)
    cache = model(ids[:, :28], attention_mask=mask[:, :28]).past_key_values
    out = model(ids[:, 28:], past_key_values=cache, position_ids=positions[:, 28:])
    torch.testing.assert_close(out.logits, expected[:, 28:], **CLOSE)
    with pytest.raises(ValueError, match="position_ids: "):
        model(ids[:, :1], past_key_values=cache, position_ids=positions[:, 28:29])


def test_a_cache_of_another_batch_size_is_refused():
    model = MODELS[MIXED]
    cache = model(random_ids(3, 5)).past_key_values
    with pytest.raises(ValueError, match=r"ids: expected \(3, T >= 1\).*\(2, 1\)"):
        model(random_ids(2, 1), past_key_values=cache)


@pytest.mark.parametrize(
    ("ids", "lengths", "message"),
    [
        (random_ids(3, 4), None, r"ids: expected \(2, T >= 1\).*\(3, 4\)"),
        (random_ids(2, 0), None, r"ids: expected \(2, T >= 1\).*\(2, 0\)"),
        (random_ids(2, 4), [4], "lengths: expected 2 values between 0 and 4"),
        (random_ids(2, 4), [4, 5], r"lengths: .*\[4, 5\]"),
        (random_ids(2, 4), [-1, 4], r"lengths: .*\[-1, 4\]"),
        (random_ids(2, 4)[0], None, "ids: expected"),
    ],
)
def test_feed_refuses_shapes_that_do_not_fit(ids, lengths, message):
    model = MODELS[MIXED]
    with pytest.raises(ValueError, match=message):
        model.feed(ids, model.new_state(2), lengths=lengths)


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
