"""Configuration of every model that one B'MOJO block can be: Transformer, SSM, hybrid, B'MOJO-F,
B'MOJO.
"""

from __future__ import annotations

from dataclasses import field, fields
from difflib import get_close_matches
from math import isfinite
from types import MappingProxyType
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PretrainedConfig

MIXERS = ("mamba", "mamba2", "gdn", "gka")
BLOCK_TYPES = ("attention", "sliding_attention", *MIXERS, "bmojo_f", "bmojo")
EIDETIC_POSITIONS = ("boundary", "absolute")
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional")
ROPE_NUMBERS = {
    *("rope_theta", "factor", "original_max_position_embeddings"),
    *("low_freq_factor", "high_freq_factor"),
}
OF_TRANSFORMERS = (  # keys that it takes beside its base class's fields, or writes
    *("model_type", "torch_dtype", "name_or_path", "_name_or_path", "_commit_hash", "num_labels"),
    *("output_attentions", "attn_implementation", "_attn_implementation", "experts_implementation"),
    *("rope_theta", "rope_scaling", "quantization_config", "auto_map", "transformers_weights"),
    *("tokenizer_class", "custom_pipelines", "fusion_config"),
)
MAY_BE_ZERO = (  # where 0 means "none", or "as another field"
    *("intermediate_size", "eidetic_size", "num_key_value_heads", "head_dim", "selection_period"),
    *("sliding_window", "gka_num_iter"),
    *("mamba_inner_size", "mamba_dt_rank"),
    *("mamba2_num_heads", "mamba2_num_kv_heads", "mamba2_num_x_heads", "mamba2_num_c_heads"),
    *("mamba2_head_dim", "mamba2_state_size", "mamba2_norm_groups"),
)


