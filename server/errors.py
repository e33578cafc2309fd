"""Every error that a person may read. One line each: what is wrong, with which field or file, and the way out.

SparrowError
├── UsageError            a flag, a setting or a file that can't work: scripts print it and exit with 2
│   └── ModelFileError    a GGUF that is missing, cut, altered, or none at all
├── InvalidRequest        400  the request can't be served as it stands; `param` names the field
│   ├── InvalidField      400  one field has a value that it can't have
│   └── ContextOverflow   400  prompt and answer don't fit into one conversation's context
├── Unauthorized          401  no pairing token or key, where one is needed, or a wrong one
├── Forbidden             403  a page of another site sends this, or a form that this server did not make
├── NotFound              404  no such conversation, message, answer or model
├── Conflict              409  the state of things forbids it now (an answer is still being written)
├── TooLarge              413  the body is larger than the server reads
├── UnsupportedMedia      415  the body is not application/json, or does not say that it is
├── QueueFull             429  too many are waiting; `retry_after` says for how many seconds
├── TooManyTries          429  too many wrong tokens or keys; `retry_after` likewise
├── EngineFailed          500  llama.cpp could not compute this batch; the others live
├── ShuttingDown          503  the server is going down
├── ModelLoading          503  it is not up yet
├── ModelAway             503  it was unloaded while idle, and can't be loaded again now
└── StoreFailed           507  the database could not be read or written; the message names the file
    └── StoreBusy         503  another program holds it, and has done so for too long
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
        room = f"{n_ctx}, with its answer" if n_prompt < n_ctx else f"{n_ctx}"
        super().__init__(
            f"This conversation has {n_prompt} tokens and the model remembers {room}: "
            "start a new chat, shorten the message, or serve with a larger --ctx.",
            param="messages",
        )
        self.n_prompt = n_prompt
        self.n_ctx = n_ctx


class Unauthorized(SparrowError):
    status = 401
    code = "invalid_api_key"


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


class UnsupportedMedia(SparrowError):
    status = 415
    code = "unsupported_media_type"


class QueueFull(SparrowError):
    """retry_after: whole seconds, sent as the Retry-After header. is_own: the asker's share of the queue is full."""

    status = 429
    code = "queue_full"

    def __init__(self, n_waiting: int, retry_after: int, *, is_own: bool = False) -> None:
        whose = "of your requests" if is_own else "requests"
        super().__init__(f"{n_waiting} {whose} are waiting already: try again in {retry_after} s.")
        self.retry_after = retry_after


class TooManyTries(SparrowError):
    """retry_after: as above."""

    status = 429
    code = "too_many_tries"

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"Too many wrong pairing tokens or keys came from here: try again in {retry_after} s.")
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


class ModelAway(SparrowError):
    status = 503
    code = "model_unavailable"


class StoreFailed(SparrowError):
    status = 507
    code = "store_failed"


class StoreBusy(StoreFailed):
    status = 503
    code = "store_busy"
