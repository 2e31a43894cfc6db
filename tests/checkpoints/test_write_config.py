"""What Hybrid-Qwen3's config.json cannot say of a model is refused."""

import pytest

from bmojo_neuron import BMojoConfig
from bmojo_neuron.checkpoints.hybrid_qwen3 import write_config
from tests.model.conftest import tiny_config


def test_a_field_that_hybrid_qwen3_does_not_know_is_refused_where_it_would_be_lost(monkeypatch):
    """Also one that a later version adds: what a layer may read is never left out."""
    monkeypatch.setitem(BMojoConfig.__annotations__, "later", "int")
    monkeypatch.setattr(BMojoConfig, "later", 1, raising=False)
    config = tiny_config("bmojo_f", eidetic_size=0)
    config.later = 2
    with pytest.raises(ValueError, match=r"^later: expected 1, as hybrid_qwen3 has it, got 2$"):
        write_config(config)


def test_b_mojo_f_over_mamba_is_refused_by_name():
    config = tiny_config("bmojo_f", eidetic_size=0, mixer="mamba")
    with pytest.raises(ValueError, match=r"^mixer: expected one of mamba2, gdn, gka.*got 'mamba'$"):
        write_config(config)
