"""Fine-tuning a primed hybrid: it learns, stops and goes on bit for bit, and refuses bad input."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from bmojo_neuron import BMojoConfig, BMojoForCausalLM
from bmojo_neuron.checkpoints.prime import prime
from bmojo_neuron.configuration import MIXERS
from bmojo_neuron.training import finetune
from bmojo_neuron.training.corpus import load_corpus
from bmojo_neuron.training.distillation import Distillation, replaced_layers
from bmojo_neuron.training.finetune import Finetuning, Options, split
from bmojo_neuron.training.optimizer import optimizer_tensors

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
SHORT = Options(steps=4, batch=2, length=32, lr=1e-3)


def write_base(path: Path, **changes: Any) -> Path:
    """A random Transformer over bytes, with tokenizer and chat template."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen3Config(
        **({"vocab_size": 257, "initializer_range": 0.1, "bos_token_id": 256, "eos_token_id": 256}
        | sizes | heads | changes)
    )  # fmt: skip
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def hybrid(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layers attention, gdn, bmojo; kept in bfloat16."""
    path = tmp_path_factory.mktemp("hybrid")
    prime(base, path, "*-GDN-BM", window=8, eidetic_size=6)
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(load_corpus()["bible"].train[0][:20_000], encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def log_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune, "LOG_EVERY", 1)


def weights(path: Path) -> dict[str, Tensor]:
    return dict(BMojoForCausalLM.from_pretrained(path, dtype="auto").named_parameters())


def log_of(out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_a_fine_tune_lowers_the_perplexity_of_text_held_out(
    hybrid: Path, text: Path, tmp_path: Path
) -> None:
    options = Options(steps=60, batch=4, length=64, lr=1e-2)
    run = Finetuning(hybrid, text, tmp_path, options)
    run.run()
    report = run.finish()
    assert report["perplexity_before"] > 250  # knows nothing of 257 tokens
    assert report["perplexity"] < 40
    assert report == json.loads((tmp_path / "model" / "report.json").read_text())
    before, after = weights(hybrid), weights(tmp_path / "model")
    still = {name for name in before if torch.equal(before[name], after[name])}
    # bfloat16 is too coarse for what the least of vectors learn
    assert not [name for name in still if before[name].dim() == 2], still


@pytest.mark.parametrize("distilled", [False, True])
def test_the_model_is_a_checkpoint_as_the_first_was(
    base: Path, hybrid: Path, text: Path, tmp_path: Path, distilled: bool
) -> None:
    run = Finetuning(hybrid, text, tmp_path, SHORT, base if distilled else None)
    run.run()
    run.finish()
    model = BMojoForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    old = BMojoForCausalLM.from_pretrained(hybrid, dtype="auto")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    kept = ("block_types", "window", "eidetic_size", "dtype", "eos_token_id")
    assert all(getattr(model.config, name) == getattr(old.config, name) for name in kept)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.chat_template == TEMPLATE
    assert not list(tmp_path.glob("*.part"))


@torch.no_grad()
def relative_errors(hybrid: Path, base: Path, tokens: Tensor) -> dict[int, float]:
    student = BMojoForCausalLM.from_pretrained(hybrid, dtype=torch.float32).eval()
    errors, _ = Distillation(student, base).errors(tokens)
    return {i: error.item() for i, error in errors.items()}


def test_distillation_brings_each_replaced_layer_nearer_to_the_base(
    base: Path, hybrid: Path, text: Path, tmp_path: Path
) -> None:
    options = Options(steps=60, batch=4, length=64, lr=1e-2)
    run = Finetuning(hybrid, text, tmp_path, options, base)
    run.run()
    run.finish()
    before = relative_errors(hybrid, base, run.heldout.view(-1, 64))
    after = relative_errors(tmp_path / "model", base, run.heldout.view(-1, 64))
    assert before.keys() == after.keys() == {1, 2}
    assert all(after[i] < 0.6 * before[i] for i in before), (before, after)
    rows = log_of(tmp_path)
    assert rows[0]["layers"].keys() == {"1", "2"}
    assert rows[-1]["layers"]["1"] < 0.6 * rows[0]["layers"]["1"]


def test_distillation_leaves_all_else_bitwise_as_it_was(
    base: Path, hybrid: Path, text: Path, tmp_path: Path
) -> None:
    run = Finetuning(hybrid, text, tmp_path, Options(steps=4, batch=2, length=32, lr=1e-2), base)
    run.run()
    run.finish()
    before, after = weights(hybrid), weights(tmp_path / "model")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    replaced = ("model.layers.1.layer.", "model.layers.2.layer.")
    allowed = {name for name in before if name.startswith(replaced)}
    assert changed <= allowed
    assert {name for name in allowed if before[name].dim() == 2} <= changed
    assert "model.layers.2.layer.eidetic.predictor_bias" in changed  # by the innovation loss


@torch.no_grad()
def test_a_layer_is_fed_and_judged_by_what_the_base_saw(base: Path, hybrid: Path) -> None:
    """By a walk of its own: the error of layer 2 knows nothing of layer 1's."""
    tokens = torch.randint(256, (2, 40), generator=torch.Generator().manual_seed(1))
    errors = relative_errors(hybrid, base, tokens)
    teacher = BMojoForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    student = BMojoForCausalLM.from_pretrained(hybrid, dtype=torch.float32).eval()
    trail, _ = teacher.model.full(tokens, all_layers=True)
    for i in (1, 2):
        ours = BMojoForCausalLM(
            BMojoConfig.from_dict(
                student.config.to_dict()
                | {"num_hidden_layers": 1, "block_types": [student.config.block_types[i]]}
            )
        ).eval()
        got, wanted = [], []
        for model, out in ((ours, got), (teacher, wanted)):
            block = model.model.layers[0 if model is ours else i]
            block.layer.register_forward_hook(lambda _, __, y, out=out: out.append(y[0]))
        ours.model.layers[0].layer.load_state_dict(student.model.layers[i].layer.state_dict())
        ours.model.layers[0].input_norm.load_state_dict(
            teacher.model.layers[i].input_norm.state_dict()
        )
        ours.model.full(trail[i])  # embeddings in the place of tokens
        teacher.model.full(tokens)
        error = (got[0] - wanted[0]).square().mean() / wanted[0].square().mean()
        assert errors[i] == pytest.approx(error.item(), rel=1e-4)


def test_within_the_window_a_primed_bmojo_layer_is_the_base_itself(
    base: Path, hybrid: Path
) -> None:
    tokens = torch.randint(256, (2, 8), generator=torch.Generator().manual_seed(1))
    errors = relative_errors(hybrid, base, tokens)
    assert errors[2] < 1e-10
    assert errors[1] > 0.1


@pytest.mark.parametrize("mixer", MIXERS)
def test_the_innovation_loss_is_part_of_both_losses(
    base: Path, text: Path, tmp_path: Path, mixer: str
) -> None:
    prime(base, tmp_path / "hybrid", "*-*-BM", mixer=mixer, window=8, eidetic_size=6)
    for distill in (None, base):
        run = Finetuning(tmp_path / "hybrid", text, tmp_path / f"{distill is None}", SHORT, distill)
        run.model.train()
        run.model.model.layers[2].layer.eidetic.score_bias.data.zero_()  # no other path to it
        loss, _ = run._loss(run.batch())
        run.model.config.innovation_loss_weight += 1.0
        more, _ = run._loss(run.batch())
        _, innovation = run.model.model.full(run.batch())
        if distill is None:
            torch.testing.assert_close(more - loss, innovation.mean())
        assert more > loss
        more.backward()
        assert run.model.model.layers[2].layer.eidetic.predictor_bias.grad.norm() > 0


def tensors(run: Finetuning) -> dict[str, Tensor]:
    return dict(run.model.state_dict()) | optimizer_tensors(run.optimizer)


@pytest.mark.parametrize("distilled", [False, True])
def test_a_run_stopped_after_every_step_ends_as_an_unbroken_one(
    base: Path, hybrid: Path, text: Path, tmp_path: Path, distilled: bool
) -> None:
    distill = base if distilled else None
    whole = Finetuning(hybrid, text, tmp_path / "whole", SHORT, distill)
    whole.run()
    for step in range(SHORT.steps):
        run = Finetuning(hybrid, text, tmp_path / "broken", SHORT, distill)
        assert run.step == step
        run.run(max_minutes=0)
    a, b = tensors(whole), tensors(run)
    assert a.keys() == b.keys()
    assert not [name for name in a if not torch.equal(a[name], b[name])]
    assert {x.dtype for x in a.values()} == {torch.float32}
    assert log_of(whole.out) == log_of(run.out)
    assert [row["step"] for row in log_of(whole.out)] == [1, 2, 3, 4]
    assert whole.before == run.before


def test_a_kill_while_the_model_is_written_leaves_no_half_of_it(
    hybrid: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    run = Finetuning(hybrid, text, tmp_path, SHORT)
    run.run()
    with monkeypatch.context() as patch:
        patch.setattr(finetune, "copy_others", kill)
        with pytest.raises(KeyboardInterrupt):
            run.finish()
    assert not (tmp_path / "model").exists()
    again = Finetuning(hybrid, text, tmp_path, SHORT)
    assert again.step == SHORT.steps
    again.run()
    again.finish()
    assert weights(tmp_path / "model").keys() == weights(hybrid).keys()


def test_a_run_goes_on_only_with_its_own_options(hybrid: Path, text: Path, tmp_path: Path) -> None:
    Finetuning(hybrid, text, tmp_path, SHORT).run(max_minutes=0)
    other = Options(steps=4, batch=2, length=32, lr=1e-2)
    with pytest.raises(ValueError, match=r"out: .*\(lr 0.001, not 0.01\).*--no-resume"):
        Finetuning(hybrid, text, tmp_path, other)
    changed = tmp_path / "changed.txt"
    changed.write_bytes(text.read_bytes() + b"More.")
    with pytest.raises(ValueError, match=r"out: .*text "):
        Finetuning(hybrid, changed, tmp_path, SHORT)
    assert Finetuning(hybrid, text, tmp_path, SHORT).step == 1  # it is whole still
    assert Finetuning(hybrid, text, tmp_path, other, resume=False).step == 0


def test_a_run_from_a_recipe_is_not_gone_on_with(hybrid: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text('{"step": 3, "checkpoint": "checkpoint-0"}')
    with pytest.raises(ValueError, match=r"out: .* has no seconds, settings, before; choose"):
        Finetuning(hybrid, text, tmp_path, SHORT)


def test_batches_follow_from_seed_and_step_and_leave_out_the_end(
    hybrid: Path, text: Path, tmp_path: Path
) -> None:
    run = Finetuning(hybrid, text, tmp_path, SHORT)
    first = run.batch()
    assert torch.equal(first, run.batch())
    run.step = 1
    assert not torch.equal(first, run.batch())
    whole = text.read_text(encoding="utf-8")
    assert run.tokenizer.decode(torch.cat([run.tokens, run.heldout])) == whole
    assert len(run.heldout) == 32 * (len(whole) // 32 // 20)


@pytest.mark.parametrize(
    ("tokens", "length", "held"), [(20, 10, 10), (399, 10, 10), (407, 10, 20), (10**6, 10, 1280)]
)
def test_whole_sequences_are_held_out(tokens: int, length: int, held: int) -> None:
    train, heldout = split(torch.arange(tokens), length)
    assert len(heldout) == held
    assert torch.equal(torch.cat([train, heldout]), torch.arange(tokens))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "text: expected at least two sequences of 32 tokens.* got 0 tokens"),
        (b"short", "text: expected at least two sequences of 32 tokens.* got 5 tokens"),
        (b"x" * 63, "text: expected at least two sequences of 32 tokens.* got 63 tokens"),
        (b"x" * 99 + b"\xff\xfe", "text: expected UTF-8 in .*0xff at 99"),
    ],
)
def test_a_text_that_cannot_be_trained_on_is_refused(
    hybrid: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Finetuning(hybrid, path, tmp_path / "out", SHORT)
    assert not (tmp_path / "out").exists()


def test_a_missing_text_is_named(hybrid: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"text: expected a file, .*absent\.txt"):
        Finetuning(hybrid, tmp_path / "absent.txt", tmp_path / "out", SHORT)


def test_special_tokens_are_text_unless_asked_for(hybrid: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("<end>" * 40)
    plain = Finetuning(hybrid, path, tmp_path / "a", Options(length=32))
    assert len(plain.tokens) + len(plain.heldout) == 200
    parsed = Finetuning(hybrid, path, tmp_path / "b", Options(length=16, parse_special_tokens=True))
    assert set(parsed.tokens.tolist()) == {256}


def test_a_base_of_another_shape_is_refused_by_what_differs(hybrid: Path, tmp_path: Path) -> None:
    other = write_base(tmp_path / "other", hidden_size=64, num_hidden_layers=2, vocab_size=300)
    text = tmp_path / "text.txt"
    text.write_text("x" * 100)
    with pytest.raises(
        ValueError,
        match=r"distill: .* hidden_size 64 for 32, num_hidden_layers 2 for 3, vocab_size 300 for",
    ):
        Finetuning(hybrid, text, tmp_path / "out", SHORT, other)


def test_layers_are_replaced_where_they_are_of_another_kind() -> None:
    def config(kinds: list[str], window: int = 16) -> BMojoConfig:
        return BMojoConfig(num_hidden_layers=3, block_types=kinds, sliding_window=window)

    base = config(["attention", "sliding_attention", "attention"])
    hybrid = config(["bmojo", "sliding_attention", "gdn"])
    assert replaced_layers(hybrid, base) == [0, 2]
    assert replaced_layers(config(hybrid.block_types, 8), base) == [0, 1, 2]
    with pytest.raises(ValueError, match="distill: expected a base of which layers were replaced"):
        replaced_layers(base, base)


def test_sequences_no_longer_than_the_window_are_warned_of(
    hybrid: Path, text: Path, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match="length: 8 tokens are no more than the window of 8"):
        Finetuning(hybrid, text, tmp_path, Options(length=8))


def test_a_loss_that_is_no_number_stops_the_run(hybrid: Path, text: Path, tmp_path: Path) -> None:
    run = Finetuning(hybrid, text, tmp_path, Options(steps=50, batch=1, length=32))
    run.model.lm_head.weight.data.fill_(float("inf"))
    with pytest.raises(ValueError, match=r"lr: expected one with which the loss stays finite"):
        run.run()


@pytest.mark.parametrize(
    "bad",
    [{"steps": 0}, {"batch": 0}, {"length": 1}, {"seed": -1}, {"lr": 0.0}, {"lr": float("nan")}],
)
def test_options_out_of_range_are_named(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(bad))}: expected"):
        Options(**bad)
