"""The blocks of four published generators in plain PyTorch, written from their descriptions, and how they map to ours.

Each has weights by its own names and layout. ``pairs(block)`` says which of ours holds which of theirs: (ours,
[theirs]), theirs joined along the first dimension.

| block | source of the facts |
|---|---|
| DiT | Peebles and Xie, arXiv 2212.09748; facebookresearch/DiT, models.py |
| UniFlow-Audio | arXiv 2509.24391; wsntxxn/UniFlow-Audio, models/dit, configs/model/backbone/audio_udit.yaml |
| F5-TTS | arXiv 2410.06885; SWivid/F5-TTS, model/modules.py |
| stable-audio | arXiv 2407.14358; Stability-AI/stable-audio-tools, models/transformer.py |
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from losatok_ext.nn import DiTBlockConfig


def heads_of(x, size):
    """[B, T, H h] as [B, H, T, h]."""
    return x.unflatten(-1, (-1, size)).transpose(1, 2)


def attend(q, k, v, key_mask=None):
    """Softmax attention over [B, H, T, h]; ``key_mask`` [B, S] is True at keys that count."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[:, None, None], -math.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def rotate_halves(x, angles):
    """Pairs (i, i + n / 2) of the first n features turn; angles [T, n / 2]."""
    n = 2 * angles.shape[1]
    a, b = x[..., : n // 2], x[..., n // 2 : n]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat([a * cos - b * sin, a * sin + b * cos, x[..., n:]], dim=-1)


def rotate_neighbours(x, angles):
    """Pairs (2i, 2i + 1) turn: a complex product, in float32 at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    pairs = torch.view_as_complex(x.to(wide).unflatten(-1, (-1, 2)).contiguous())
    turn = torch.polar(torch.ones_like(angles), angles).to(pairs.dtype)
    return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)


def angles(time, dim):
    return torch.outer(torch.arange(time).double(), 10000.0 ** (-torch.arange(0, dim, 2).double() / dim))


def layer_norm(x, weight=None, bias=None, eps=1e-6):
    centred = x - x.mean(-1, keepdim=True)
    normal = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    normal = normal if weight is None else normal * weight
    return normal if bias is None else normal + bias


def new(*shape):
    return nn.Parameter(torch.randn(shape) / (shape[-1] ** 0.5 if len(shape) > 1 else 3))


def near_one(size):
    return nn.Parameter(1 + torch.randn(size) / 4)


class FacebookDiT(nn.Module):
    """adaLN-zero: six parts of one linear map; attention and a tanh-GELU MLP, gated by g; norms without weights."""

    width, size, condition_dim = 64, 32, 64
    config = DiTBlockConfig(width=64, heads=2)
    extras = ()

    def __init__(self):
        super().__init__()
        c = self.width
        self.qkv_weight, self.qkv_bias = new(3 * c, c), new(3 * c)
        self.proj_weight, self.proj_bias = new(c, c), new(c)
        self.fc1_weight, self.fc1_bias = new(4 * c, c), new(4 * c)
        self.fc2_weight, self.fc2_bias = new(c, 4 * c), new(c)
        self.ada_weight, self.ada_bias = new(6 * c, c), new(6 * c)

    def forward(self, x, condition, mask):
        parts = F.linear(F.silu(condition), self.ada_weight, self.ada_bias)[:, None].chunk(6, dim=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        h = layer_norm(x) * (1 + scale1) + shift1
        q, k, v = (heads_of(y, self.size) for y in F.linear(h, self.qkv_weight, self.qkv_bias).chunk(3, dim=-1))
        x = x + gate1 * F.linear(attend(q, k, v, mask), self.proj_weight, self.proj_bias)
        h = layer_norm(x) * (1 + scale2) + shift2
        h = F.gelu(F.linear(h, self.fc1_weight, self.fc1_bias), approximate="tanh")
        return x + gate2 * F.linear(h, self.fc2_weight, self.fc2_bias)

    def pairs(self, block):
        return [
            (block.attention.qkv.weight, [self.qkv_weight]),
            (block.attention.qkv.bias, [self.qkv_bias]),
            (block.attention.out.weight, [self.proj_weight]),
            (block.attention.out.bias, [self.proj_bias]),
            (block.mlp.fc1.weight, [self.fc1_weight]),
            (block.mlp.fc1.bias, [self.fc1_bias]),
            (block.mlp.fc2.weight, [self.fc2_weight]),
            (block.mlp.fc2.bias, [self.fc2_bias]),
            (block.modulation.linear.weight, [self.ada_weight]),
            (block.modulation.linear.bias, [self.ada_bias]),
        ]


class UniFlowAudio(nn.Module):
    """An EzAudio block with time-aligned addition: long skip with a norm, affine norms, layer QK norm with biases,
    rotary halves, tanh(1 - g) on attention and 1 - g on a GEGLU MLP, ungated cross-attention to a normalised context.
    """

    width, size, condition_dim = 64, 32, 64
    aligned_dim, context_dim, eps = 24, 40, 1e-5
    options: ClassVar = {"modulation": "block"}
    extras = ("aligned", "context", "skip")

    def __init__(self):
        super().__init__()
        c, size = self.width, self.size
        self.config = DiTBlockConfig(
            width=c, heads=2, activation="geglu", norm_weights="affine", norm_eps=self.eps, qkv_bias=False,
            qk_norm="layer", qk_bias=True, qk_eps=self.eps, rotary_dim=size, gate="tanh(1-g)", mlp_gate="1-g",
            aligned_dim=self.aligned_dim, aligned_norm=True, context_dim=self.context_dim, context_norm=True,
            skip=True, skip_norm=True, **self.options,
        )  # fmt: skip
        for name, dim in (("1", c), ("2", c), ("3", c), ("_ta", self.aligned_dim), ("_ctx", self.context_dim),
                          ("_skip", 2 * c), ("_q", size), ("_k", size), ("_cq", size), ("_ck", size)):  # fmt: skip
            self.register_parameter(f"norm{name}_weight", near_one(dim))
            self.register_parameter(f"norm{name}_bias", new(dim))
        self.to_q, self.to_k, self.to_v = new(c, c), new(c, c), new(c, c)
        self.proj_weight, self.proj_bias = new(c, c), new(c)
        self.cross_q, self.cross_k, self.cross_v = new(c, c), new(c, self.context_dim), new(c, self.context_dim)
        self.cross_proj_weight, self.cross_proj_bias = new(c, c), new(c)
        self.skip_weight, self.skip_bias = new(c, 2 * c), new(c)
        self.ta_weight = new(c, self.aligned_dim)
        self.geglu_weight, self.geglu_bias = new(8 * c, c), new(8 * c)
        self.mlp_weight, self.mlp_bias = new(c, 4 * c), new(c)
        self.make_modulation()

    def make_modulation(self):
        self.ada_weight, self.ada_bias = new(6 * self.width, self.width), new(6 * self.width)

    def modulate(self, condition, shared):
        return F.linear(F.silu(condition), self.ada_weight, self.ada_bias)

    def norm(self, name, x):
        return layer_norm(x, getattr(self, f"norm{name}_weight"), getattr(self, f"norm{name}_bias"), self.eps)

    def forward(self, x, condition, mask, aligned, context, skip, context_mask, shared=None):
        x = F.linear(self.norm("_skip", torch.cat([x, skip], dim=-1)), self.skip_weight, self.skip_bias)
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulate(condition, shared)[:, None].chunk(6, dim=-1)
        h = self.norm("1", x) * (1 + scale1) + shift1
        turn = angles(x.shape[1], self.size)
        q = rotate_halves(self.norm("_q", heads_of(F.linear(h, self.to_q), self.size)), turn)
        k = rotate_halves(self.norm("_k", heads_of(F.linear(h, self.to_k), self.size)), turn)
        v = heads_of(F.linear(h, self.to_v), self.size)
        x = x + torch.tanh(1 - gate1) * F.linear(attend(q, k, v, mask), self.proj_weight, self.proj_bias)
        x = x + F.linear(self.norm("_ta", aligned), self.ta_weight)
        h, context = self.norm("2", x), self.norm("_ctx", context)
        q = self.norm("_cq", heads_of(F.linear(h, self.cross_q), self.size))
        k = self.norm("_ck", heads_of(F.linear(context, self.cross_k), self.size))
        v = heads_of(F.linear(context, self.cross_v), self.size)
        x = x + F.linear(attend(q, k, v, context_mask), self.cross_proj_weight, self.cross_proj_bias)
        h = self.norm("3", x) * (1 + scale2) + shift2
        value, gate = F.linear(h, self.geglu_weight, self.geglu_bias).chunk(2, dim=-1)
        return x + (1 - gate2) * F.linear(value * F.gelu(gate), self.mlp_weight, self.mlp_bias)

    def modulation_pairs(self, modulation):
        return [(modulation.linear.weight, [self.ada_weight]), (modulation.linear.bias, [self.ada_bias])]

    def pairs(self, block):
        found = [
            (block.attention.qkv.weight, [self.to_q, self.to_k, self.to_v]),
            (block.attention.out.weight, [self.proj_weight]),
            (block.attention.out.bias, [self.proj_bias]),
            (block.cross_attention.q.weight, [self.cross_q]),
            (block.cross_attention.kv.weight, [self.cross_k, self.cross_v]),
            (block.cross_attention.out.weight, [self.cross_proj_weight]),
            (block.cross_attention.out.bias, [self.cross_proj_bias]),
            (block.skip.weight, [self.skip_weight]),
            (block.skip.bias, [self.skip_bias]),
            (block.aligned.weight, [self.ta_weight]),
            (block.mlp.fc1.weight, [self.geglu_weight]),
            (block.mlp.fc1.bias, [self.geglu_bias]),
            (block.mlp.fc2.weight, [self.mlp_weight]),
            (block.mlp.fc2.bias, [self.mlp_bias]),
        ]
        norms = {
            "1": block.attention_norm, "2": block.cross_norm, "3": block.mlp_norm, "_ta": block.aligned_norm,
            "_ctx": block.context_norm, "_skip": block.skip_norm,
        }  # fmt: skip
        for name, norm in norms.items():
            found += [(getattr(norm, kind), [getattr(self, f"norm{name}_{kind}")]) for kind in ("weight", "bias")]
        for mine, theirs in (("_q", block.attention), ("_cq", block.cross_attention)):
            for kind in ("weight", "bias"):
                found.append((getattr(theirs, f"q_{kind}"), [getattr(self, f"norm{mine}_{kind}")]))
                found.append((getattr(theirs, f"k_{kind}"), [getattr(self, f"norm{mine[:-1]}k_{kind}")]))
        return found + self.modulation_pairs(block.modulation)


class UniFlowAudioSOLA(UniFlowAudio):
    """The same with adaLN-SOLA: what all blocks share, a low-rank map (alpha / rank = 2) and a table of its own."""

    rank = 3
    options: ClassVar = {"modulation": "shared", "modulation_rank": 3}
    extras = ("aligned", "context", "skip", "shared")

    def make_modulation(self):
        self.lora_a, self.lora_b = new(6 * self.rank, self.width), new(6 * self.width, 6 * self.rank)
        self.table = new(6, self.width)

    def modulate(self, condition, shared):
        low = F.linear(F.linear(F.silu(condition), self.lora_a), self.lora_b)
        return shared + 2 * low + self.table.flatten()

    def modulation_pairs(self, modulation):
        return [(modulation.down.weight, [self.lora_a]), (modulation.table, [self.table])]

    def scaled_pairs(self, block):
        """(ours, theirs, factor): alpha / rank is part of our second map."""
        return [(block.modulation.up.weight, self.lora_b, 2.0)]


class F5TTS(nn.Module):
    """adaLN-zero with separate projections, a head size of its own, rotary neighbours, RMS QK norm, tanh GELU."""

    width, size, heads, condition_dim = 48, 32, 2, 48
    rotary_heads = 0
    extras = ()

    def __init__(self):
        super().__init__()
        c, inner = self.width, self.heads * self.size
        self.config = DiTBlockConfig(
            width=c, heads=self.heads, head_dim=self.size, mlp_ratio=2, qk_norm="rms", rotary_dim=self.size,
            rotary_interleaved=True, rotary_heads=self.rotary_heads,
        )  # fmt: skip
        for name in ("to_q", "to_k", "to_v"):
            self.register_parameter(f"{name}_weight", new(inner, c))
            self.register_parameter(f"{name}_bias", new(inner))
        self.q_norm, self.k_norm = near_one(self.size), near_one(self.size)
        self.out_weight, self.out_bias = new(c, inner), new(c)
        self.ff_in_weight, self.ff_in_bias = new(2 * c, c), new(2 * c)
        self.ff_out_weight, self.ff_out_bias = new(c, 2 * c), new(c)
        self.ada_weight, self.ada_bias = new(6 * c, c), new(6 * c)

    def forward(self, x, condition, mask):
        parts = F.linear(F.silu(condition), self.ada_weight, self.ada_bias).chunk(6, dim=1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (part.unsqueeze(1) for part in parts)
        h = layer_norm(x) * (1 + scale_a) + shift_a
        q = heads_of(F.linear(h, self.to_q_weight, self.to_q_bias), self.size)
        k = heads_of(F.linear(h, self.to_k_weight, self.to_k_bias), self.size)
        v = heads_of(F.linear(h, self.to_v_weight, self.to_v_bias), self.size)
        q, k = ((y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt()) * w
                for y, w in ((q, self.q_norm), (k, self.k_norm)))  # fmt: skip
        some = self.rotary_heads or self.heads
        turn = angles(x.shape[1], self.size)
        q, k = (torch.cat([rotate_neighbours(y[:, :some], turn), y[:, some:]], dim=1) for y in (q, k))
        out = F.linear(attend(q, k, v, mask), self.out_weight, self.out_bias)
        if mask is not None:
            out = out.masked_fill(~mask[..., None], 0.0)
        x = x + gate_a * out
        h = layer_norm(x) * (1 + scale_m) + shift_m
        h = F.gelu(F.linear(h, self.ff_in_weight, self.ff_in_bias), approximate="tanh")
        return x + gate_m * F.linear(h, self.ff_out_weight, self.ff_out_bias)

    def pairs(self, block):
        return [
            (block.attention.qkv.weight, [self.to_q_weight, self.to_k_weight, self.to_v_weight]),
            (block.attention.qkv.bias, [self.to_q_bias, self.to_k_bias, self.to_v_bias]),
            (block.attention.q_weight, [self.q_norm]),
            (block.attention.k_weight, [self.k_norm]),
            (block.attention.out.weight, [self.out_weight]),
            (block.attention.out.bias, [self.out_bias]),
            (block.mlp.fc1.weight, [self.ff_in_weight]),
            (block.mlp.fc1.bias, [self.ff_in_bias]),
            (block.mlp.fc2.weight, [self.ff_out_weight]),
            (block.mlp.fc2.bias, [self.ff_out_bias]),
            (block.modulation.linear.weight, [self.ada_weight]),
            (block.modulation.linear.bias, [self.ada_bias]),
        ]


class F5TTSFirstRelease(F5TTS):
    """The first release turned the first head alone (pe_attn_head = 1)."""

    rotary_heads = 1


class StableAudio(nn.Module):
    """adaLN as scale, shift, gate without bias, sigmoid(1 - g); norms with a scale alone; rotary on half a head;
    SwiGLU; cross-attention whose keys and values have as many heads as fit the context.
    """

    width, size, condition_dim, context_dim = 128, 32, 80, 64
    modulated = True
    extras = ("context",)

    def __init__(self):
        super().__init__()
        c, kv = self.width, self.context_dim
        modulation = {"condition_dim": self.condition_dim, "modulation_bias": False, "gate": "sigmoid(1-g)",
                      "modulation_order": "scale shift gate"} if self.modulated else {"modulation": "none"}  # fmt: skip
        norm = {"qk_norm": "layer", "qk_bias": True} if self.modulated else {"qk_norm": "rms", "qk_eps": 1e-24}
        self.config = DiTBlockConfig(
            width=c, heads=4, activation="swiglu", norm_weights="scale", norm_eps=1e-5, qkv_bias=False, out_bias=False,
            rotary_dim=16, context_dim=kv, context_heads=kv // self.size, **norm, **modulation,
        )  # fmt: skip
        self.gamma1, self.gamma2, self.gamma3 = near_one(c), near_one(c), near_one(c)
        self.to_qkv, self.to_out = new(3 * c, c), new(c, c)
        self.cross_to_q, self.cross_to_kv, self.cross_to_out = new(c, c), new(2 * kv, kv), new(c, c)
        self.glu_weight, self.glu_bias = new(8 * c, c), new(8 * c)
        self.ff_weight, self.ff_bias = new(c, 4 * c), new(c)
        if self.modulated:
            self.ada = new(6 * c, self.condition_dim)
            for name in ("q", "k", "cross_q", "cross_k"):
                self.register_parameter(f"{name}_norm_weight", near_one(self.size))
                self.register_parameter(f"{name}_norm_bias", new(self.size))

    def qk_norm(self, name, x):
        if not self.modulated:
            return F.normalize(x, dim=-1)
        return layer_norm(x, getattr(self, f"{name}_norm_weight"), getattr(self, f"{name}_norm_bias"))

    def forward(self, x, condition, mask, context, context_mask):
        zero = x.new_zeros(())
        parts = (zero,) * 6
        if self.modulated:
            parts = F.linear(F.silu(condition), self.ada).unsqueeze(1).chunk(6, dim=-1)
        scale1, shift1, gate1, scale2, shift2, gate2 = parts
        gate1, gate2 = (torch.sigmoid(1 - g) if self.modulated else 1 for g in (gate1, gate2))
        h = layer_norm(x, self.gamma1, eps=1e-5) * (1 + scale1) + shift1
        q, k, v = (heads_of(y, self.size) for y in F.linear(h, self.to_qkv).chunk(3, dim=-1))
        turn = angles(x.shape[1], self.size // 2)
        q, k = rotate_halves(self.qk_norm("q", q), turn), rotate_halves(self.qk_norm("k", k), turn)
        x = x + gate1 * F.linear(attend(q, k, v, mask), self.to_out)
        h = layer_norm(x, self.gamma2, eps=1e-5)
        q = self.qk_norm("cross_q", heads_of(F.linear(h, self.cross_to_q), self.size))
        k, v = (heads_of(y, self.size) for y in F.linear(context, self.cross_to_kv).chunk(2, dim=-1))
        k, v = (y.repeat_interleave(2, dim=1) for y in (self.qk_norm("cross_k", k), v))
        x = x + F.linear(attend(q, k, v, context_mask), self.cross_to_out)
        h = layer_norm(x, self.gamma3, eps=1e-5) * (1 + scale2) + shift2
        value, gate = F.linear(h, self.glu_weight, self.glu_bias).chunk(2, dim=-1)
        return x + gate2 * F.linear(value * F.silu(gate), self.ff_weight, self.ff_bias)

    def pairs(self, block):
        found = [
            (block.attention_norm.weight, [self.gamma1]),
            (block.cross_norm.weight, [self.gamma2]),
            (block.mlp_norm.weight, [self.gamma3]),
            (block.attention.qkv.weight, [self.to_qkv]),
            (block.attention.out.weight, [self.to_out]),
            (block.cross_attention.q.weight, [self.cross_to_q]),
            (block.cross_attention.kv.weight, [self.cross_to_kv]),
            (block.cross_attention.out.weight, [self.cross_to_out]),
            (block.mlp.fc1.weight, [self.glu_weight]),
            (block.mlp.fc1.bias, [self.glu_bias]),
            (block.mlp.fc2.weight, [self.ff_weight]),
            (block.mlp.fc2.bias, [self.ff_bias]),
        ]
        if self.modulated:
            found.append((block.modulation.linear.weight, [self.ada]))
            for ours, prefix in ((block.attention, ""), (block.cross_attention, "cross_")):
                for side in ("q", "k"):
                    for kind in ("weight", "bias"):
                        theirs = getattr(self, f"{prefix}{side}_norm_{kind}")
                        found.append((getattr(ours, f"{side}_{kind}"), [theirs]))
        return found


class StableAudioPrepended(StableAudio):
    """Stable Audio Open: the condition comes as a first frame instead of adaLN; queries and keys are unit vectors,
    which is an RMS norm with weights 1 / sqrt(h).
    """

    modulated = False

    def fixed(self, block):
        """Weights of ours that theirs has as constants."""
        names = ("q_weight", "k_weight")
        return [getattr(layer, name) for layer in (block.attention, block.cross_attention) for name in names]
