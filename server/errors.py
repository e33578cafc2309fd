"""Every error that a person may read. One line each: what is wrong, with which field or file, and the way out.

SparrowError
├── UsageError            a flag, a setting or a file that can't work: scripts print it and exit with 2
│   └── ModelFileError    a GGUF that is missing, cut, altered, or none at all
├── InvalidRequest        400  the request can't be served as it stands; `param` names the field
│   ├── InvalidField      400  one field has a value that it can't have
│   └── ContextOverflow   400  prompt and answer don't fit into one conversation's context
├── Forbidden             403  a page of another site sends this, or a form that this server did not make
├── NotFound              404  no such conversation, message, answer or model
├── Conflict              409  the state of things forbids it now (an answer is still being written)
├── TooLarge              413  the body is larger than the server reads
├── QueueFull             429  too many are waiting; `retry_after` says for how many seconds
├── EngineFailed          500  llama.cpp could not compute this batch; the others live
├── ShuttingDown          503  the server is going down
├── ModelLoading          503  it is not up yet
└── StoreFailed           507  the database could not be read or written; the message names the file
"""

from __future__ import annotations


class SparrowError(Exception):
    """An error with a text for people. `status` is its HTTP status, `code` its name for programs."""

    status = 500
    code = "internal_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class UsageError(SparrowError):
    code = "usage_error"


class ModelFileError(UsageError):
    code = "model_file_error"


class InvalidRequest(SparrowError):
    status = 400
    code = "invalid_request"


class InvalidField(InvalidRequest):
    """`param` is required here: a person has to know which field to mend."""

    code = "invalid_value"

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"{param}: {message}", param=param)


class ContextOverflow(InvalidRequest):
    """n_prompt and n_ctx are tokens; n_ctx is what one conversation may hold."""

    code = "context_length_exceeded"

    def __init__(self, n_prompt: int, n_ctx: int) -> None:
        super().__init__(
            f"This conversation has {n_prompt} tokens and the model remembers {n_ctx}: "
            "start a new chat, shorten the message, or serve with a larger --ctx.",
            param="messages",
        )
        self.n_prompt = n_prompt
        self.n_ctx = n_ctx


class Forbidden(SparrowError):
    status = 403
    code = "forbidden"


class NotFound(SparrowError):
    status = 404
    code = "not_found"


class Conflict(SparrowError):
    status = 409
    code = "conflict"


class TooLarge(SparrowError):
    status = 413
    code = "too_large"


class QueueFull(SparrowError):
    """retry_after: whole seconds, sent as the Retry-After header."""

    status = 429
    code = "queue_full"

    def __init__(self, n_waiting: int, retry_after: int) -> None:
        super().__init__(f"{n_waiting} requests are waiting already: try again in {retry_after} s.")
        self.retry_after = retry_after


class EngineFailed(SparrowError):
    code = "engine_failed"


class ShuttingDown(SparrowError):
    status = 503
    code = "shutting_down"


class ModelLoading(SparrowError):
    """done: the share that is there, 0 to 1."""

    status = 503
    code = "model_loading"

    def __init__(self, done: float) -> None:
        super().__init__(f"The model is still loading ({done:.0%}): try again in a moment.")


class StoreFailed(SparrowError):
    status = 507
    code = "store_failed"