@strict
class BMojoConfig(PretrainedConfig):
    """Flat, typed description of a model; letters in brackets are those of the paper and of the
    code.

    Raises:
        ValueError: a field is out of range or two fields contradict each other; the message names
            the field, what was expected and what came.
    """

    model_type = "bmojo"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    auto_map = MappingProxyType[str, str]({})  # no remote code; trl looks here

    vocab_size: int = 32000
    hidden_size: int = 768  # d
    intermediate_size: int = 2048  # width of the SwiGLU; 0 drops it
    num_hidden_layers: int = 12
    num_attention_heads: int = 12  # H
    num_key_value_heads: int = 0  # Hk; 0: as many as query heads
    head_dim: int = 0  # D; 0: hidden_size / num_attention_heads
    block_types: list[str] = field(default_factory=list)  # of BLOCK_TYPES; empty: all "bmojo"
    max_position_embeddings: int = 131072  # told to users of fixed-length models; no limit here
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    rope_parameters: dict[str, Any] = field(default_factory=dict)  # as in transformers
    qk_norm: bool = True  # per-head RMS norm of queries and keys
    attention_bias: bool = False  # of the projections to q, k, v and from the heads
    mlp_bias: bool = False

    window: int = 256  # W: tokens kept verbatim by sliding_attention, bmojo_f and bmojo
    sliding_window: int = 0  # of sliding_attention where it differs; 0: window
    mixer: str = "mamba2"  # the fading memory inside bmojo_f and bmojo
    tie_fading_projections: bool = True  # fading tokens use the projections of the in-context ones

    selection_period: int = 0  # C <= W: tokens between two selections; 0: W
    eidetic_size: int = 256  # M: slots of eidetic memory; 0 makes bmojo equal bmojo_f
    eidetic_half_life: float | None = None  # tokens in which a score loses ln 2; null: never
    eidetic_position: str = "boundary"  # keys sit at distance 2W, or at their "absolute" position
    eidetic_score_bias: bool = True  # beta_h * score joins eidetic logits: selection is learnt
    innovation_taps: int = 4  # k: past fading outputs that the one-step predictor sees
    innovation_windows: int = 16  # time constant of the running innovation, in windows
    innovation_loss_weight: float = 0.1

    mamba_inner_size: int = 0  # E; 0: 2 * hidden_size
    mamba_state_size: int = 16  # N
    mamba_dt_rank: int = 0  # R; 0: hidden_size / 16, rounded up
    mamba_conv_size: int = 4
    mamba_conv_bias: bool = True
    mamba_proj_bias: bool = False  # of in_proj and out_proj

    mamba2_num_heads: int = 0  # H; 0: num_attention_heads
    mamba2_num_kv_heads: int = 0  # heads of B (and x) before expansion; 0: num_key_value_heads
    mamba2_num_x_heads: int = 0  # heads of x before expansion; 0: mamba2_num_kv_heads
    mamba2_num_c_heads: int = 0  # heads of C before expansion; 0: mamba2_num_heads
    mamba2_head_dim: int = 0  # P; 0: head_dim
    mamba2_state_size: int = 0  # N; 0: head_dim
    mamba2_conv_size: int = 4
    mamba2_conv_bias: bool = True
    mamba2_proj_bias: bool = False  # of in_proj and out_proj
    mamba2_qk_norm: bool = True  # per-head RMS norm of B and C
    mamba2_rope: bool = False  # rotary embedding of B and C
    mamba2_dt_min: float = 0.0  # least step size
    mamba2_dt_max: float | None = None  # largest step size; null: no limit
    mamba2_norm_groups: int = 0  # of the gated norm, each of whole heads; 0: one per head
    mamba2_norm_eps: float = 1e-5  # of the gated norm

    gdn_conv_size: int = 4
    gdn_short_conv: bool = True  # convolutions of q, k and v; without them silu alone
    gdn_conv_bias: bool = False
    gdn_gate: bool = True  # of the output
    gdn_negative_eigenvalues: bool = False  # beta up to 2, not 1
    gdn_norm_eps: float = 1e-5  # of the output's norm

    gka_conv_size: int = 4
    gka_v_conv: bool = True  # a convolution of v too
    gka_gate: bool = True  # of the output
    gka_norm_eps: float = 1e-6  # of the output's norm
    gka_num_iter: int = 30  # steps of Chebyshev's iteration; part of the model
    gka_ridge: float = 0.02  # lambda as a share of the norm of k k^T
    gka_alpha_connection: bool = True  # how far a query is replaced by its solution
    gka_beta_gate: bool = True  # how strongly a token is written
    gka_forgetting_gate: bool = True
    gka_forgetting_gate_kk: bool = True  # of k k^T too
    gka_rescale: bool = True  # the output, by head_dim^-0.5

    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None  # any of them ends a text
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        def default(name: str, value: object) -> None:
            if not getattr(self, name):
                setattr(self, name, value)

        _refuse_unknown(kwargs)
        self._check_types()
        default("num_key_value_heads", self.num_attention_heads)
        default("head_dim", self.hidden_size // self.num_attention_heads)
        default("block_types", ["bmojo"] * self.num_hidden_layers)
        default("selection_period", self.window)
        default("sliding_window", self.window)
        default("mamba_inner_size", 2 * self.hidden_size)
        default("mamba_dt_rank", -(-self.hidden_size // 16))
        default("mamba2_num_heads", self.num_attention_heads)
        default("mamba2_num_kv_heads", self.num_key_value_heads)
        default("mamba2_num_x_heads", self.mamba2_num_kv_heads)
        default("mamba2_num_c_heads", self.mamba2_num_heads)
        default("mamba2_norm_groups", self.mamba2_num_heads)
        default("mamba2_head_dim", self.head_dim)
        default("mamba2_state_size", self.head_dim)
        older = {
            "rope_theta": kwargs.pop("rope_theta", None) or 10_000.0
        }  # two keys in files of old
        older |= kwargs.pop("rope_scaling", None) or {}
        default("rope_parameters", {"rope_type": older.pop("type", "default")} | older)
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        self.check()

    def to_dict(self) -> dict[str, Any]:
        """As in transformers, without attributes that were set on it and are no fields."""
        given: dict[str, Any] = super().to_dict()
        known = {*(f.name for f in fields(self)), *OF_TRANSFORMERS}
        return {name: value for name, value in given.items() if name in known}

    def _require(self, ok: bool, name: str, expected: str) -> None:
        if not ok:
            raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")

    def _check_types(self) -> None:
        """Each field by itself."""
        for name, kind in BMojoConfig.__annotations__.items():
            value = getattr(self, name)
            if kind == "int":
                least = 0 if name in MAY_BE_ZERO else 1
                ok = type(value) is int and value >= least
                self._require(ok, name, f"an integer of at least {least}")
            elif kind == "float":
                self._require(_is_number(value) and value >= 0, name, "a number of at least 0")
            elif kind == "bool":
                self._require(isinstance(value, bool), name, "true or false")
        self._require(isinstance(self.block_types, list), "block_types", "a list")
        self._require(isinstance(self.rope_parameters, dict), "rope_parameters", "a dict")

    def check(self) -> None:
        """Raise ValueError, naming the field, if one is out of range or two contradict."""
        self._check_types()
        require = self._require
        require(self.head_dim > 0, "head_dim", "hidden_size of at least num_attention_heads")
        require(self.head_dim % 2 == 0, "head_dim", "an even number (rotary embedding turns pairs)")
        require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            "num_key_value_heads",
            f"a divisor of num_attention_heads ({self.num_attention_heads})",
        )
        for part in ("num_kv_heads", "num_x_heads", "num_c_heads", "norm_groups"):
            require(
                self.mamba2_num_heads % getattr(self, f"mamba2_{part}") == 0,
                f"mamba2_{part}",
                f"a divisor of mamba2_num_heads ({self.mamba2_num_heads})",
            )
        require(
            not self.mamba2_rope or self.mamba2_state_size == self.head_dim,
            "mamba2_rope",
            f"false where mamba2_state_size ({self.mamba2_state_size}) is not head_dim "
            f"({self.head_dim}), for which the angles are",
        )
        require(
            self.mamba2_dt_max is None
            or (_is_number(self.mamba2_dt_max) and self.mamba2_dt_max > self.mamba2_dt_min),
            "mamba2_dt_max",
            f"a number above mamba2_dt_min ({self.mamba2_dt_min}), or null for no limit",
        )
        require(
            len(self.block_types) == self.num_hidden_layers
            and all(kind in BLOCK_TYPES for kind in self.block_types),
            "block_types",
            f"num_hidden_layers ({self.num_hidden_layers}) entries of {', '.join(BLOCK_TYPES)}",
        )
        require(self.mixer in MIXERS, "mixer", f"one of {', '.join(MIXERS)}")
        require(
            self.selection_period <= self.window,
            "selection_period",
            f"at most window ({self.window})",
        )
        require(
            self.eidetic_position in EIDETIC_POSITIONS,
            "eidetic_position",
            f"one of {', '.join(EIDETIC_POSITIONS)}",
        )
        require(
            self.eidetic_half_life is None
            or (_is_number(self.eidetic_half_life) and self.eidetic_half_life > 0),
            "eidetic_half_life",
            "a positive number of tokens, or null for no decay",
        )
        self._check_rope()

    def _check_rope(self) -> None:
        require, given = self._require, self.rope_parameters
        kind, size = given.get("rope_type", "default"), self.head_dim // 2
        require(kind in ROPE_TYPES, "rope_parameters", f"a rope_type in {', '.join(ROPE_TYPES)}")
        require(
            not any(isinstance(value, dict) for value in given.values()),
            "rope_parameters",
            "one set for all layers",
        )
        for name in ROPE_NUMBERS & set(given):
            of_lengths = name == "factor" and kind == "yarn" and given[name] is None
            require(
                of_lengths or (_is_number(given[name]) and given[name] > 0),
                "rope_parameters",
                f"a positive number as {name}",
            )
        part = given.get("partial_rotary_factor", 1.0)
        require(
            part == 1.0 or (kind == "proportional" and _is_number(part) and 0 <= part <= 1),
            "rope_parameters",
            "no partial_rotary_factor (all of a head is rotated), or rope_type proportional and a "
            "number up to 1",
        )
        require(
            kind != "longrope"
            or all(
                isinstance(factors, list)
                and len(factors) == size
                and all(_is_number(x) and x > 0 for x in factors)
                for factors in (given.get("short_factor"), given.get("long_factor"))
            ),
            "rope_parameters",
            f"a short_factor and a long_factor of head_dim / 2 ({size}) positive numbers each",
        )
        try:
            self.validate_rope()
        except KeyError as error:  # how transformers tells that a rope type lacks a parameter
            raise ValueError(f"rope_parameters: {error.args[0]}") from error

    @property
    def eidetic_decay(self) -> float:
        """lambda of the rank key, per token: ln 2 / half-life."""
        return (
            0.0 if self.eidetic_half_life is None else 0.6931471805599453 / self.eidetic_half_life
        )

    @property
    def has_eidetic(self) -> bool:
        """Whether any layer selects tokens, so that steps must stop at selection boundaries."""
        return self.eidetic_size > 0 and "bmojo" in self.block_types

    @classmethod
    def transformer(cls, **kwargs: Any) -> BMojoConfig:
        """Full causal attention in every layer."""
        return cls._uniform("attention", kwargs)

    @classmethod
    def mamba(cls, **kwargs: Any) -> BMojoConfig:
        """Fading memory only: a Mamba (S6) mixer in every layer."""
        return cls._uniform("mamba", kwargs)

    @classmethod
    def mamba2(cls, **kwargs: Any) -> BMojoConfig:
        """Fading memory only: a Mamba-2 mixer in every layer."""
        return cls._uniform("mamba2", kwargs)

    @classmethod
    def gdn(cls, **kwargs: Any) -> BMojoConfig:
        """Fading memory only: a Gated DeltaNet mixer in every layer."""
        return cls._uniform("gdn", kwargs)

    @classmethod
    def gka(cls, **kwargs: Any) -> BMojoConfig:
        """Fading memory only: a Gated KalmaNet mixer in every layer."""
        return cls._uniform("gka", kwargs)

    @classmethod
    def hybrid(cls, **kwargs: Any) -> BMojoConfig:
        """Mamba-2 and full attention in turn, as Jamba-like models have it."""
        depth = kwargs.pop("num_hidden_layers", cls.num_hidden_layers)
        types = [("mamba2", "attention")[i % 2] for i in range(depth)]
        return cls(num_hidden_layers=depth, block_types=types, **kwargs)

    @classmethod
    def bmojo_f(cls, **kwargs: Any) -> BMojoConfig:
        """Window and fading tokens under one softmax, without eidetic memory."""
        return cls._uniform("bmojo_f", kwargs)

    @classmethod
    def bmojo(cls, **kwargs: Any) -> BMojoConfig:
        """All three memories in every layer."""
        return cls._uniform("bmojo", kwargs)

    @classmethod
    def _uniform(cls, layer_type: str, kwargs: dict[str, Any]) -> BMojoConfig:
        depth = kwargs.pop("num_hidden_layers", cls.num_hidden_layers)
        return cls(num_hidden_layers=depth, block_types=[layer_type] * depth, **kwargs)


def _refuse_unknown(given: dict[str, Any]) -> None:
    """What is no field of a configuration is a mistake, or belongs to another model."""
    kind = given.get("model_type", BMojoConfig.model_type)
    if kind != BMojoConfig.model_type:
        raise ValueError(
            f"model_type: expected {BMojoConfig.model_type!r}, got {kind!r}: this is the "
            "configuration of another architecture"
        )
    known = [f.name for f in fields(BMojoConfig)]
    for name in given:
        if name not in OF_TRANSFORMERS:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "leave it out"
            raise ValueError(f"{name}: expected a field of BMojoConfig, got an unknown one; {hint}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
