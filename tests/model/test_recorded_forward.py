"""`forward` recorded (exported, traced, compiled whole) says what eager says of other inputs than
those it was recorded with: other tokens, another padding, another number of rows.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from bmojo_neuron import BMojoForCausalLM
from tests.model.conftest import KINDS, random_ids, tiny_model
from tests.model.states import CLOSE

LENGTH = 20
OTHERS = ([17, 6, LENGTH], [9, 20, 3, 14, 1], [12])  # valid tokens of each row

# One block where all are alike: recording takes seconds.
MODELS = {
    kind: tiny_model(kind)
    if len(set(options["block_types"])) > 1
    else tiny_model(kind, block_types=options["block_types"][:1], num_hidden_layers=1)
    for kind, options in KINDS.items()
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec"),  # torch's own
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),  # as is trace
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),  # of shapes: they are fixed
]


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> BMojoForCausalLM:
    return MODELS[request.param]


class Logits(nn.Module):
    def __init__(self, model: BMojoForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.model(ids, attention_mask=mask, use_cache=False).logits


def mask_of(pattern: str, lengths: list[int]) -> Tensor:
    mask = torch.zeros(len(lengths), LENGTH, dtype=torch.long)
    generator = torch.Generator().manual_seed(len(lengths))
    for row, length in enumerate(lengths):
        places = {
            "left": torch.arange(LENGTH - length, LENGTH),
            "right": torch.arange(length),
            "holes": torch.randperm(LENGTH, generator=generator)[:length],
        }
        mask[row, places[pattern]] = 1
    return mask


def recorded_with() -> tuple[Tensor, Tensor]:
    return random_ids(3, LENGTH), mask_of("left", [LENGTH, 11, 4])


def assert_says_what_eager_says(program, model: BMojoForCausalLM, lengths: list[int]) -> None:
    ids = random_ids(len(lengths), LENGTH, seed=7)
    for pattern in ("left", "right", "holes"):
        mask = mask_of(pattern, lengths)
        expected = Logits(model)(ids, mask)
        valid = mask.bool()
        torch.testing.assert_close(program(ids, mask)[valid], expected[valid], **CLOSE)
        alone = model(ids[:1][mask[:1].bool()].unsqueeze(0), use_cache=False).logits
        torch.testing.assert_close(expected[0][valid[0]], alone[0], **CLOSE)


@pytest.mark.parametrize(
    ("kind", "strict"),
    [
        ("bmojo", False),
        ("attention", False),
        ("mamba2", False),
        pytest.param("bmojo", True, marks=pytest.mark.slow),
        pytest.param("mamba2+bmojo", False, marks=pytest.mark.slow),
        pytest.param("bmojo-absolute", False, marks=pytest.mark.slow),
    ],
)
def test_forward_exports_with_a_mask_for_any_number_of_rows(kind, strict):
    rows = Dim("rows", max=64)
    with torch.no_grad():
        program = torch.export.export(
            Logits(MODELS[kind]),
            recorded_with(),
            dynamic_shapes={"ids": {0: rows}, "mask": {0: rows}},
            strict=strict,
        )
        for lengths in OTHERS:
            assert_says_what_eager_says(program.module(), MODELS[kind], lengths)


def test_forward_is_traced_with_a_mask_for_any_number_of_rows(model):
    with torch.no_grad():
        program = torch.jit.trace(Logits(model), recorded_with(), check_trace=False)
        for lengths in OTHERS:
            assert_says_what_eager_says(program, model, lengths)


def whole(model: BMojoForCausalLM):
    torch._dynamo.reset()
    return torch.compile(model, fullgraph=True, dynamic=False, backend="eager")


@pytest.mark.parametrize(
    "kind",
    [
        "bmojo",
        "attention",
        pytest.param("bmojo-absolute", marks=pytest.mark.slow),
        pytest.param("mamba2+bmojo", marks=pytest.mark.slow),
    ],
)
def test_forward_compiles_whole_with_a_mask(kind):
    model, compiled = MODELS[kind], whole(MODELS[kind])
    with torch.no_grad():
        Logits(compiled)(*recorded_with())
        with torch._dynamo.config.patch(error_on_recompile=True):
            assert_says_what_eager_says(Logits(compiled), model, OTHERS[0])
        assert_says_what_eager_says(Logits(compiled), model, OTHERS[2])


def test_training_compiles_whole_loss_and_gradients():
    model = copy.deepcopy(MODELS["bmojo"]).train()
    compiled = whole(model)
    ids, mask = recorded_with()
    compiled(ids, mask, labels=ids)
    ids, mask = random_ids(3, LENGTH, seed=7), mask_of("holes", OTHERS[0])
    losses, gradients = [], []
    for forward in (model, compiled):
        model.zero_grad()
        losses.append(forward(ids, mask, labels=ids).loss)
        losses[-1].backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    torch.testing.assert_close(losses[1], losses[0], **CLOSE)
    torch.testing.assert_close(gradients[1], gradients[0], **CLOSE)
    assert gradients[0]["model.layers.0.layer.eidetic.predictor_bias"].abs().sum() > 0


def test_with_a_cache_the_graph_breaks_where_the_host_plans_and_nothing_else_changes():
    torch._dynamo.reset()
    model = MODELS["bmojo"]
    compiled = torch.compile(model, backend="eager", dynamic=False)
    ids, mask = random_ids(3, LENGTH, seed=7), mask_of("left", OTHERS[0])
    with torch.no_grad():
        expected, got = (f(ids, mask, use_cache=True) for f in (model, compiled))
        valid = mask.bool()
        torch.testing.assert_close(got.logits[valid], expected.logits[valid], **CLOSE)
        expected, got = (
            f(ids[:, :1], past_key_values=out.past_key_values).logits
            for f, out in ((model, expected), (compiled, got))
        )
    torch.testing.assert_close(got, expected, **CLOSE)
