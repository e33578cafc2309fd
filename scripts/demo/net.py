"""The network in PyTorch, written so that llama.cpp's architecture "qwen2" computes the same."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """All row lengths are multiples of 256, so every quant type of llama.cpp fits without a fallback."""

    n_vocab: int
    n_layer: int = 5
    n_embd: int = 256
    n_head: int = 4
    n_ff: int = 512
    n_ctx: int = 4096
    rope_base: float = 1e6
    norm_eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head


def rope_table(shape: Shape, n_pos: int) -> tuple[Tensor, Tensor]:
    """cos and sin, each (n_pos, head_dim / 2); NEOX style: dimension i turns with i + head_dim / 2."""
    half = shape.head_dim // 2
    angle = torch.outer(torch.arange(n_pos).float(), shape.rope_base ** (-torch.arange(half) / half))
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (rows, heads, time, head_dim); cos, sin (rows, 1, time, head_dim / 2)."""
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


class RMSNorm(nn.Module):  # type: ignore[misc]
    def __init__(self, n: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(n)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Layer(nn.Module):  # type: ignore[misc]
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        n, self.n_head = shape.n_embd, shape.n_head
        self.attn_norm, self.ffn_norm = RMSNorm(n, shape.norm_eps), RMSNorm(n, shape.norm_eps)
        self.attn_q, self.attn_k, self.attn_v = (nn.Linear(n, n) for _ in range(3))
        self.attn_output = nn.Linear(n, n, bias=False)
        self.ffn_gate, self.ffn_up = nn.Linear(n, shape.n_ff, bias=False), nn.Linear(n, shape.n_ff, bias=False)
        self.ffn_down = nn.Linear(shape.n_ff, n, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows, time, n = x.shape
        h = self.attn_norm(x)
        q, k, v = (
            linear(h).view(rows, time, self.n_head, -1).transpose(1, 2)
            for linear in (self.attn_q, self.attn_k, self.attn_v)
        )
        q, k = rotate(q, cos, sin).type_as(v), rotate(k, cos, sin).type_as(v)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn_output(mixed.transpose(1, 2).reshape(rows, time, n))
        h = self.ffn_norm(x)
        return x + self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))


class Net(nn.Module):  # type: ignore[misc]
    def __init__(self, shape: Shape, n_pos: int = 8192) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.n_vocab, shape.n_embd)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.n_layer))
        self.output_norm = RMSNorm(shape.n_embd, shape.norm_eps)
        cos, sin = rope_table(shape, n_pos)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._init()

    def _init(self) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith(("attn_output.weight", "ffn_down.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.shape.n_layer))
            elif parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.05 if "token_embd" in name else 0.04)
        look_back(self.layers[0], self.shape, distances=(1, 2, 3))

    def forward(self, ids: Tensor, positions: Tensor, at: Tensor) -> Tensor:
        """ids, positions (rows, time); at: flat indices of the tokens whose logits are wanted -> (len(at), n_vocab)."""
        cos, sin = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)
        x = self.token_embd(ids)
        for layer in self.layers:
            x = layer(x, cos, sin)
        picked = self.output_norm(x.flatten(0, 1)[at])
        return F.linear(picked, self.token_embd.weight)


def look_back(layer: nn.Module, shape: Shape, distances: tuple[int, ...], strength: float = 6.0) -> None:
    """Start head h of a layer as "attend to the token `distances[h]` back", by its biases alone.

    RoPE turns a constant query and a constant key by their positions, so their product depends on the distance only.
    Copying needs such heads, and a network takes hundreds of steps to find them by itself.
    """
    half, n_fast = shape.head_dim // 2, 8
    speed = shape.rope_base ** (-torch.arange(half) / half)
    size = torch.where(torch.arange(half) < n_fast, strength, 0.0)
    with torch.no_grad():
        for head, distance in enumerate(distances):
            row = slice(head * shape.head_dim, (head + 1) * shape.head_dim)
            layer.attn_k.bias[row] = torch.cat((size, torch.zeros(half)))
            angle = -speed * distance
            layer.attn_q.bias[row] = torch.cat((size * angle.cos(), size * angle.sin()))
