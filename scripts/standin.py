"""A GGUF with Qwen2.5-0.5B's exact shapes, random weights and a made-up vocabulary: its speed without a download.

What a step costs depends on the shapes and types of the tensors, not on their values, so this file measures what the
real one would. It answers with random text. 994 MB as F16.

    python3 scripts/standin.py                 writes models/standin-f16.gguf
    python3 scripts/bench.py --standin         writes it where it is missing, quantizes it and measures
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice, product
from pathlib import Path
from string import ascii_lowercase
from typing import BinaryIO, cast

import bootstrap

if __name__ == "__main__":
    bootstrap.enter()

import console
import folder
import numpy as np
from gguf import GGUFWriter, LlamaFileType, TokenType
from gguf.vocab import bytes_to_unicode
from numpy.typing import NDArray
from tqdm import tqdm

from server.errors import UsageError

DEFAULT_PATH = Path(__file__).resolve().parent.parent / "models" / "standin-f16.gguf"
CHUNK_VALUES = 1 << 22  # 4 Mi values at a time: 25 MB of memory, whatever the tensor's size
METADATA_BYTES = 8_000_000  # room for the vocabulary when the free disk is checked; it takes 5.2 MB

# ChatML, with the system message that Qwen2.5 puts where a conversation has none.
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of a Qwen2 model; the defaults are Qwen2.5-0.5B's. n_text: ids below it are text, the rest special."""

    n_layers: int = 24
    n_embd: int = 896
    n_head: int = 14
    n_head_kv: int = 2
    n_ff: int = 4864
    n_vocab: int = 151_936
    n_text: int = 151_643
    n_ctx: int = 32_768

    @property
    def n_kv(self) -> int:
        """Values of K, or of V, that one token has in one layer."""
        return self.n_embd // self.n_head * self.n_head_kv


QWEN = Shape()


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the plan. Matrices (rows, columns) are F16, vectors (norms and biases) F32."""

    name: str
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[np.float16] | np.dtype[np.float32]:
        return np.dtype(np.float16) if len(self.shape) == 2 else np.dtype(np.float32)

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def plan(shape: Shape) -> list[Tensor]:
    """Every tensor in the file's order. No output.weight: the embeddings are tied, as in Qwen2.5-0.5B."""
    tensors = [Tensor("token_embd.weight", (shape.n_vocab, shape.n_embd))]
    for layer in range(shape.n_layers):
        tensors += [Tensor(f"blk.{layer}.{name}", size) for name, size in _layer(shape).items()]
    return [*tensors, Tensor("output_norm.weight", (shape.n_embd,))]


def _layer(shape: Shape) -> dict[str, tuple[int, ...]]:
    return {
        "attn_norm.weight": (shape.n_embd,),
        "attn_q.weight": (shape.n_embd, shape.n_embd),
        "attn_q.bias": (shape.n_embd,),
        "attn_k.weight": (shape.n_kv, shape.n_embd),
        "attn_k.bias": (shape.n_kv,),
        "attn_v.weight": (shape.n_kv, shape.n_embd),
        "attn_v.bias": (shape.n_kv,),
        "attn_output.weight": (shape.n_embd, shape.n_embd),
        "ffn_norm.weight": (shape.n_embd,),
        "ffn_gate.weight": (shape.n_ff, shape.n_embd),
        "ffn_up.weight": (shape.n_ff, shape.n_embd),
        "ffn_down.weight": (shape.n_embd, shape.n_ff),
    }


