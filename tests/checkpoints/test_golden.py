"""Checkpoints that the reference training code of Hybrid-Qwen3 wrote and ran: the same numbers.

The directory of golden data lies beside the repository; without it these tests are skipped.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from bmojo_neuron import BMojoForCausalLM
from bmojo_neuron.state import State

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
NAMES = (
    *("dev_m2", "dev_gdn", "dev_gka", "dev_swa", "dev_mix"),
    *("dev_bmf_mamba2", "dev_bmf_gdn", "dev_bmf_gka"),
)
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden data in {GOLDEN}")
pytestmark = needs_golden


class Golden:
    def __init__(self, name: str) -> None:
        self.path = GOLDEN / name
        self.data = load_file(self.path / "golden.safetensors")
        self.model = BMojoForCausalLM.from_pretrained(self.path)
        self.close = 2e-3 if "gka" in name else 1e-4  # upstream's kernel rounds

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.data[name]


@pytest.fixture(scope="module", params=NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def assert_near(got: torch.Tensor, golden: Golden, name: str) -> None:
    assert (got - golden[name]).abs().max() <= golden.close


@pytest.mark.parametrize("form", ["full", "cached"])
def test_logits(golden, form):
    got = golden.model(golden["input_ids"], use_cache=form == "cached").logits
    assert_near(got, golden, "logits")


def test_by_the_auto_class(golden):
    model = AutoModelForCausalLM.from_pretrained(golden.path)
    assert type(model) is BMojoForCausalLM
    assert_near(model(golden["input_ids"]).logits, golden, "logits")


@pytest.mark.parametrize("pieces", [[1], [3], [7, 1, 1, 20], [13]], ids=str)
def test_any_split_of_the_input(golden, pieces):
    """Token by token throughout, and in pieces that cross windows anywhere."""
    ids, done, logits = golden["input_ids"], 0, []
    state = golden.model.new_state(len(ids))
    while done < ids.shape[1]:
        for size in pieces:
            if done < ids.shape[1]:
                out, state = golden.model.feed(ids[:, done : done + size], state, all_tokens=True)
                logits.append(out)
                done += size
    assert_near(torch.cat(logits, dim=1), golden, "logits")


def test_beside_rows_of_other_lengths(golden):
    ids = golden["input_ids"]
    wide = torch.cat([ids, ids.flip(1)])
    lengths = [ids.shape[1], ids.shape[1], 5, 0]
    out, _ = golden.model.feed(wide, golden.model.new_state(4), lengths=lengths, all_tokens=True)
    assert_near(out[:2], golden, "logits")


def test_every_layer(golden):
    """What each block, each sequence layer and each mixer inside one says, of the first row."""
    outputs = {}

    def keep(name):
        return lambda _, __, out: outputs.__setitem__(name, out[0])

    hooks = []
    for i, block in enumerate(golden.model.model.layers):
        hooks.append(block.register_forward_hook(keep(f"layer_out.{i}")))
        hooks.append(block.layer.register_forward_hook(keep(f"mixer_out.{i}")))
        if hasattr(block.layer, "mixer"):
            hooks.append(block.layer.mixer.register_forward_hook(keep(f"fading_tokens.{i}")))
    golden.model(golden["input_ids"][:1], use_cache=False)
    for hook in hooks:
        hook.remove()
    expected = {n for n in golden.data if n.startswith(("layer_out", "mixer_out", "fading"))}
    assert expected == outputs.keys() & expected
    assert len(expected) >= 2 * len(golden.model.model.layers)
    for name in expected:
        assert_near(outputs[name][0], golden, name)


def test_greedy_tokens(golden):
    prompt, expected = golden["prompt_ids"], golden["gen_ids"]
    out = golden.model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=expected.shape[1],
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert torch.equal(out.sequences[:, prompt.shape[1] :], expected)
    assert_near(torch.stack(out.logits, dim=1), golden, "gen_logits")


RECURRENT = {"ssm_state": "ssm", "recurrent_state": "delta", "h_kk": "kk", "h_kv": "kv"}


def held(state: State, layer: str, kind: str, part: str, count: int) -> torch.Tensor:
    """Our part of a state in the layout of theirs, of as many of the last tokens as we keep."""
    at = f"layers.{layer}."
    if part in RECURRENT:
        return state[at + RECURRENT[part]]
    if part.startswith("conv"):
        name = "conv" if part == "conv_state" else part
        return state[at + name].transpose(1, 2)
    name = ("fading_" if kind == "fading-memory" else "context_") + part[0]
    ring = state[at + name]  # (1, Hk, R, D)
    last = torch.arange(max(0, count - ring.shape[2]), count)
    return ring[:, :, last % ring.shape[2]]


def test_states_after_the_prompt(golden):
    prompt = golden["prompt_ids"]
    _, state = golden.model.feed(prompt, golden.model.new_state(1))
    names = [name for name in golden.data if name.startswith("cache.")]
    assert {name.split(".")[1] for name in names} == {
        str(i) for i in range(golden.model.config.num_hidden_layers)
    }
    for name in names:
        _, layer, *kind, part = name.split(".")
        ours, theirs = held(state, layer, kind[-1], part, prompt.shape[1]), golden[name]
        if kind[0] == "bmojo":
            theirs = theirs.permute(1, 2, 0, 3)
        if theirs.shape[2] > ours.shape[2] and part in ("keys", "values"):
            theirs = theirs[:, :, -ours.shape[2] :]
        if part.startswith("conv"):
            theirs = theirs[:, :, -ours.shape[2] :]
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= 1e-4, name
