"""llama.cpp behind few verbs and typed results: Model, Context; with vocab.py and sampler.py the door to native code.

Facts that this file rests on (llama-cpp-python 0.3.36): llama_decode returns 1 when the KV cache has no room and has
then changed nothing; llama_get_logits_ith takes the row of the batch; n_ctx is rounded up, so it is read back.
"""

from __future__ import annotations

import ctypes
import enum
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import llama_cpp
import numpy as np

from server.engine.scheduler import Batch
from server.engine.table import open_table
from server.engine.topk import Best, Logits
from server.engine.vocab import Vocab
from server.engine.weights import identity, last_error, load
from server.errors import EngineFailed, ModelFileError, UsageError

_BYTES = ctypes.POINTER(ctypes.c_uint8)

_IS_SET = ctypes.cast(ctypes.CDLL(None).strlen, llama_cpp.ggml_abort_callback)
"""llama.cpp asks after each of some 800 operations whether to stop. A Python function would take the GIL each time and
a tenth of a step; libc's strlen answers in nanoseconds: 0, false, for an empty string, 1 for one of a single letter."""


class DecodeStatus(enum.Enum):
    OK = 0
    NO_SLOT = 1
    """The KV cache has no room for this batch; nothing was changed."""
    INTERRUPTED = 2
    """interrupt() was called: some of the batch may be in the cache; `truncate` the slots to what was there before."""
    FAILED = 3
    """Computation failed; what the batch's slots hold is unknown."""


class Model:
    """The weights of one GGUF, in memory and not mapped: repacked weights would count twice (482 instead of 672 MB).

    Only where the output layer is a copy of the table, the table stays in the file: 78 MB less than one for both.
    """

    def __init__(self, path: Path, on_progress: Callable[[float], bool] = lambda _: True) -> None:
        """Raises ModelFileError. on_progress: called with 0.0 … 1.0 while loading; False stops it."""
        self._identity = identity(path)
        self.table = open_table(path)
        try:
            self._model: int | None = load(path, on_progress, mapped=self.table is not None)
        except BaseException:
            self._close_table()
            raise
        self.path = path
        self.vocab = Vocab(llama_cpp.llama_model_get_vocab(self._model))
        self.n_ctx_train = int(llama_cpp.llama_model_n_ctx_train(self._model))
        self.n_bytes = int(llama_cpp.llama_model_size(self._model))

    def unload(self, close_contexts: Callable[[], None]) -> None:
        """Free the weights and keep what tokenizes. Raises ModelFileError, and changes nothing, when the file is not
        what it was."""
        remains = load(self._unchanged(), lambda _: True, vocab_only=True)
        close_contexts()
        self._replace(remains)

    def reload(self, on_progress: Callable[[float], bool]) -> None:
        """Have the weights again. Raises ModelFileError, and stays without them then."""
        self._replace(load(self._unchanged(), on_progress, mapped=self.table is not None))

    def _unchanged(self) -> Path:
        if identity(self.path) != self._identity:
            raise ModelFileError(f"{self.path} is not the file any more that this server began with: start it again.")
        return self.path

    def _replace(self, model: int) -> None:
        old, self._model = self._model, model
        self.vocab.move(llama_cpp.llama_model_get_vocab(model))
        llama_cpp.llama_model_free(old)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that one token takes in an f16 KV cache; 12,288 for Qwen2.5-0.5B."""
        head = llama_cpp.llama_model_n_embd(self._model) // llama_cpp.llama_model_n_head(self._model)
        n_values = llama_cpp.llama_model_n_layer(self._model) * llama_cpp.llama_model_n_head_kv(self._model) * head
        return int(2 * 2 * n_values)

    @property
    def can_forget(self) -> bool:
        """A part of a sequence can be taken out of the cache; a recurrent state is one piece."""
        native = self._model
        return not (llama_cpp.llama_model_is_recurrent(native) or llama_cpp.llama_model_is_hybrid(native))

    @property
    def quant(self) -> str:
        name = llama_cpp.llama_ftype_name(llama_cpp.llama_model_ftype(self._model)).decode()
        return str(name).replace("(guessed) ", "")

    @property
    def chat_template(self) -> str | None:
        """The GGUF's own template: untrusted text."""
        template = llama_cpp.llama_model_chat_template(self._model, None)
        return template.decode("utf-8", "replace") if template else None

    def meta(self, key: str) -> str | None:
        """A metadata value as text, None where the file has no such key."""
        room = ctypes.create_string_buffer(256)
        n = llama_cpp.llama_model_meta_val_str(self._model, key.encode(), room, len(room))
        return room.value.decode("utf-8", "replace") if n >= 0 else None

    def close(self) -> None:
        """Free the weights; every Context of this model must be closed before."""
        if self._model:
            self.vocab.close()
            llama_cpp.llama_model_free(self._model)
            self._model = None
        self._close_table()

    def _close_table(self) -> None:
        if self.table:
            self.table.close()
            self.table = None


