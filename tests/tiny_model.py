"""A random model with Qwen2's architecture, written in milliseconds: what llama.cpp needs to load and decode, no more.

The vocabulary is byte-level BPE with the qwen2 pre-tokenizer: 256 bytes, runs of spaces up to one token of 60 bytes
(longer than the 32 that some detokenizers can hold), an emoji and the two halves of it that are no valid UTF-8 alone,
and the ChatML specials as control tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import gguf
import numpy as np
import numpy.typing as npt

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LONG_TOKEN = " " * 60
EMOJI = "😀"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif -%}"
)
HEAD_SIZE = 32

Array = npt.NDArray[np.float32]


def _byte_letters() -> list[str]:
    """GPT-2's way to write each byte as one printable letter."""
    plain = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


LETTERS = _byte_letters()


def spell(text: str) -> str:
    """Text as the vocabulary of a byte-level BPE spells it."""
    return "".join(LETTERS[byte] for byte in text.encode())


def _merges() -> list[tuple[str, str]]:
    """Pairs in order of rank: 60 spaces and the emoji each become one token."""
    space, emoji = spell(" "), spell(EMOJI)
    doubled = [(space * n, space * n) for n in (1, 2, 4, 8, 16)]
    joined = [(space * left, space * right) for left, right in ((32, 16), (48, 8), (56, 4))]
    return [*doubled, *joined, (emoji[0], emoji[1]), (emoji[2], emoji[3]), (emoji[:2], emoji[2:])]


def vocabulary() -> list[str]:
    """Every token as the GGUF spells it; a token's place is its id."""
    return [*LETTERS, *(left + right for left, right in _merges()), *SPECIALS]


def _add_vocabulary(writer: gguf.GGUFWriter) -> None:
    tokens = vocabulary()
    kinds = [gguf.TokenType.CONTROL if token in SPECIALS else gguf.TokenType.NORMAL for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([f"{left} {right}" for left, right in _merges()])
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_pad_token_id(tokens.index("<|endoftext|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _add_shapes(writer: gguf.GGUFWriter, n_layer: int, n_embd: int, n_ctx_train: int) -> None:
    writer.add_name("Sparrow tiny test model")
    writer.add_block_count(n_layer)
    writer.add_context_length(n_ctx_train)
    writer.add_embedding_length(n_embd)
    writer.add_feed_forward_length(2 * n_embd)
    writer.add_head_count(n_embd // HEAD_SIZE)
    writer.add_head_count_kv(1)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)


def _tensors(rng: np.random.Generator, n_layer: int, n_embd: int) -> dict[str, Array]:
    """Weights that keep activations near 1; the layers outweigh the embedding, so that logits depend on the context."""

    def matrix(n_out: int, n_in: int, scale: float = 1.0) -> Array:
        weights: Array = rng.standard_normal((n_out, n_in)) * (scale / np.sqrt(n_in))
        return weights.astype(np.float32)

    def norm() -> Array:
        return rng.uniform(0.8, 1.2, n_embd).astype(np.float32)

    made = {"token_embd.weight": matrix(len(vocabulary()), n_embd, 3.0), "output_norm.weight": norm()}
    for layer in range(n_layer):
        widths = {"attn_q": n_embd, "attn_k": HEAD_SIZE, "attn_v": HEAD_SIZE}
        block: dict[str, Array] = {"attn_norm.weight": norm(), "ffn_norm.weight": norm()}
        for name, width in widths.items():
            block[f"{name}.weight"] = matrix(width, n_embd, 2.0)
            block[f"{name}.bias"] = matrix(1, width).reshape(-1)
        block["attn_output.weight"] = matrix(n_embd, n_embd, 2.0)
        block["ffn_gate.weight"] = matrix(2 * n_embd, n_embd)
        block["ffn_up.weight"] = matrix(2 * n_embd, n_embd)
        block["ffn_down.weight"] = matrix(n_embd, 2 * n_embd, 2.0)
        made |= {f"blk.{layer}.{name}": tensor for name, tensor in block.items()}
    return made


def write_tiny_model(
    path: Path,
    *,
    n_layer: int = 2,
    n_embd: int = 256,
    seed: int = 0,
    n_ctx_train: int = 2048,
    output: Literal["tied", "equal", "different"] = "tied",
    dtype: Literal["F16", "F32"] = "F16",
) -> Path:
    """Write the model and return its path. n_embd is a multiple of 32; one that is not of 256 makes K-quants fall back.

    output: "tied" has no output.weight, "equal" a bit-by-bit copy of token_embd.weight, "different" one of its own.
    """
    assert n_embd % HEAD_SIZE == 0, f"n_embd {n_embd} is no multiple of {HEAD_SIZE}"
    rng = np.random.default_rng(seed)
    tensors = _tensors(rng, n_layer, n_embd)
    if output != "tied":
        embedding = tensors["token_embd.weight"]
        tensors["output.weight"] = embedding if output == "equal" else embedding[::-1].copy()
    writer = gguf.GGUFWriter(path, "qwen2")
    _add_shapes(writer, n_layer, n_embd, n_ctx_train)
    _add_vocabulary(writer)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if dtype == "F16" else gguf.LlamaFileType.ALL_F32)
    for name, tensor in tensors.items():
        half = dtype == "F16" and tensor.ndim == 2
        writer.add_tensor(name, tensor.astype(np.float16) if half else tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
