"""Token ids <-> bytes. The bindings' detokenize drops tokens longer than 32 bytes (Qwen has 240): these don't."""

from __future__ import annotations

import ctypes
import hashlib
import threading
from functools import cached_property

import llama_cpp
import numpy as np
import numpy.typing as npt

from server.errors import ShuttingDown


class Vocab:
    """The one part that other threads may use while the engine computes, and while its model is unloaded: what it says
    never changes."""

    def __init__(self, vocab: int) -> None:
        self._vocab: int | None = vocab
        self._lock = threading.Lock()
        self.n_tokens = int(llama_cpp.llama_vocab_n_tokens(vocab))
        self._ends = np.zeros(self.n_tokens + 1, dtype=np.int32)
        self._pieces = self._read_pieces()
        silent = np.flatnonzero(np.diff(self._ends) == 0)
        self.eog = frozenset(int(t) for t in silent if llama_cpp.llama_vocab_is_eog(vocab, int(t)))
        """The tokens that end an answer."""
        self.special = {self._text(int(t)): int(t) for t in silent if llama_cpp.llama_vocab_is_control(vocab, int(t))}
        """Control tokens by their text; only a chat template may write them."""
        names = repr(sorted(self.special.items())).encode()
        self.fingerprint = hashlib.blake2b(self._pieces + self._ends.tobytes() + names, digest_size=16).hexdigest()
        """Ids that are kept mean something only to a vocabulary with the same one; a quantization changes nothing."""

    @cached_property
    def first_bytes(self) -> npt.NDArray[np.int16]:
        """Of each token's piece; -1 for one that has none."""
        return self.bytes_at(np.arange(self.n_tokens), 0)

    def bytes_at(self, ids: npt.NDArray[np.int64], at: int) -> npt.NDArray[np.int16]:
        """The byte at this place of each of these tokens' pieces; -1 for one that is shorter."""
        places = self._ends[ids] + at
        is_there = places < self._ends[ids + 1]
        found = np.full(len(ids), -1, dtype=np.int16)
        found[is_there] = np.frombuffer(self._pieces, dtype=np.uint8)[places[is_there]]
        return found

    def _read_pieces(self) -> bytes:
        """All pieces in one string (a list of 151,936 bytes objects would take 8 MB more)."""
        pieces, room = bytearray(), ctypes.create_string_buffer(64)
        for token in range(self.n_tokens):
            n = llama_cpp.llama_token_to_piece(self._vocab, token, room, len(room), 0, False)
            if n < 0:
                room = ctypes.create_string_buffer(-n)
                n = llama_cpp.llama_token_to_piece(self._vocab, token, room, len(room), 0, False)
            pieces += room.raw[:n]
            self._ends[token + 1] = len(pieces)
        return bytes(pieces)

    def _text(self, token: int) -> str:
        return str(llama_cpp.llama_vocab_get_text(self._vocab, token).decode("utf-8", "replace"))

    def piece(self, token: int) -> bytes:
        """The bytes of a token; a control token has none."""
        return self._pieces[self._ends[token] : self._ends[token + 1]]

    def tokenize(self, text: str) -> list[int]:
        """Text as written by a person: special tokens inside it stay text. Lone surrogates become U+FFFD.

        Raises ShuttingDown once the model is freed: native memory behind a late caller would be gone.
        """
        raw = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
        ids = (ctypes.c_int32 * (len(raw) + 1))()
        with self._lock:
            if self._vocab is None:
                raise ShuttingDown("The server is shutting down: send the message again when it is back.")
            n = int(llama_cpp.llama_tokenize(self._vocab, raw, len(raw), ids, len(ids), False, False))
        assert n >= 0, "a token is at least one byte"
        return ids[:n]

    def move(self, vocab: int) -> None:
        """The same vocabulary lives in another native model from now on: the old one may be freed."""
        with self._lock:
            self._vocab = vocab

    def close(self) -> None:
        """The model is about to be freed; pieces stay readable."""
        with self._lock:
            self._vocab = None