@dataclass(frozen=True)
class ContextParams:
    """n_ctx: tokens per slot. exact: f32 KV, for tests that compare token by token."""

    n_ctx: int
    n_slots: int
    n_threads: int
    n_batch: int = 64
    n_guesses: int = 0
    """Rows with logits that a batch may have beyond one per slot; each reserves n_vocab floats."""
    kv_unified: bool = False
    """One cache for all slots. 8 × 1,000 tokens decode at 66 tokens/s then, at 85 with a part for each."""
    exact: bool = False

    @property
    def kv_format(self) -> str:
        """A saved slot is good for contexts of the same format, with the same model."""
        form = f"{'unified ' * self.kv_unified}{'f32' if self.exact else 'f16'}"
        return f"llama.cpp {llama_cpp.__version__}, {self.n_slots} slots, {form}"


class Context:
    """The KV cache and the computation. One thread only: the engine's."""

    def __init__(self, model: Model, params: ContextParams) -> None:
        """Raises UsageError when the memory for the KV cache can't be had."""
        self._model, self._params = model, params
        self._threads = params.n_threads, params.n_threads
        self.n_batch = params.n_batch
        self.n_guesses, self.kv_unified = params.n_guesses, params.kv_unified
        self._n_outputs = params.n_slots + params.n_guesses
        self._table = model.table
        self.needs_states = model.table is not None
        """Logits are made better by the states of their rows, which llama.cpp gives for all rows of a batch or none."""
        self.best: Best | None = None
        """Of the logits that were asked for last, where they are known."""
        self.n_vocab = model.vocab.n_tokens
        self.n_embd = int(llama_cpp.llama_model_n_embd(model._model))
        self._interrupt = ctypes.create_string_buffer(2)
        self.open()
        self.n_ctx = int(llama_cpp.llama_n_ctx_seq(self._ctx))
        """Tokens per slot, as llama.cpp rounded it: at least what was asked for."""

    def open(self) -> None:
        """All native memory, empty; after close() once more, when the model is loaded again. Raises UsageError."""
        params = self._params
        self._ctx = llama_cpp.llama_init_from_model(self._model._model, _native_params(params))
        if not self._ctx:
            raise UsageError(f"--ctx {params.n_ctx} --slots {params.n_slots}: llama.cpp refused: {last_error('?')}")
        self._embeds = False
        self._memory = llama_cpp.llama_get_memory(self._ctx)
        llama_cpp.llama_set_abort_callback(self._ctx, _IS_SET, ctypes.addressof(self._interrupt))
        llama_cpp.llama_set_n_threads(self._ctx, *self._threads)
        self._batch = llama_cpp.llama_batch_init(params.n_batch, self.n_embd if self._table else 0, 1)

    def decode(self, batch: Batch) -> DecodeStatus:
        """Compute the batch (at most n_batch tokens). Logits of its sampled rows are valid until the next decode."""
        assert batch.n_tokens <= self.n_batch and batch.n_logits <= self._n_outputs, "llama.cpp would abort the process"
        self._fill(batch)
        embeds = batch.is_embedding or (self.needs_states and batch.n_logits == batch.n_tokens)
        if embeds != self._embeds:
            self._embeds = embeds
            llama_cpp.llama_set_embeddings(self._ctx, self._embeds)
        code = llama_cpp.llama_decode(self._ctx, self._batch)
        return DecodeStatus(code) if code in (0, 1, 2) else DecodeStatus.FAILED

    def set_threads(self, n_decode: int, n_prefill: int) -> None:
        """For single tokens and for batches of more."""
        self._threads = n_decode, n_prefill
        llama_cpp.llama_set_n_threads(self._ctx, n_decode, n_prefill)

    def interrupt(self) -> None:
        """End the running or the next decode within a millisecond or so. For any thread, until resume()."""
        self._interrupt.value = b"!"

    def resume(self) -> None:
        """Decode may run again."""
        self._interrupt.value = b""

    def _fill(self, batch: Batch) -> None:
        native, tokens = self._batch, list[int]()
        for span in batch.spans:
            sequence = span.sequence
            for at, token in enumerate(sequence.upcoming(span.n_tokens), sequence.n_past):
                row = len(tokens)
                tokens.append(token)
                native.pos[row], native.n_seq_id[row], native.seq_id[row][0] = at, 1, sequence.slot
                native.logits[row] = at >= sequence.n_past + span.n_tokens - span.n_logits
        native.n_tokens = len(tokens)
        if self._table:
            rows = self._table.rows(tokens)
            ctypes.memmove(native.embd, rows.ctypes.data, rows.nbytes)
        else:
            ctypes.memmove(native.token, (ctypes.c_int32 * len(tokens))(*tokens), 4 * len(tokens))

    def logits(self, row: int) -> Logits:
        """[n_vocab], llama.cpp's own memory: valid and writable until the next decode."""
        pointer = llama_cpp.llama_get_logits_ith(self._ctx, row)
        if not pointer:
            raise EngineFailed("llama.cpp gave no logits for a row that asked for them: please report this.")
        logits = np.ctypeslib.as_array(pointer, shape=(self.n_vocab,))
        self.best = self._table.correct(logits, self._state(row)) if self._table and self._embeds else None
        return logits

    def states(self, row: int, n: int) -> Logits:
        """[n, n_embd]: what the model made of the tokens in n rows of an embedding's batch; a copy."""
        return np.stack([self._state(at) for at in range(row, row + n)])

    def _state(self, row: int) -> Logits:
        """[n_embd], llama.cpp's own memory."""
        pointer = llama_cpp.llama_get_embeddings_ith(self._ctx, row)
        if not pointer:
            raise EngineFailed("llama.cpp gave no embeddings for a row that asked for them: please report this.")
        return np.ctypeslib.as_array(pointer, shape=(self.n_embd,))

    def truncate(self, slot: int, keep: int) -> bool:
        return bool(llama_cpp.llama_memory_seq_rm(self._memory, slot, keep, -1))

    def clear(self, slot: int) -> None:
        llama_cpp.llama_memory_seq_rm(self._memory, slot, -1, -1)

    def copy(self, source: int, target: int) -> None:
        # A partitioned cache copies a slot's whole memory, before the next decode; `target` may be shortened at once.
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def save(self, slot: int) -> memoryview:
        """All that the slot holds, as load() of a context with the same kv_format takes it."""
        size = int(llama_cpp.llama_state_seq_get_size(self._ctx, slot))  # malloc would keep the 15 MB or more
        data = np.frombuffer(mmap.mmap(-1, size, mmap.MAP_PRIVATE), dtype=np.uint8)
        n = llama_cpp.llama_state_seq_get_data(self._ctx, data.ctypes.data_as(_BYTES), len(data), slot)
        return data[:n].data

    def load(self, slot: int, data: bytes | memoryview) -> bool:
        """False: the slot is empty. Only bytes that save() gave: llama.cpp ends the process over others."""
        pointer = np.frombuffer(data, dtype=np.uint8).ctypes.data_as(_BYTES)
        if llama_cpp.llama_state_seq_set_data(self._ctx, pointer, len(data), slot):
            return True
        self.clear(slot)
        return False

    def n_held(self, slot: int) -> int:
        if self._ctx is None:  # closed: it holds nothing
            return 0
        return int(llama_cpp.llama_memory_seq_pos_max(self._memory, slot)) + 1

    def close(self) -> None:
        if self._ctx:
            llama_cpp.llama_batch_free(self._batch)
            llama_cpp.llama_free(self._ctx)
            self._ctx = None


def _native_params(params: ContextParams) -> llama_cpp.llama_context_params:
    native = llama_cpp.llama_context_default_params()
    native.n_ctx = params.n_ctx * params.n_slots
    native.n_seq_max = params.n_slots
    native.n_outputs_max = params.n_slots + params.n_guesses
    native.n_outputs_max_per_seq = 1 + params.n_guesses
    native.n_batch = native.n_ubatch = params.n_batch
    native.n_threads = native.n_threads_batch = params.n_threads
    native.kv_unified = params.kv_unified
    native.offload_kqv = native.op_offload = False
    # Beside 1,000 held tokens a chunk of 32 takes 147 ms without flash attention, 204 with it: on CPUs its fast form is
    # for 64 rows and more. Single tokens and large chunks take the same with and without.
    native.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if params.exact:
        native.type_k = native.type_v = llama_cpp.GGML_TYPE_F32
    return native
