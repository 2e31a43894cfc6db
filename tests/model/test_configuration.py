"""Configuration: wrong fields are refused by name, presets choose layers, defaults follow."""

import math

import pytest

from bmojo_neuron import BMojoConfig, BMojoForCausalLM
from bmojo_neuron.configuration import MAY_BE_ZERO
from tests.model.conftest import tiny_config

INTEGERS = [name for name, kind in BMojoConfig.__annotations__.items() if kind == "int"]
NUMBERS = [name for name, kind in BMojoConfig.__annotations__.items() if kind == "float"]
FLAGS = [name for name, kind in BMojoConfig.__annotations__.items() if kind == "bool"]
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
LONG = LINEAR | {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}


def refused(name: str, value: object, expected: str = "") -> None:
    with pytest.raises(ValueError, match=rf"^{name}: expected .*{expected}.*, got ") as error:
        tiny_config("bmojo", **{name: value})
    assert str(error.value).endswith(f"got {value!r}")


def test_every_kind_of_field_is_checked():
    assert len(INTEGERS) > 15
    assert len(NUMBERS) == 8
    assert len(FLAGS) == 24


@pytest.mark.parametrize("name", INTEGERS)
def test_counts(name):
    least = 0 if name in MAY_BE_ZERO else 1
    for value in (least - 1, -8, 2.0, "2", True, None):
        refused(name, value, f"an integer of at least {least}")


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name):
    for value in (-0.1, "1e-3", None, math.inf, True):
        refused(name, value, "a number of at least 0")


@pytest.mark.parametrize("name", FLAGS)
def test_flags(name):
    for value in (1, "false", None):
        refused(name, value, "true or false")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("num_key_value_heads", 3, r"a divisor of num_attention_heads \(4\)"),
        ("mamba2_num_kv_heads", 3, r"a divisor of mamba2_num_heads \(4\)"),
        ("mamba2_num_x_heads", 3, r"a divisor of mamba2_num_heads \(4\)"),
        ("mamba2_num_c_heads", 8, r"a divisor of mamba2_num_heads \(4\)"),
        ("mamba2_norm_groups", 3, r"a divisor of mamba2_num_heads \(4\)"),
        ("mamba2_dt_max", 0.0, r"above mamba2_dt_min \(0.0\), or null"),
        ("mamba2_dt_max", math.inf, "a number above"),
        ("mamba2_dt_max", "none", "a number above"),
        ("head_dim", 7, "an even number"),
        ("selection_period", 9, r"at most window \(8\)"),
        ("block_types", ["bmojo"], r"num_hidden_layers \(2\) entries"),
        ("block_types", ["bmojo", "full_attention"], "entries of attention, sliding_attention"),
        ("block_types", ["bmojo", 1], "entries of attention, sliding_attention"),
        ("block_types", "bmojo", "a list"),
        ("mixer", "s4", "one of mamba, mamba2, gdn, gka"),
        ("eidetic_position", "relative", "one of boundary, absolute"),
        ("eidetic_half_life", 0, "a positive number of tokens, or null"),
        ("eidetic_half_life", -3.0, "a positive number of tokens, or null"),
        ("eidetic_half_life", math.inf, "a positive number of tokens, or null"),
        ("eidetic_half_life", "long", "a positive number of tokens, or null"),
        ("rope_parameters", 10_000, "a dict"),
        ("rope_parameters", LINEAR | {"rope_type": "axial"}, "linear"),
        ("rope_parameters", LINEAR | {"partial_rotary_factor": 0.5}, "no partial_rotary_factor"),
        ("rope_parameters", LINEAR | {"factor": 0}, "a positive number as factor"),
        ("rope_parameters", LINEAR | {"rope_theta": "1e4"}, "a positive number as rope_theta"),
        ("rope_parameters", {"sliding_attention": LINEAR}, "one set for all layers"),
        ("rope_parameters", LONG | {"long_factor": [1.0] * 3}, r"head_dim / 2 \(4\) positive"),
        ("rope_parameters", LONG | {"short_factor": None}, r"head_dim / 2 \(4\) positive"),
    ],
)
def test_fields_that_must_fit_others(name, value, expected):
    refused(name, value, expected)


def test_heads_wider_than_the_model_need_a_head_dim():
    with pytest.raises(ValueError, match="head_dim: expected hidden_size of at least"):
        BMojoConfig(hidden_size=2, num_attention_heads=4)
    assert BMojoConfig(hidden_size=2, num_attention_heads=4, head_dim=6).head_dim == 6


