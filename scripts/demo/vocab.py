"""The demo model's vocabulary: byte-level BPE whose merges are learned from phrases.py and words.py alone.

Three rules keep copying easy. A space joins a word only when the whole word is one token, so an unknown word has the
same tokens after a space and without one. A Chinese character never joins its neighbour: common ones are one token,
all others two (a pair of lead bytes, then the last byte). Digits stay single.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from . import words
from .blocks import BLOCKS
from .phrases import (
    ACK,
    ASK,
    ASK_OPENERS,
    CHAT,
    CORRECTIONS,
    COUNT,
    COUNT_TO,
    ELSE,
    FALLBACK,
    HELP,
    OPENERS,
    RECALL,
    REPEAT,
    STATE,
    SYSTEM,
    UNKNOWN,
)

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# llama.cpp's pre-tokenizer "qwen2" (src/llama-vocab.cpp, LLAMA_VOCAB_PRE_TYPE_QWEN2).
PATTERN = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
N_MERGES = 620
MIN_WORD_COUNT = 3  # a template word of this weight is joined to the space before it
Pair = tuple[str, str]


def byte_alphabet() -> dict[int, str]:
    """GPT-2's byte -> printable character, in byte order."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return {byte: chr(byte if byte in keep else next(spare)) for byte in range(256)}


ALPHABET = byte_alphabet()
SPACE = ALPHABET[32]


def visible(text: str) -> str:
    """The text as the alphabet's characters, one per UTF-8 byte."""
    return "".join(ALPHABET[byte] for byte in text.encode())


def _strings(tree: object) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree.replace("{}", "")
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from _strings((key, value))
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from _strings(item)


def _pieces(texts: Iterable[str]) -> Counter[str]:
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    return Counter(piece for text in texts for piece, _ in split.pre_tokenize_str(text))


def _corpus() -> tuple[Counter[str], Counter[str]]:
    """Counts of (pieces to learn merges from without the space before them, template words)."""
    tables = (ACK, ASK, ASK_OPENERS, CHAT, CORRECTIONS, COUNT, COUNT_TO, ELSE, FALLBACK, HELP, OPENERS, RECALL, REPEAT)
    texts = list(_strings((*tables, STATE, SYSTEM, UNKNOWN, BLOCKS)))
    answers = list(_strings((ACK, FALLBACK, RECALL, UNKNOWN, BLOCKS)))
    spoken = _pieces([*texts, *(answer for answer in answers for _ in range(3))])
    learn: Counter[str] = Counter()
    for piece, n in spoken.items():
        bare = piece.removeprefix(" ")
        learn[bare if bare[:1].isalpha() else piece] += 4 * n
    for word in words.EN_WORDS:
        learn[word] += 2
    return learn, spoken


def _learn(pieces: Counter[str], n_merges: int) -> list[Pair]:
    """Plain BPE over ASCII pieces: the most frequent pair first, ties by the alphabet."""
    parts = {tuple(visible(piece)): n for piece, n in pieces.items() if piece.isascii()}
    merges: list[Pair] = []
    while len(merges) < n_merges:
        pairs: Counter[Pair] = Counter()
        for part, n in parts.items():
            for pair in zip(part, part[1:], strict=False):
                pairs[pair] += n
        best, n_best = max(pairs.items(), key=lambda item: (item[1], item[0]))
        if n_best < 4:
            break
        merges.append(best)
        parts = {tuple(_apply(part, best)): n for part, n in parts.items()}
    return merges


def _apply(part: tuple[str, ...], pair: Pair) -> list[str]:
    out: list[str] = []
    for token in part:
        if out and (out[-1], token) == pair:
            out[-1] += token
        else:
            out.append(token)
    return out


def _character_merges(chars: Iterable[str]) -> list[Pair]:
    """Lead-byte pairs of all unified ideographs first, then the common characters and full-width punctuation."""
    ideographs = [visible(chr(code)) for code in range(0x4E00, 0x9FC0, 64)]
    common = [visible(char) for char in chars if len(char.encode()) == 3]
    pairs = dict.fromkeys((token[0], token[1]) for token in ideographs + common)
    return [*pairs, *dict.fromkeys((token[:2], token[2]) for token in common)]


def build() -> Tokenizer:
    """The tokenizer that training uses; export.py writes the same tokens and merges into the GGUF."""
    learn, spoken = _corpus()
    merges = _learn(learn, N_MERGES)
    made = {left + right for left, right in merges}
    chars = dict.fromkeys(char for piece in spoken for char in piece if not char.isascii())
    merges += _character_merges([*chars, *words.ZH_CHARS])
    frequent = {piece.removeprefix(" ") for piece, n in spoken.items() if n >= MIN_WORD_COUNT and piece.startswith(" ")}
    spaced = sorted({*frequent, *words.EN_WORDS} & made)
    merges += [(SPACE, word) for word in spaced if word.isalpha()]
    tokens = [*ALPHABET.values(), *dict.fromkeys(left + right for left, right in merges)]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer
