"""spec/checkpoints sections 2 to 4 written down token by token, in float64, from the text alone:
what a config.json and tensors of Hybrid-Qwen3 compute, and such tensors at random.

Letters: L tokens, d hidden size, H query heads, G kv heads, r = H / G, D head dim.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Qwen3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from bmojo_neuron import BMojoForCausalLM

MIXERS = {"mamba2": "mamba", "gdn": "gdn", "gka": "gka"}  # bmojo_config.ssm_mixer -> attribute
WHERE = {"*": "self_attn", "SWA": "swa", "M2": "mamba", "GDN": "gdn", "GKA": "gka"}
Given = dict[str, Any]
Tensors = dict[str, Tensor]


def given_of(pattern: str, **changes: Any) -> Given:
    """A config.json of a tiny model."""
    layers = pattern.split("-")
    base = {
        "model_type": "hybrid_qwen3",
        "architectures": ["HybridQwen3ForCausalLM"],
        "vocab_size": 40,
        "hidden_size": 24,
        "intermediate_size": 32,
        "head_dim": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": len(layers),
        "hybrid_override_pattern": pattern,
        "layer_types": layers,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
        "bmojo_config": {"window_size": 4, "ssm_mixer": "mamba2", "tie_attn_weights": True},
        "swa_config": {"window_size": 4},
        "mamba2_config": {},
        "gdn_config": {},
        "gka_config": {},
    }
    return base | changes


def random_tensors(given: Given, seed: int = 0) -> Tensors:
    """Every tensor of section 3, none of it at its initial value."""
    c, generator = given, torch.Generator().manual_seed(seed)
    d, inner = c["hidden_size"], c["num_attention_heads"] * c["head_dim"]
    heads, inner_kv = c["num_attention_heads"], c["num_key_value_heads"] * c["head_dim"]
    out: Tensors = {}

    def add(name: str, *shape: int, mean: float = 0.0, by: float = 0.3) -> None:
        out[name] = mean + by * torch.randn(*shape, generator=generator)

    def linear(name: str, rows: int, columns: int, bias: bool = False) -> None:
        add(f"{name}.weight", rows, columns, by=columns**-0.5)
        if bias:
            add(f"{name}.bias", rows)

    def norm(name: str, size: int) -> None:
        add(f"{name}.weight", size, mean=1.0)

    def attention(at: str, end: str = "") -> None:
        for x, width in (("q", inner), ("k", inner_kv), ("v", inner_kv)):
            linear(f"{at}.{x}_proj{end}", width, d, c.get("attention_bias", False))
        for x in "qk":
            norm(f"{at}.{x}_norm{end}", c["head_dim"])
        if not end:
            linear(f"{at}.o_proj", d, inner, c.get("attention_bias", False))

    def conv(name: str, width: int, taps: int, bias: bool) -> None:
        add(f"{name}.weight", width, 1, taps, by=0.6)
        if bias:
            add(f"{name}.bias", width)

    def mamba(at: str, o: Given) -> None:
        linear(f"{at}.in_proj", 2 * inner + 2 * inner_kv + heads, d)
        conv(f"{at}.conv1d", inner + 2 * inner_kv, 4, bias=True)
        add(f"{at}.D", heads, mean=1.0)
        norm(f"{at}.norm", inner)
        linear(f"{at}.out_proj", d, inner)
        if o.get("use_qk_norm", True):
            norm(f"{at}.B_norm", c["head_dim"])
            norm(f"{at}.C_norm", c["head_dim"])

    def gated(at: str, o: Given, kind: str) -> None:
        convolved = "qkv" if o.get("use_short_conv", True) and o.get("use_v_conv", True) else "qk"
        convolved = convolved if o.get("use_short_conv", True) else ""
        for x, width in (("q", inner), ("k", inner_kv), ("v", inner_kv)):
            linear(f"{at}.{x}_proj", width, d)
            if x in convolved:
                bias = kind == "gdn" and o.get("conv_bias", False)
                conv(f"{at}.{x}_conv1d", width, o.get("conv_size", 4), bias)
        linear(f"{at}.{'gk' if kind == 'gdn' else 'a'}_proj", heads, d)
        if o.get("use_beta_gate", True):
            linear(f"{at}.b_proj", heads, d, bias=kind == "gka")
        if kind == "gka" and o.get("use_alpha_connection", True):
            linear(f"{at}.alpha_proj", heads, d, bias=True)
        if o.get("use_gate", True):
            linear(f"{at}.g_proj", inner, d)
        norm(f"{at}.o_norm", c["head_dim"])
        linear(f"{at}.o_proj", d, inner)

    def mixer(at: str, kind: str) -> None:
        add(f"{at}.A_log", heads, mean=-1.0, by=0.7)
        add(f"{at}.dt_bias", heads, by=0.7)
        if kind == "mamba":
            mamba(at, c["mamba2_config"])
        else:
            gated(at, c[f"{kind}_config"], kind)

    add("model.embed_tokens.weight", c["vocab_size"], d, by=1.0)
    for i, token in enumerate(c["hybrid_override_pattern"].split("-")):
        at = f"model.layers.{i}."
        norm(f"{at}input_layernorm", d)
        norm(f"{at}post_attention_layernorm", d)
        linear(f"{at}mlp.gate_proj", c["intermediate_size"], d)
        linear(f"{at}mlp.up_proj", c["intermediate_size"], d)
        linear(f"{at}mlp.down_proj", d, c["intermediate_size"])
        if token == "BMF":
            attention(f"{at}bmojo_f.bmojo_attn")
            if not c["bmojo_config"].get("tie_attn_weights", True):
                attention(f"{at}bmojo_f.bmojo_attn", end="_")
            kind = MIXERS[c["bmojo_config"].get("ssm_mixer", "mamba2")]
            mixer(f"{at}bmojo_f.{kind}", kind)
        elif token in ("*", "SWA"):
            attention(at + WHERE[token])
        else:
            mixer(at + WHERE[token], WHERE[token])
    norm("model.norm", d)
    if not c["tie_word_embeddings"]:
        linear("lm_head", c["vocab_size"], d)
    return out


def written(directory: Path, given: Given, tensors: Tensors) -> Path:
    """A checkpoint of these."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(given))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def loaded(directory: Path, given: Given, tensors: Tensors) -> BMojoForCausalLM:
    """Ours, from a checkpoint of these."""
    model: BMojoForCausalLM = BMojoForCausalLM.from_pretrained(written(directory, given, tensors))
    return model


