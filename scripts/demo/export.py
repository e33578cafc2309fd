"""Writes a checkpoint as the GGUF that llama.cpp loads as architecture "qwen2"."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from . import vocab
from .net import Shape

# Qwen2.5's ChatML without tools, and without a system message of its own.
CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
# The demo copies and counts, which a repetition penalty can only harm; it knows one right answer, so it stays cool.
SAMPLING_TEMP, SAMPLING_TOP_K, SAMPLING_TOP_P, SAMPLING_PENALTY_REPEAT = 0.2, 20, 0.8, 1.0
LICENCE = "apache-2.0"


def average(checkpoints: list[Path], path: Path) -> None:
    """The mean of the checkpoints' weights, with the last one's optimizers: better than each where they are close."""
    saved = [torch.load(checkpoint, weights_only=True) for checkpoint in checkpoints]
    mean = {name: sum(each["net"][name] for each in saved) / len(saved) for name in saved[-1]["net"]}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({**saved[-1], "net": mean}, path)


def write(checkpoint: Path, path: Path) -> None:
    """`checkpoint` is one of train.save; `path` appears only once it is complete."""
    weights = torch.load(checkpoint, weights_only=True)["net"]
    tokenizer = vocab.build()
    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "qwen2")
    _metadata(writer, Shape(n_vocab=tokenizer.get_vocab_size()))
    _tokenizer(writer, tokenizer)
    for name, tensor in weights.items():
        writer.add_tensor(_gguf_name(name), _stored(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.replace(path)


def _gguf_name(name: str) -> str:
    return "blk." + name.removeprefix("layers.") if name.startswith("layers.") else name


def _stored(tensor: Tensor) -> np.ndarray:
    """Matrices as F16, vectors (norms, biases) as F32, as llama.cpp's own converter stores them."""
    values: np.ndarray = tensor.numpy().astype(np.float16 if tensor.ndim == 2 else np.float32)
    return values


def _metadata(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_name("Sparrow demo")
    writer.add_description("A tiny model of the Qwen2 architecture with a few skills that can be checked.")
    writer.add_license(LICENCE)
    writer.add_languages(["en", "zh"])
    writer.add_size_label("4M")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(shape.n_ctx)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_float32("general.sampling.temp", SAMPLING_TEMP)
    writer.add_int32("general.sampling.top_k", SAMPLING_TOP_K)
    writer.add_float32("general.sampling.top_p", SAMPLING_TOP_P)
    writer.add_float32("general.sampling.penalty_repeat", SAMPLING_PENALTY_REPEAT)


def _tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    model = json.loads(tokenizer.to_str())["model"]
    tokens = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
    kinds = [gguf.TokenType.CONTROL if token in vocab.SPECIAL else gguf.TokenType.NORMAL for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_eos_token_id(tokenizer.token_to_id("<|im_end|>"))
    writer.add_pad_token_id(tokenizer.token_to_id("<|endoftext|>"))
    writer.add_bos_token_id(tokenizer.token_to_id("<|endoftext|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
