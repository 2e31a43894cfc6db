"""spec/model sections 3 and 4 written down token by token, in float64, from the text alone."""

import math

import torch
from torch import Tensor

from bmojo_neuron import BMojoForCausalLM


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


class Reference:
    """Logits of a model of `bmojo` and `bmojo_f` layers for one sequence."""

    def __init__(self, model: BMojoForCausalLM) -> None:
        self.c = model.config
        self.p = {name: part.detach().double() for name, part in model.state_dict().items()}

    def logits(self, ids: Tensor) -> Tensor:
        c, p = self.c, self.p
        h = p["model.embed_tokens.weight"][ids]
        for i, kind in enumerate(c.block_types):
            at = f"model.layers.{i}."
            h = h + self.layer(rms(h, p[at + "input_norm.weight"], c.rms_norm_eps), at, kind)
            x = rms(h, p[at + "mlp_norm.weight"], c.rms_norm_eps)
            gate, up = (x @ p[f"{at}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
            h = h + (silu(gate) * up) @ p[at + "mlp.down_proj.weight"].T
        return rms(h, p["model.norm.weight"], c.rms_norm_eps) @ p["lm_head.weight"].T

    def rotate(self, x: Tensor, position: int) -> Tensor:
        half = self.c.head_dim // 2
        theta = self.c.rope_parameters["rope_theta"]
        turned = x.clone()
        for i in range(half):
            angle = position * theta ** (-2 * i / self.c.head_dim)
            a, b = x[i], x[half + i]
            turned[i] = a * math.cos(angle) - b * math.sin(angle)
            turned[half + i] = b * math.cos(angle) + a * math.sin(angle)
        return turned

    def mixer(self, u: Tensor, at: str) -> Tensor:
        c, p = self.c, self.p
        heads, groups = c.mamba2_num_heads, c.mamba2_num_kv_heads
        width, states = c.mamba2_head_dim, c.mamba2_state_size
        sizes = [heads * width, groups * width, groups * states, heads * states, heads]
        z, x, b, out, dt = (u @ p[at + "in_proj.weight"].T).split(sizes, -1)
        b = rms(b.unflatten(-1, (groups, states)), p[at + "b_norm.weight"], 1e-6).flatten(1)
        out = rms(out.unflatten(-1, (heads, states)), p[at + "c_norm.weight"], 1e-6).flatten(1)
        xbc, taps = torch.cat([x, b, out], -1), p[at + "conv.weight"]
        state = torch.zeros(heads, width, states, dtype=torch.float64)
        f = []
        for t in range(len(u)):
            y = p[at + "conv.bias"].clone()
            for lag in range(min(t + 1, taps.shape[1])):
                y = y + taps[:, -1 - lag] * xbc[t - lag]
            xt, bt, ct = silu(y).split(sizes[1:4])
            step = (dt[t] + p[at + "dt_bias"]).exp().log1p()
            rows = []
            for h in range(heads):
                value = xt.view(groups, width)[h // (heads // groups)]
                key = bt.view(groups, states)[h // (heads // groups)]
                decay = torch.exp(-step[h] * p[at + "a_log_bias"][h].exp())
                state[h] = decay * state[h] + step[h] * torch.outer(value, key)
                rows.append(state[h] @ ct.view(heads, states)[h] + p[at + "skip_bias"][h] * value)
            gated = torch.stack(rows) * silu(z[t].view(heads, width))
            f.append(rms(gated, p[at + "norm"], 1e-5).flatten() @ p[at + "out_proj.weight"].T)
        return torch.stack(f)

    def scores(self, f: Tensor, at: str) -> list[Tensor]:
        weight, out = self.p[at + "eidetic.predictor_bias"], []
        for j in range(len(f)):
            guess = torch.zeros_like(f[j])
            for m in range(1, min(j, len(weight)) + 1):
                guess = guess + weight[m - 1] * f[j - m]
            error, size = (f[j] - guess).square().mean(), f[j].square().mean()
            out.append((error + 1e-6).log() - (size + guess.square().mean() + 1e-6).log())
        return out

    def projected(self, x: Tensor, at: str) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (
            (x @ self.p[f"{at}{name}_proj.weight"].T).unflatten(-1, (-1, self.c.head_dim))
            for name in "qkv"
        )
        eps = self.c.rms_norm_eps
        q = rms(q, self.p[at + "q_norm.weight"], eps)
        return q, rms(k, self.p[at + "k_norm.weight"], eps), v

    def layer(self, u: Tensor, block: str, kind: str) -> Tensor:
        c, at = self.c, block + "layer."
        window, scale = c.window, c.head_dim**-0.5
        f = self.mixer(u, at + "mixer.")
        q, k, v = self.projected(u, at + "qkv.")
        own = at + ("qkv." if c.tie_fading_projections else "fading_qkv.")
        fading_q, (_, fading_k, fading_v) = self.projected(u, own)[0], self.projected(f, own)
        scores = self.scores(f, at) if kind == "bmojo" else []
        decay = math.log(2) / c.eidetic_half_life if c.eidetic_half_life else 0.0
        out = []
        for i in range(len(u)):
            boundary = i - i % c.selection_period
            seen = range(max(0, boundary + c.selection_period - window) if scores else 0)
            ranked = sorted(seen, key=lambda j: (-(scores[j] - decay * (boundary - j)).item(), j))
            heads = []
            for h in range(c.num_attention_heads):
                g = h // (c.num_attention_heads // c.num_key_value_heads)
                logits, values = [], []
                for j in range(max(0, i - window + 1), i + 1):
                    logits.append(scale * self.rotate(q[i, h], i) @ self.rotate(k[j, g], j))
                    values.append(v[j, g])
                for j in range(max(0, i - 2 * window + 1), i - window + 1):
                    query, key = self.rotate(fading_q[i, h], i), self.rotate(fading_k[j, g], j)
                    logits.append(scale * query @ key)
                    values.append(fading_v[j, g])
                for j in sorted(j for j in ranked[: c.eidetic_size] if j <= i - window):
                    if c.eidetic_position == "boundary":
                        logit = scale * self.rotate(q[i, h], 2 * window) @ k[j, g]
                    else:
                        logit = scale * self.rotate(q[i, h], i) @ self.rotate(k[j, g], j)
                    if c.eidetic_score_bias:
                        logit = logit + self.p[at + "eidetic.score_bias"][h] * scores[j]
                    logits.append(logit)
                    values.append(v[j, g])
                heads.append(torch.stack(logits).softmax(0) @ torch.stack(values))
            out.append(torch.cat(heads) @ self.p[at + "o_proj.weight"].T)
        return torch.stack(out)
