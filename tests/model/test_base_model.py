"""The base model, its heads, and what transformers' tools ask of either."""

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, pipeline

from bmojo_neuron import BMojoForCausalLM, BMojoForSequenceClassification, BMojoModel
from tests.model.batches import LENGTHS, MIXED, MODELS, WIDTH, pad_pattern, uncached
from tests.model.conftest import random_ids, tiny_config, tiny_model
from tests.model.states import CLOSE
from tests.model.test_transformers import byte_tokenizer


@torch.no_grad()
def test_the_base_model_of_a_checkpoint_gives_the_hidden_states_under_the_head(kind, tmp_path):
    model, ids = MODELS[kind], random_ids(2, 20)
    model.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path)
    assert type(base) is BMojoModel
    h = base(ids, use_cache=False).last_hidden_state
    assert torch.equal(model.lm_head(h), uncached(model, ids))
    base.save_pretrained(tmp_path / "base")
    headed = BMojoForCausalLM.from_pretrained(tmp_path / "base", tie_word_embeddings=True)
    assert torch.equal(uncached(headed, ids), uncached(model, ids))


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("pattern", [None, "left", "holes"])
def test_hidden_states_are_those_between_the_blocks(kind, use_cache, pattern):
    model = MODELS[kind]
    ids = random_ids(len(LENGTHS), WIDTH)
    mask = None if pattern is None else pad_pattern(pattern)
    out = model(ids, attention_mask=mask, use_cache=use_cache, output_hidden_states=True)
    seen = out.hidden_states
    assert len(seen) == model.config.num_hidden_layers + 1
    valid = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    assert torch.equal(seen[0][valid], model.model.embed_tokens(ids)[valid])
    torch.testing.assert_close(model.lm_head(seen[-1]), out.logits)
    inputs = []  # of each block, and of the last norm
    modules = [*model.model.layers, model.model.norm]
    hooks = [m.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for m in modules]
    row = ids[1:2, valid[1]]
    model(row, use_cache=False)
    for hook in hooks:
        hook.remove()
    for got, expected in zip(seen[:-1], inputs[:-1], strict=True):
        torch.testing.assert_close(got[1, valid[1]], expected[0], **CLOSE)


@torch.no_grad()
def test_hidden_states_by_configuration():
    model, ids = tiny_model(MIXED), random_ids(1, 9)
    model.config.output_hidden_states = True
    assert len(model(ids).hidden_states) == 3
    assert model(ids, output_hidden_states=False).hidden_states is None


def test_gradients_reach_every_hidden_state():
    model = tiny_model(MIXED).train()
    out = model(random_ids(2, 20), output_hidden_states=True)
    for h in out.hidden_states:
        h.retain_grad()
    out.logits.square().sum().backward()
    assert all(h.grad is not None and h.grad.any() for h in out.hidden_states)


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("pattern", ["right", "left", "holes"])
def test_embeddings_stand_for_their_tokens(kind, use_cache, pattern):
    model, mask, ids = MODELS[kind], pad_pattern(pattern), random_ids(len(LENGTHS), WIDTH)
    embeddings = model.get_input_embeddings()(ids)
    options = {"attention_mask": mask, "use_cache": use_cache}
    got = model(inputs_embeds=embeddings, **options).logits
    assert torch.equal(got[mask.bool()], model(ids, **options).logits[mask.bool()])


@torch.no_grad()
def test_return_dict_false_gives_tuples():
    model, ids = MODELS[MIXED], random_ids(2, 9)
    (logits,) = model(ids, use_cache=False, return_dict=False)
    assert torch.equal(logits, uncached(model, ids))
    h, cache = model.model(ids, use_cache=True, return_dict=False)
    assert torch.equal(model.lm_head(h), model(ids).logits)
    assert cache.get_seq_length() == 9


def test_attention_maps_are_refused_wherever_they_are_asked_for():
    model, ids = tiny_model(MIXED), random_ids(1, 9)
    expected = r"output_attentions: expected False .* got True"
    for ask in (model, model.model):
        with pytest.raises(ValueError, match=expected):
            ask(ids, output_attentions=True)
    with pytest.raises(ValueError, match=expected):
        model.generate(ids, output_attentions=True, return_dict_in_generate=True, max_new_tokens=2)
    model.config.output_attentions = True
    with pytest.raises(ValueError, match=expected):
        model(ids)


# Gradient checkpointing


def gradients(model: BMojoForCausalLM, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(ids, labels=ids).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(kind, reentrant):
    """That of the innovation loss, which trains the predictor alone, included."""
    ids = random_ids(2, 30)
    model = tiny_model(kind, innovation_loss_weight=1.0).train()
    expected = gradients(model, ids)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    got = gradients(model, ids)
    for name, gradient in expected.items():
        if reentrant:  # adds up in another order
            torch.testing.assert_close(got[name], gradient, atol=1e-5, rtol=1e-3, msg=name)
        else:
            assert torch.equal(got[name], gradient), name
    assert any(g.any() for name, g in got.items() if "predictor" in name) == (
        "bmojo" in model.config.block_types
    )


def saved_bytes(model: BMojoForCausalLM, ids: torch.Tensor) -> int:
    """What the forward keeps for the backward."""
    kept: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        model(ids, labels=ids)
    return sum(kept.values())


def test_gradient_checkpointing_saves_memory():
    """One hidden state for each block, in place of all that happens in it."""
    ids = random_ids(2, 128)
    changes = {"block_types": ["bmojo"] * 6, "num_hidden_layers": 6}
    model = tiny_model("bmojo", **changes).train()
    plain = saved_bytes(model, ids)
    model.activation_checkpointing_enable()
    assert saved_bytes(model, ids) < 0.1 * plain


def test_training_runs_each_block_twice_with_checkpointing():
    model, ids = tiny_model(MIXED).train(), random_ids(2, 12)
    calls = []
    model.model.layers[1].layer.register_forward_hook(lambda *_: calls.append(1))
    model.activation_checkpointing_enable()
    model(ids, labels=ids).loss.backward()
    assert len(calls) == 2


# Heads and pipelines


def test_a_classifier_learns_and_reloads(tmp_path):
    """By the last valid token, wherever the padding is."""
    torch.manual_seed(0)
    model = BMojoForSequenceClassification(tiny_config(MIXED, num_labels=2, initializer_range=0.1))
    model.train()
    ids, mask = random_ids(len(LENGTHS), WIDTH), pad_pattern("right")
    ids = ids.where(mask.bool(), 2)
    labels = torch.tensor([0, 1, 0])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(20):
        loss = model(ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.1
    model.eval().save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        logits = loaded(ids, attention_mask=mask).logits
        assert torch.equal(logits.argmax(-1), labels)
        alone = loaded(ids[1:2, : LENGTHS[1]]).logits
        torch.testing.assert_close(alone, logits[1:2], **CLOSE)


@torch.no_grad()
def test_feature_extraction_pipeline(tmp_path):
    tokenizer = byte_tokenizer()
    model = tiny_model(MIXED, vocab_size=len(tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    extract = pipeline("feature-extraction", model=str(tmp_path))
    ids = tokenizer("In the", return_tensors="pt").input_ids
    expected = model.model(ids, use_cache=False).last_hidden_state
    got = torch.tensor(extract("In the"))
    torch.testing.assert_close(got, expected, **CLOSE)
