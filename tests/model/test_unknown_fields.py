"""What is no field is refused by name; what transformers itself writes or passes is taken."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from bmojo_neuron import BMojoConfig, BMojoForCausalLM
from tests.model.conftest import random_ids, tiny_config, tiny_model

INT8 = {"quant_method": "bitsandbytes", "load_in_8bit": True}


def put(path: Path, **fields: object) -> None:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


UNKNOWN = {
    "windw": (16, "did you mean window?"),
    "eidetic_sise": (16, "did you mean eidetic_size?"),
    "num_layers": (2, "did you mean num_hidden_layers?"),
    "layer_types": (["bmojo"], "did you mean block_types?"),
    "temperature": (0.5, "leave it out"),  # of generation_config.json
    "sliding_window_pattern": (6, "an unknown one"),
    "per_layer_config": ({}, "an unknown one"),  # a Transformer's layers of unequal size
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_field_is_named_with_the_nearest(name: str, tmp_path: Path) -> None:
    value, hint = UNKNOWN[name]
    expected = rf"^{name}: expected a field of BMojoConfig, .*{hint.rstrip('?')}"
    with pytest.raises(ValueError, match=expected):
        BMojoConfig(**{name: value})
    tiny_model("bmojo").save_pretrained(tmp_path)
    put(tmp_path, **{name: value})
    for load in (BMojoConfig, AutoConfig, BMojoForCausalLM, AutoModelForCausalLM):
        with pytest.raises(ValueError, match=expected):
            load.from_pretrained(tmp_path)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    tiny_config("bmojo").save_pretrained(tmp_path)
    put(tmp_path, model_type="llama")
    with pytest.raises(ValueError, match="model_type: expected 'bmojo', got 'llama'"):
        BMojoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("passed", "attribute", "value"),
    [
        ({"attn_implementation": "eager"}, "_attn_implementation", "eager"),
        ({"dtype": torch.bfloat16}, "dtype", torch.bfloat16),
        ({"torch_dtype": torch.bfloat16}, "dtype", torch.bfloat16),
        ({"num_labels": 3}, "num_labels", 3),
        ({"id2label": {0: "no"}, "label2id": {"no": 0}}, "id2label", {0: "no"}),
        ({"output_hidden_states": True}, "output_hidden_states", True),
        ({"output_attentions": False}, "output_attentions", False),
        ({"use_cache": False}, "use_cache", False),
        ({"pad_token_id": 3}, "pad_token_id", 3),
        ({"experts_implementation": "eager"}, "vocab_size", 50),
        ({"trust_remote_code": False, "revision": "main"}, "vocab_size", 50),
    ],
    ids=lambda value: "+".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_what_transformers_passes(
    passed: dict[str, Any], attribute: str, value: object, tmp_path: Path
) -> None:
    tiny_model("bmojo").save_pretrained(tmp_path / "saved")
    assert getattr(AutoConfig.from_pretrained(tmp_path / "saved", **passed), attribute) == value
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", **passed)
    assert getattr(model.config, attribute) == value
    model.save_pretrained(tmp_path / "again")
    again = AutoConfig.from_pretrained(tmp_path / "again")
    assert BMojoConfig(**model.config.to_dict()).to_dict() == model.config.to_dict()
    if attribute not in ("_attn_implementation", "output_attentions"):  # never written
        assert getattr(again, attribute) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("quantization_config", INT8),
        ("auto_map", {"AutoConfig": "configuration.Custom"}),
        ("custom_pipelines", {"pair": {"impl": "pair.Pair", "pt": ["AutoModel"]}}),
        ("fusion_config", {"patch_embeddings": True}),
        ("tokenizer_class", "PreTrainedTokenizerFast"),
        ("problem_type", "regression"),
        ("architectures", ["BMojoForCausalLM"]),
        ("id2label", {0: "no", 1: "yes", 2: "both"}),
        ("chunk_size_feed_forward", 0),
    ],
)
def test_what_transformers_writes(name: str, value: object, tmp_path: Path) -> None:
    config = tiny_config("bmojo")
    setattr(config, name, value)
    config.save_pretrained(tmp_path)
    for load in (BMojoConfig, AutoConfig):
        assert getattr(load.from_pretrained(tmp_path), name) == value
    assert BMojoConfig(**config.to_dict()).to_dict() == config.to_dict()


def test_a_classifier_keeps_its_labels(tmp_path: Path) -> None:
    tiny_model("bmojo").save_pretrained(tmp_path / "language")
    load = AutoModelForSequenceClassification.from_pretrained
    load(tmp_path / "language", num_labels=5).save_pretrained(tmp_path / "classes")
    again = load(tmp_path / "classes")
    assert again.config.num_labels == len(again.score.weight) == 5


def test_a_text_ends_at_any_end_token_of_the_config(tmp_path: Path) -> None:
    ids, how = random_ids(1, 9), {"max_new_tokens": 16, "do_sample": False}
    said = tiny_model("bmojo", eos_token_id=None).generate(ids, **how)[0, 9:].tolist()
    unsaid = sorted(set(range(50)) - set(said))[:2]
    assert len(set(said)) > 3
    for i, end in enumerate(dict.fromkeys(said)):
        ends = [unsaid[0], end, unsaid[1]]
        model = tiny_model("bmojo", eos_token_id=ends)
        model.save_pretrained(tmp_path / str(i))
        (tmp_path / str(i) / "generation_config.json").unlink()  # so the config alone says it
        for each in (model, BMojoForCausalLM.from_pretrained(tmp_path / str(i))):
            assert each.config.eos_token_id == each.generation_config.eos_token_id == ends
            ended = each.generate(ids, **how)[0, 9:].tolist()
            assert ended == said[: said.index(end) + 1]