def tolerance(given: Given) -> float:
    """Of logits; the spec allows more where the solution of a linear system is cut short."""
    solves = "GKA" in given["hybrid_override_pattern"] or (
        "BMF" in given["hybrid_override_pattern"] and given["bmojo_config"]["ssm_mixer"] == "gka"
    )
    return 2e-3 if solves else 1e-4


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


class HybridReference:
    """Logits (L, V) of one sequence, from no state and without a cache."""

    def __init__(self, given: Given, tensors: Tensors) -> None:
        self.c, self.p = given, {name: tensor.double() for name, tensor in tensors.items()}
        self.heads, self.kv_heads = given["num_attention_heads"], given["num_key_value_heads"]
        self.dim = given["head_dim"]
        rope = given["rope_parameters"]
        pairs = torch.arange(0, self.dim, 2, dtype=torch.float64) / self.dim
        self.frequencies, self.rope_scale = rope["rope_theta"] ** -pairs, 1.0
        if rope.get("rope_type", "default") != "default":
            shared = ("hidden_size", "num_attention_heads", "head_dim", "max_position_embeddings")
            config = Qwen3Config(**{name: given[name] for name in shared}, rope_parameters=rope)
            found, self.rope_scale = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, "cpu")
            self.frequencies = found.double()

    def logits(self, ids: Tensor) -> Tensor:
        c, p, eps = self.c, self.p, self.c["rms_norm_eps"]
        h = p["model.embed_tokens.weight"][ids]
        for i, token in enumerate(c["hybrid_override_pattern"].split("-")):
            at = f"model.layers.{i}."
            h = h + self.layer(rms(h, p[at + "input_layernorm.weight"], eps), at, token)
            x = rms(h, p[at + "post_attention_layernorm.weight"], eps)
            gate, up = self.linear(x, at + "mlp.gate_proj"), self.linear(x, at + "mlp.up_proj")
            h = h + self.linear(silu(gate) * up, at + "mlp.down_proj")
        head = p["model.embed_tokens.weight" if c["tie_word_embeddings"] else "lm_head.weight"]
        return rms(h, p["model.norm.weight"], eps) @ head.T

    def layer(self, u: Tensor, at: str, token: str) -> Tensor:
        match token:
            case "*":
                return self.attention(u, at + "self_attn", None)
            case "SWA":
                return self.attention(u, at + "swa", self.c["swa_config"]["window_size"])
            case "BMF":
                return self.bmojo_f(u, at + "bmojo_f")
            case _:
                return self.mixer(u, at + WHERE[token], WHERE[token])

    def mixer(self, u: Tensor, at: str, kind: str) -> Tensor:
        return {"mamba": self.mamba2, "gdn": self.gdn, "gka": self.gka}[kind](u, at)

    def linear(self, x: Tensor, at: str) -> Tensor:
        return x @ self.p[at + ".weight"].T + self.p.get(at + ".bias", 0.0)

    def by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.dim))

    def expand(self, x: Tensor) -> Tensor:
        """(L, G, D) -> (L, H, D): q head h uses kv head h // r."""
        r = self.heads // x.shape[1]
        return torch.stack([x[:, h // r] for h in range(self.heads)], dim=1)

    def rotate(self, x: Tensor) -> Tensor:
        """Each token of (L, heads, D) at its own position."""
        out = torch.empty_like(x)
        for position in range(len(x)):
            angle, half = position * self.frequencies, self.dim // 2
            cos, sin = angle.cos() * self.rope_scale, angle.sin() * self.rope_scale
            a, b = x[position, :, :half], x[position, :, half:]
            out[position] = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
        return out

    def conv(self, x: Tensor, at: str) -> Tensor:
        weight = self.p[at + ".weight"]
        out = torch.zeros_like(x) + self.p.get(at + ".bias", 0.0)
        for t in range(len(x)):
            for lag in range(min(t + 1, weight.shape[2])):
                out[t] += weight[:, 0, -1 - lag] * x[t - lag]
        return out

    def query(self, x: Tensor, at: str, end: str = "") -> Tensor:
        q = self.by_head(self.linear(x, f"{at}.q_proj{end}"))
        return self.rotate(rms(q, self.p[f"{at}.q_norm{end}.weight"], self.c["rms_norm_eps"]))

    def key_value(self, x: Tensor, at: str, end: str = "") -> tuple[Tensor, Tensor]:
        k = self.by_head(self.linear(x, f"{at}.k_proj{end}"))
        k = self.rotate(rms(k, self.p[f"{at}.k_norm{end}.weight"], self.c["rms_norm_eps"]))
        return self.expand(k), self.expand(self.by_head(self.linear(x, f"{at}.v_proj{end}")))

    def attention(self, u: Tensor, at: str, window: int | None) -> Tensor:
        q, (k, v) = self.query(u, at), self.key_value(u, at)
        out = []
        for i in range(len(u)):
            seen = slice(0 if window is None else max(0, i - window + 1), i + 1)
            weight = (torch.einsum("hd,jhd->hj", q[i], k[seen]) * self.dim**-0.5).softmax(-1)
            out.append(torch.einsum("hj,jhd->hd", weight, v[seen]).flatten())
        return self.linear(torch.stack(out), at + ".o_proj")

    def bmojo_f(self, u: Tensor, at: str) -> Tensor:
        c = self.c["bmojo_config"]
        window, end = c.get("window_size", 2048), "" if c.get("tie_attn_weights", True) else "_"
        kind = MIXERS[c.get("ssm_mixer", "mamba2")]
        f, at, mixed = u, at + ".bmojo_attn", at + f".{kind}"
        f = self.mixer(u, mixed, kind)
        q, (k, v) = self.query(u, at), self.key_value(u, at)
        fading_q, (fading_k, fading_v) = self.query(u, at, end), self.key_value(f, at, end)
        out = []
        for i in range(len(u)):
            near = slice(max(0, i - window + 1), i + 1)
            far = slice(max(0, i - 2 * window + 1), max(0, i - window + 1))
            logits = [
                torch.einsum("hd,jhd->hj", q[i], k[near]),
                torch.einsum("hd,jhd->hj", fading_q[i], fading_k[far]),
            ]
            weight = (torch.cat(logits, dim=-1) * self.dim**-0.5).softmax(-1)
            out.append(torch.einsum("hj,jhd->hd", weight, torch.cat([v[near], fading_v[far]])))
        return self.linear(torch.stack(out).flatten(1), at + ".o_proj")

    def mamba2(self, u: Tensor, at: str) -> Tensor:
        c, p = self.c["mamba2_config"], self.p
        inner, inner_kv = self.heads * self.dim, self.kv_heads * self.dim
        parts = [inner, inner_kv, inner_kv, inner, self.heads]
        z, x, b, out, dt = self.linear(u, at + ".in_proj").split(parts, dim=-1)
        b, out = self.by_head(b), self.by_head(out)
        if c.get("use_qk_norm", True):
            b = rms(b, p[at + ".B_norm.weight"], 1e-6)
            out = rms(out, p[at + ".C_norm.weight"], 1e-6)
        if c.get("use_pos_emb", False):
            b, out = self.rotate(b), self.rotate(out)
        xbc = torch.cat([x, b.flatten(1), out.flatten(1)], dim=-1)
        x, b, out = silu(self.conv(xbc, at + ".conv1d")).split(parts[1:4], dim=-1)
        x, b, out = self.expand(self.by_head(x)), self.expand(self.by_head(b)), self.by_head(out)
        dt, a = softplus(dt + p[at + ".dt_bias"]), -p[at + ".A_log"].exp()
        state, rows = torch.zeros(self.heads, self.dim, self.dim, dtype=torch.float64), []
        for t in range(len(u)):
            for h in range(self.heads):
                written = dt[t, h] * torch.outer(x[t, h], b[t, h])
                state[h] = (dt[t, h] * a[h]).exp() * state[h] + written
            y = torch.einsum("hvs,hs->hv", state, out[t]) + p[at + ".D"][:, None] * x[t]
            gated = y * silu(self.by_head(z[t]))
            rows.append(rms(gated, self.by_head(p[at + ".norm.weight"]), 1e-5).flatten())
        return self.linear(torch.stack(rows), at + ".out_proj")

    def decay(self, u: Tensor, at: str, name: str) -> Tensor:
        """g (L, H)."""
        step = softplus(self.linear(u, f"{at}.{name}") + self.p[at + ".dt_bias"])
        return -self.p[at + ".A_log"].exp() * step

    def output(self, o: Tensor, u: Tensor, at: str, eps: float, gate: bool) -> Tensor:
        y = rms(o, self.p[at + ".o_norm.weight"], eps)
        if gate:
            y = y * silu(self.by_head(self.linear(u, at + ".g_proj")))
        return self.linear(y.flatten(1), at + ".o_proj")

    def gdn(self, u: Tensor, at: str) -> Tensor:
        c = self.c["gdn_config"]
        q, k, v = (self.linear(u, f"{at}.{x}_proj") for x in "qkv")
        if c.get("use_short_conv", True):
            q, k, v = (
                self.conv(y, f"{at}.{x}_conv1d") for x, y in zip("qkv", (q, k, v), strict=True)
            )
        q, k, v = (self.expand(self.by_head(silu(y))) for y in (q, k, v))
        q, k = (y / (y.square().sum(-1, keepdim=True) + 1e-6).sqrt() for y in (q, k))
        q = q * self.dim**-0.5
        beta = self.linear(u, at + ".b_proj").sigmoid()
        beta = 2 * beta if c.get("allow_neg_eigval", False) else beta
        g = self.decay(u, at, "gk_proj")
        state, o = torch.zeros(self.heads, self.dim, self.dim, dtype=torch.float64), []
        for t in range(len(u)):
            for h in range(self.heads):
                decayed = g[t, h].exp() * state[h]
                error = beta[t, h] * (v[t, h] - decayed.T @ k[t, h])
                state[h] = decayed + torch.outer(k[t, h], error)
            o.append(torch.einsum("hkv,hk->hv", state, q[t]))
        return self.output(torch.stack(o), u, at, c.get("norm_eps", 1e-5), c.get("use_gate", True))

    def gka(self, u: Tensor, at: str) -> Tensor:
        c = self.c["gka_config"]
        q, k = (silu(self.conv(self.linear(u, f"{at}.{x}_proj"), f"{at}.{x}_conv1d")) for x in "qk")
        v = self.linear(u, at + ".v_proj")
        if c.get("use_v_conv", True):
            v = silu(self.conv(v, at + ".v_conv1d"))
        q, k, v = (self.expand(self.by_head(y)) for y in (q, k, v))
        q, k = (y / (y.square().sum(-1, keepdim=True).sqrt() + 1e-6) for y in (q, k))
        if c.get("use_beta_gate", True):
            beta = self.linear(u, at + ".b_proj").sigmoid()[..., None] + 1e-6
            k, v = beta * k, beta * v
        alpha = torch.ones(len(u), self.heads, dtype=torch.float64)
        if c.get("use_alpha_connection", True):
            alpha = self.linear(u, at + ".alpha_proj").sigmoid()
        g = self.decay(u, at, "a_proj") if c.get("use_forgetting_gate", True) else 0 * alpha
        g_kk = g if c.get("use_forgetting_gate_kk", True) else 0 * alpha
        kk, kv = torch.zeros(2, self.heads, self.dim, self.dim, dtype=torch.float64)
        o = torch.empty_like(v)
        for t in range(len(u)):
            for h in range(self.heads):
                kk[h] = g_kk[t, h].exp() * kk[h] + torch.outer(k[t, h], k[t, h])
                kv[h] = g[t, h].exp() * kv[h] + torch.outer(k[t, h], v[t, h])
                x = self.solved(kk[h], q[t, h])
                o[t, h] = kv[h].T @ (q[t, h] + alpha[t, h] * (x - q[t, h]))
        if c.get("gla_rescale", True):
            o = o * self.dim**-0.5
        return self.output(o, u, at, c.get("norm_eps", 1e-6), c.get("use_gate", True))

    def solved(self, kk: Tensor, q: Tensor) -> Tensor:
        """x of (Hkk + lam I) x = q, by so many of Chebyshev's steps as the model has."""
        c = self.c["gka_config"]
        f = math.sqrt(float(kk.square().sum()))
        lam, steps = c.get("ridge_strength", 0.02) * f, c.get("num_iter", 30)
        if steps == 0:
            return q
        if f == 0:
            return torch.zeros_like(q)
        step, rho = 2 / (2 * lam + f), f / (2 * lam + f)
        before, x, omega = torch.zeros_like(q), step * q, 2.0
        for _ in range(steps):
            omega = 1 / (1 - rho**2 / 4 * omega)
            new = omega * (x - step * (kk @ x + lam * x - q)) + (1 - omega) * before
            before, x = x, new
        return x
