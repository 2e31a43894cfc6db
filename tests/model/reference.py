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

    def linear(self, x: Tensor, at: str) -> Tensor:
        return x @ self.p[at + ".weight"].T + self.p.get(at + ".bias", 0.0)

    def convolved(self, x: Tensor, t: int, at: str) -> Tensor:
        y, taps = torch.zeros_like(x[t]) + self.p.get(at + ".bias", 0.0), self.p[at + ".weight"]
        for lag in range(min(t + 1, taps.shape[1])):
            y = y + taps[:, -1 - lag] * x[t - lag]
        return silu(y)

    def mixer(self, u: Tensor, at: str) -> Tensor:
        return self.mamba2(u, at) if self.c.mixer == "mamba2" else self.mamba(u, at)

    def mamba(self, u: Tensor, at: str) -> Tensor:
        c, p = self.c, self.p
        x, z = self.linear(u, at + "in_proj").split(c.mamba_inner_size, -1)
        state = torch.zeros(c.mamba_inner_size, c.mamba_state_size, dtype=torch.float64)
        f = []
        for t in range(len(u)):
            xt = self.convolved(x, t, at + "conv")
            low, bt, ct = self.linear(xt, at + "x_proj").split(
                [c.mamba_dt_rank, c.mamba_state_size, c.mamba_state_size]
            )
            step = (p[at + "dt_weight"] @ low + p[at + "dt_bias"]).exp().log1p()
            for e in range(len(xt)):
                decay = torch.exp(-step[e] * p[at + "a_log_bias"][e].exp())
                state[e] = decay * state[e] + step[e] * xt[e] * bt
            y = (state @ ct + p[at + "skip_bias"] * xt) * silu(z[t])
            f.append(self.linear(y, at + "out_proj"))
        return torch.stack(f)

    def mamba2(self, u: Tensor, at: str) -> Tensor:
        c, p = self.c, self.p
        heads, width, states = c.mamba2_num_heads, c.mamba2_head_dim, c.mamba2_state_size
        x_heads, b_heads, c_heads = (
            c.mamba2_num_x_heads,
            c.mamba2_num_kv_heads,
            c.mamba2_num_c_heads,
        )
        sizes = [heads * width, x_heads * width, b_heads * states, c_heads * states, heads]
        z, x, b, out, dt = self.linear(u, at + "in_proj").split(sizes, -1)
        b, out = b.unflatten(-1, (b_heads, states)), out.unflatten(-1, (c_heads, states))
        if c.mamba2_qk_norm:
            b = rms(b, p[at + "b_norm.weight"], 1e-6)
            out = rms(out, p[at + "c_norm.weight"], 1e-6)
        if c.mamba2_rope:
            b, out = (
                torch.stack(
                    [torch.stack([self.rotate(h, t) for h in row]) for t, row in enumerate(v)]
                )
                for v in (b, out)
            )
        xbc = torch.cat([x, b.flatten(1), out.flatten(1)], -1)
        state = torch.zeros(heads, width, states, dtype=torch.float64)
        f = []
        for t in range(len(u)):
            xt, bt, ct = self.convolved(xbc, t, at + "conv").split(sizes[1:4])
            step = (dt[t] + p[at + "dt_bias"]).exp().log1p()
            step = step.clamp(c.mamba2_dt_min, c.mamba2_dt_max or math.inf)
            rows = []
            for h in range(heads):
                value = xt.view(x_heads, width)[h // (heads // x_heads)]
                key = bt.view(b_heads, states)[h // (heads // b_heads)]
                query = ct.view(c_heads, states)[h // (heads // c_heads)]
                decay = torch.exp(-step[h] * p[at + "a_log_bias"][h].exp())
                state[h] = decay * state[h] + step[h] * torch.outer(value, key)
                rows.append(state[h] @ query + p[at + "skip_bias"][h] * value)
            gated = (torch.stack(rows) * silu(z[t].view(heads, width))).view(
                c.mamba2_norm_groups, -1
            )
            weight = p[at + "norm"].view(c.mamba2_norm_groups, -1)
            f.append(self.linear(rms(gated, weight, c.mamba2_norm_eps).flatten(), at + "out_proj"))
        return torch.stack(f)

    def scores(self, f: Tensor, at: str) -> list[Tensor]:
        weight, out = self.p[at + "eidetic.predictor_bias"], []
        mean = self.p[at + "eidetic.innovation_log_bias"][0].exp()
        for j in range(len(f)):
            guess = torch.zeros_like(f[j])
            for m in range(1, min(j, len(weight)) + 1):
                guess = guess + weight[m - 1] * f[j - m]
            error = (f[j] - guess).square().mean()
            out.append((error + 1e-6).log() - (mean + 1e-6).log())
            mean = mean + (error - mean) / (self.c.innovation_windows * self.c.window)
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
