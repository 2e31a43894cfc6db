from functools import cache

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from bmojo_neuron import BMojoForCausalLM
from tests.model.batches import MIXED
from tests.model.conftest import tiny_model
from tests.model.test_transformers import byte_tokenizer

PAIRS = [("In the beginning", " God created"), ("And the earth", " was"), ("", "a"), ("x", "y z")]


@cache
def model(kind: str) -> BMojoForCausalLM:
    return tiny_model(kind, vocab_size=len(byte_tokenizer()))


def harness(kind: str, **options) -> HFLM:
    return HFLM(pretrained=model(kind), tokenizer=byte_tokenizer(), device="cpu", **options)


def requests(name: str, arguments: list) -> list[Instance]:
    return [Instance(name, {}, args, i) for i, args in enumerate(arguments)]


@torch.no_grad()
def by_hand(
    kind: str, context: str, continuation: str, dtype: torch.dtype | None
) -> tuple[float, bool]:
    """Log probability of a text after another (or <bos>), and whether each token is likeliest."""
    tokenizer = byte_tokenizer()
    before = tokenizer(context).input_ids or [tokenizer.bos_token_id]
    after = torch.tensor(tokenizer(continuation).input_ids)
    ids = torch.cat([torch.tensor(before), after])[None]
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        logits = model(kind)(ids).logits[0, -len(after) - 1 : -1].float()
    chosen = logits.log_softmax(-1).gather(1, after[:, None])
    return chosen.sum().item(), bool((logits.argmax(-1) == after).all())


@pytest.mark.parametrize("precision", [None, "bfloat16"])
def test_log_likelihoods_are_those_of_the_logits(kind: str, precision: str | None) -> None:
    """lm_eval: loglikelihood in float32 and mixed precision: as by hand from the logits"""
    lm = harness(kind, batch_size=2, mixed_precision_dtype=precision)
    got = lm.loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True)
    dtype = None if precision is None else getattr(torch, precision)
    for (value, greedy), pair in zip(got, PAIRS, strict=True):
        expected, likeliest = by_hand(kind, *pair, dtype)
        assert value == pytest.approx(expected, rel=1e-4 if dtype is None else 1e-2)
        assert greedy == likeliest


def test_generates_as_generate_does() -> None:
    """lm_eval: generate_until: the text that generate gives"""
    lm = harness(MIXED, batch_size=2)
    options = {"until": ["\x00"], "max_gen_toks": 12, "do_sample": False}
    contexts = ["In the beginning", "And"]
    got = lm.generate_until(
        requests("generate_until", [(text, options) for text in contexts]), disable_tqdm=True
    )
    tokenizer = byte_tokenizer()
    for text, answer in zip(contexts, got, strict=True):
        ids = tokenizer(text, return_tensors="pt").input_ids
        new = model(MIXED).generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
        assert answer == tokenizer.decode(new, skip_special_tokens=True)
