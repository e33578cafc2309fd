"""One accepted request inside the engine: its sequence, its sampler, its text, its receiver, its times."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

from server.engine.llama import SamplerChain
from server.engine.sampling import SamplingParams
from server.engine.sequence import Event, Usage
from server.engine.sequence import Sequence as TokenSequence
from server.engine.text import TextStream

Sink = Callable[[Event], None]
"""Called on the engine's thread, at most once per step and sequence: it must return at once and not raise."""

_ids = itertools.count(1)


class Request:
    """One accepted request, from its prompt to its terminal event. Only the engine's thread touches it."""

    def __init__(self, sequence: TokenSequence, params: SamplingParams, sink: Sink) -> None:
        self.id = next(_ids)
        self.sequence = sequence
        self.params = params
        self.sink = sink
        self.text = TextStream(params.stop)
        self.chain: SamplerChain | None = None
        self.t_submitted = time.monotonic()
        self.t_started: float | None = None
        self.t_first: float | None = None

    def usage(self) -> Usage:
        now = time.monotonic()
        started = self.t_started or now
        first = self.t_first or now
        return Usage(
            n_prompt=self.sequence.n_prompt,
            n_completion=self.sequence.n_completion,
            n_reused=self.sequence.n_reused or 0,
            queue_s=started - self.t_submitted,
            prompt_s=max(0.0, first - started),
            decode_s=now - first,
        )