def _pairs() -> Iterator[tuple[bytes, bytes]]:
    """Merges without end: letter pairs and triples with and without a space before, Chinese characters, then words."""
    letters = [letter.encode() for letter in ascii_lowercase]
    pairs = [a + b for a, b in product(letters, letters)]
    triples = [pair + letter for pair, letter in product(pairs, letters)]
    yield from product(letters, letters)
    yield from product([b" "], [*letters, *pairs])
    yield from product(pairs, letters)
    yield from product([b" "], triples)
    # U+4E00 to U+9FFF begin with the bytes E4 to E9: two merges make one character.
    heads = list(product([bytes([lead]) for lead in range(0xE4, 0xEA)], _continuation_bytes()))
    yield from heads
    yield from product([a + b for a, b in heads], _continuation_bytes())
    # Seven bytes each, so that the vocabulary is about as large as Qwen's; the stride only mixes the letters.
    yield from (
        (b" " + triples[n % len(triples)], triples[(n * 7919 + n // len(triples)) % len(triples)]) for n in count()
    )


def _continuation_bytes() -> list[bytes]:
    return [bytes([value]) for value in range(0x80, 0xC0)]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A byte-level BPE: texts[id] are a token's bytes, the specials' names last; merges in order of their rank."""

    texts: list[bytes]
    n_text: int
    merges: list[tuple[bytes, bytes]]

    def is_said(self, token: int) -> bool:
        """True for a space and one or two letters: whatever text they make, it is tokenized into the same tokens again.

        So is nearly all that a trained model says; random text of all tokens would be read anew at each turn.
        """
        text = self.texts[token]
        return len(text) in (2, 3) and text[:1] == b" " and text[1:].isalpha()


def vocabulary(shape: Shape) -> Vocabulary:
    """The bytes in GPT-2's order, merges up to n_text, ChatML's specials at Qwen's places, then unused ones."""
    single = [bytes([value]) for value in bytes_to_unicode()]
    merges = list(islice(_pairs(), shape.n_text - len(single)))
    specials = [b"<|endoftext|>", b"<|im_start|>", b"<|im_end|>"]
    unused = [b"<|unused_%d|>" % n for n in range(shape.n_vocab - shape.n_text - len(specials))]
    return Vocabulary([*single, *(a + b for a, b in merges), *specials, *unused], shape.n_text, merges)


def _add_metadata(writer: GGUFWriter, shape: Shape) -> None:
    writer.add_name("Stand-in with Qwen2.5-0.5B's shapes and random weights")
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    writer.add_context_length(shape.n_ctx)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layers)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_layer_norm_rms_eps(1e-6)


def _add_vocabulary(writer: GGUFWriter, words: Vocabulary) -> None:
    letters = bytes_to_unicode()

    def spelt(text: bytes) -> str:
        return "".join(letters[value] for value in text)

    n_unused = len(words.texts) - words.n_text - 3
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([spelt(text) for text in words.texts])
    writer.add_token_types([TokenType.NORMAL] * words.n_text + [TokenType.CONTROL] * 3 + [TokenType.UNUSED] * n_unused)
    writer.add_token_merges([f"{spelt(a)} {spelt(b)}" for a, b in words.merges])
    writer.add_eos_token_id(words.n_text + 2)
    writer.add_bos_token_id(words.n_text)
    writer.add_pad_token_id(words.n_text)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


class RandomTensor:
    """What GGUFWriter takes for an array, made while it is written, chunk by chunk. Same seed, same bytes."""

    def __init__(self, tensor: Tensor, seed: list[int], row_scale: NDArray[np.float32] | None = None) -> None:
        self.tensor = tensor
        self.dtype = tensor.dtype
        self.nbytes = tensor.n_bytes
        self._random = np.random.default_rng(seed)
        self._row_scale = row_scale

    def tofile(self, file: BinaryIO) -> None:
        for first, last in self._row_ranges():
            file.write(self._rows(first, last).astype(self.dtype).tobytes())

    def _row_ranges(self) -> Iterator[tuple[int, int]]:
        n_rows, step = self.tensor.shape[0], max(1, CHUNK_VALUES // self.tensor.shape[-1])
        return ((first, min(first + step, n_rows)) for first in range(0, n_rows, step))

    def _rows(self, first: int, last: int) -> NDArray[np.float32]:
        """Norms are near 1. Matrices keep the size of what goes through them, so that no value overflows F16."""
        values = self._random.standard_normal((last - first, *self.tensor.shape[1:]), dtype=np.float32)
        if self.tensor.name.endswith("norm.weight"):
            return 1 + 0.05 * values
        values *= 0.02 if len(self.tensor.shape) == 1 else self.tensor.shape[1] ** -0.5
        return values if self._row_scale is None else values * self._row_scale[first:last, None]


def _embedding_scale(words: Vocabulary) -> NDArray[np.float32]:
    """Tied embeddings make the logits: quiet rows keep all other tokens out of the random text."""
    return np.array([1.0 if words.is_said(token) else 0.1 for token in range(len(words.texts))], dtype=np.float32)


def write(path: Path, shape: Shape = QWEN, *, seed: int = 0) -> None:
    """Write the model to `path`, whole or not at all. The folder must be held.

    Raises UsageError when the disk is full, before anything is written where that can be known.
    """
    tensors = plan(shape)
    folder.need_room(path.parent, sum(tensor.n_bytes for tensor in tensors) + METADATA_BYTES, "The stand-in model")
    partial = Path(f"{path}.partial")
    try:
        _write_gguf(partial, shape, tensors, seed)
        folder.put_in_place(partial, path)
    except OSError as error:
        raise UsageError(f"{partial} can't be written: {error.strerror}.") from None
    finally:
        partial.unlink(missing_ok=True)


def _write_gguf(path: Path, shape: Shape, tensors: list[Tensor], seed: int) -> None:
    words = vocabulary(shape)
    writer = GGUFWriter(path, "qwen2")
    _add_metadata(writer, shape)
    _add_vocabulary(writer, words)
    for tensor in tensors:
        writer.add_tensor_info(tensor.name, tensor.shape, tensor.dtype, tensor.n_bytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    total = sum(tensor.n_bytes for tensor in tensors)
    with tqdm(total=total, unit="B", unit_scale=True, desc=path.stem, disable=None, delay=0.5) as bar:
        for index, tensor in enumerate(tensors):
            scale = _embedding_scale(words) if tensor.name == "token_embd.weight" else None
            writer.write_tensor_data(cast("NDArray[np.float32]", RandomTensor(tensor, [seed, index], scale)))
            bar.update(tensor.n_bytes)
    writer.close()


def main(argv: list[str]) -> int:
    parser = console.Parser(prog="standin.py", description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--output", type=Path, default=DEFAULT_PATH, metavar="PATH", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="other random weights (default: 0)")
    given = parser.parse_args(argv)
    with folder.alone(given.output.parent):
        write(given.output, seed=given.seed)
    print(f"{given.output}: {folder.megabytes(given.output.stat().st_size)}")
    return 0


if __name__ == "__main__":
    console.run(main)
