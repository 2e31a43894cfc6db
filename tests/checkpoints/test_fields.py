"""What Hybrid-Qwen3's config.json can say of a BMojoConfig: each field survives or is refused."""

from dataclasses import fields

import pytest
import torch
from transformers import PretrainedConfig

from bmojo_neuron import BMojoConfig, BMojoForCausalLM
from bmojo_neuron.checkpoints.convert import convert
from bmojo_neuron.checkpoints.hybrid_qwen3 import read_config, write_config
from tests.model.batches import uncached
from tests.model.conftest import random_ids, tiny_config, tiny_model

# Another value of each field, where twice a number or the opposite of a switch will not do.
OTHER = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    "dtype": "bfloat16",
    "bos_token_id": 3,
    "eos_token_id": [4, 6],
    "pad_token_id": 5,
    "mamba2_num_c_heads": 2,
    "mamba2_norm_groups": 2,
    "mamba2_dt_min": 0.01,
    "mamba2_dt_max": 0.5,
    "vocab_size": 51,
    "hidden_size": 48,
    "selection_period": 3,
    "eidetic_half_life": 9.0,
    "eidetic_position": "absolute",
}
OF_THE_PATTERN = {"block_types", "num_hidden_layers"}  # tested above
UNREAD = ("eidetic_", "innovation_", "selection_", "mamba_")  # by any layer of this format
OTHER_MIXER = {"mamba2": "gdn", "gdn": "gka", "gka": "mamba2"}
FIELDS = {f.name for f in fields(BMojoConfig)} - {f.name for f in fields(PretrainedConfig)}
FIELDS |= {"dtype"}


def another(config: BMojoConfig, name: str) -> object:
    value = getattr(config, name)
    if name == "mixer":
        return OTHER_MIXER[value]
    if name in OTHER:
        return OTHER[name]
    return not value if isinstance(value, bool) else value * 2


@torch.no_grad()
@pytest.mark.parametrize("mixer", OTHER_MIXER)
def test_each_field_survives_or_is_refused_by_name_or_is_read_by_no_layer(mixer):
    """So nothing that changes what the model computes is lost without a word."""
    base = {"block_types": ["attention", "bmojo_f", "sliding_attention"], "mixer": mixer}
    base |= {"num_hidden_layers": 3, "eidetic_size": 2, "sliding_window": 8}
    unread = (*UNREAD, *(f"{other}_" for other in OTHER_MIXER if other != mixer))
    model, ids = tiny_model("bmojo_f", **base), random_ids(1, 30)
    logits = uncached(model, ids)
    survived: set[str] = set()
    refused: dict[str, str] = {}
    for name in sorted(FIELDS - OF_THE_PATTERN):
        other = another(model.config, name)
        assert other != getattr(model.config, name), name
        changed = tiny_config("bmojo_f", **(base | {name: other}))
        if name.startswith(unread):
            same = BMojoForCausalLM(changed).eval()
            same.load_state_dict(model.state_dict())
            torch.testing.assert_close(uncached(same, ids), logits, msg=name)
            continue
        try:
            back = read_config(write_config(changed))
        except ValueError as error:
            refused[name] = str(error)
        else:
            survived.add(name)
            assert getattr(back, name) == getattr(changed, name), name
    assert {"window", "sliding_window", "attention_bias", "rms_norm_eps", "dtype"} <= survived
    assert all(message.startswith(f"{name}: expected ") for name, message in refused.items())
    assert {name for name in refused if not name.startswith("mamba2_")} == {"qk_norm", "mlp_bias"}


def test_a_mixer_that_the_format_lacks_is_refused_by_name():
    config = tiny_config("bmojo_f", mixer="mamba")
    with pytest.raises(ValueError, match=r"^mixer: expected one of mamba2, gdn, gka.*got 'mamba'$"):
        write_config(config)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mamba2_num_heads", 8),
        ("mamba2_num_x_heads", 4),
        ("mamba2_num_c_heads", 2),
        ("mamba2_head_dim", 16),
        ("mamba2_conv_bias", False),
        ("mamba2_proj_bias", True),
        ("mamba2_dt_max", 0.1),
        ("mamba2_norm_groups", 1),
        ("mamba2_norm_eps", 1e-3),
        ("intermediate_size", 0),
        ("qk_norm", False),
        ("mlp_bias", True),
    ],
)
def test_a_field_that_a_format_fixes_must_have_its_value(name, value, tmp_path):
    tiny_model("mamba2", **{name: value}).save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match=rf"^{name}: expected .*hybrid_qwen3.*, got {value}$"):
        convert(tmp_path / "ours", tmp_path / "new", "hybrid_qwen3")
    assert not (tmp_path / "new").exists()