def test_rotary_embedding_of_b_and_c_needs_states_as_wide_as_heads():
    with pytest.raises(ValueError, match=r"^mamba2_rope: expected .*\(6\) is not .*\(8\)"):
        tiny_config("mamba2", mamba2_rope=True, mamba2_state_size=6)


def test_a_rope_type_without_its_parameters():
    with pytest.raises(ValueError, match=r"^rope_parameters: .*factor"):
        tiny_config("bmojo", rope_parameters={"rope_type": "linear", "rope_theta": 1e4})


def test_fields_left_out_follow_from_others():
    config = BMojoConfig(hidden_size=48, num_attention_heads=4, num_hidden_layers=3, window=32)
    assert config.num_key_value_heads == 4
    assert config.head_dim == 12
    assert config.block_types == ["bmojo"] * 3
    assert config.selection_period == 32
    assert (config.mamba2_num_heads, config.mamba2_num_kv_heads) == (4, 4)
    assert (config.mamba2_num_x_heads, config.mamba2_num_c_heads) == (4, 4)
    assert (config.mamba2_head_dim, config.mamba2_state_size) == (12, 12)
    assert config.mamba2_norm_groups == 4
    assert (config.mamba_inner_size, config.mamba_dt_rank) == (96, 3)
    assert BMojoConfig(hidden_size=36, num_attention_heads=3).mamba_dt_rank == 3
    fewer = BMojoConfig(mamba2_num_heads=12, mamba2_num_kv_heads=3)
    assert (fewer.mamba2_num_x_heads, fewer.mamba2_num_c_heads) == (3, 12)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10_000.0}


def test_no_default_is_shared_between_configurations():
    a, b = BMojoConfig(num_hidden_layers=2), BMojoConfig(num_hidden_layers=2)
    a.block_types[0] = "mamba2"
    a.rope_parameters["rope_theta"] = 5.0
    assert b.block_types == ["bmojo", "bmojo"]
    assert b.rope_parameters["rope_theta"] == 10_000.0


@pytest.mark.parametrize(
    ("preset", "layers", "parts"),
    [
        (BMojoConfig.transformer, ["attention"] * 3, {"context"}),
        (BMojoConfig.mamba, ["mamba"] * 3, {"conv", "ssm"}),
        (BMojoConfig.mamba2, ["mamba2"] * 3, {"conv", "ssm"}),
        (BMojoConfig.hybrid, ["mamba2", "attention", "mamba2"], {"conv", "ssm", "context"}),
        (BMojoConfig.bmojo_f, ["bmojo_f"] * 3, {"conv", "ssm", "context", "fading"}),
        (
            BMojoConfig.bmojo,
            ["bmojo"] * 3,
            {"conv", "ssm", "context", "fading", "predictor", "innovation", "eidetic"},
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_presets(preset, layers, parts):
    config = preset(
        num_hidden_layers=3,
        hidden_size=16,
        intermediate_size=16,
        num_attention_heads=2,
        vocab_size=20,
        window=4,
        eidetic_size=4,
    )
    assert config.block_types == layers
    assert config.window == 4
    assert config.has_eidetic == (preset.__name__ == "bmojo")
    names = {part.name for part in BMojoForCausalLM(config).state_parts()} - {"n"}
    assert {name.rsplit(".", 1)[1].split("_")[0] for name in names} == parts
    assert preset().num_hidden_layers == len(preset().block_types) == 12


def test_presets_refuse_what_the_constructor_refuses():
    with pytest.raises(ValueError, match=r"window: expected .*, got 0"):
        BMojoConfig.bmojo(window=0)


@pytest.mark.parametrize(
    ("kind", "changes", "has"),
    [
        ("bmojo", {}, True),
        ("bmojo", {"eidetic_size": 0}, False),
        ("bmojo_f", {}, False),
        ("mamba2+bmojo", {}, True),
        ("hybrid", {}, False),
    ],
)
def test_has_eidetic(kind, changes, has):
    assert tiny_config(kind, **changes).has_eidetic == has


def test_decay_is_ln2_over_the_half_life():
    assert tiny_config("bmojo").eidetic_decay == 0.0
    config = tiny_config("bmojo", eidetic_half_life=20)
    assert math.exp(-20 * config.eidetic_decay) == pytest.approx(0.5)
