"""What replies look like, as JSON Schemas. Nothing else may stand in them: tests hold every reply against these."""

from __future__ import annotations

from server.api.table import Schema, nullable

TEXT: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
FLAG: Schema = {"type": "boolean"}
NULL: Schema = {"type": "null"}
ANY_OBJECT: Schema = {"type": "object"}


def constant(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


def listing(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def shape(fields: dict[str, Schema], *, may: dict[str, Schema] | None = None) -> Schema:
    """An object with these fields, and perhaps those that it `may` have."""
    properties = {**fields, **(may or {})}
    return {"type": "object", "properties": properties, "required": list(fields), "additionalProperties": False}


ERROR = shape(
    {
        "error": shape(
            {
                "message": {**TEXT, "description": "One line for people: what is wrong, and what to do."},
                "type": constant("invalid_request_error", "server_error"),
                "param": {**nullable(TEXT), "description": "The field that is wrong."},
                "code": TEXT,
            }
        )
    }
)

_WARNINGS: dict[str, Schema] = {"warnings": {**listing(TEXT), "description": "What of the request was not honoured."}}

_USAGE = shape(
    {
        "prompt_tokens": COUNT,
        "completion_tokens": COUNT,
        "total_tokens": COUNT,
        "prompt_tokens_details": shape({"cached_tokens": COUNT}),
    }
)
_EMBEDDING_USAGE = shape({"prompt_tokens": COUNT, "total_tokens": COUNT})
_TIMES = ("ms", "per_token_ms", "per_second")
_TIMINGS = shape(
    {
        "cache_n": COUNT,
        **{f"{kind}_n": COUNT for kind in ("prompt", "predicted")},
        **{f"{kind}_{time}": NUMBER for kind in ("prompt", "predicted") for time in _TIMES},
    }
)
_SCORE: dict[str, Schema] = {"token": TEXT, "logprob": NUMBER, "bytes": listing(COUNT)}
_SCORED = shape({**_SCORE, "top_logprobs": listing(shape(_SCORE))})
_REASON = constant("stop", "length", "tool_calls", "error")
_CALL = shape({"id": TEXT, "type": constant("function"), "function": shape({"name": TEXT, "arguments": TEXT})})

_MESSAGE = shape({"role": constant("assistant"), "content": nullable(TEXT)}, may={"tool_calls": listing(_CALL)})
_LOGPROBS = {"anyOf": [shape({"content": listing(_SCORED), "refusal": NULL}), NULL]}
CHAT_COMPLETION = shape(
    {
        "id": TEXT,
        "object": constant("chat.completion"),
        "created": COUNT,
        "model": TEXT,
        "choices": listing(
            shape({"index": COUNT, "message": _MESSAGE, "logprobs": _LOGPROBS, "finish_reason": _REASON})
        ),
        "usage": _USAGE,
        "timings": _TIMINGS,
    },
    may={"truncation": shape({"dropped_messages": COUNT}), **_WARNINGS},
)

_OLD_LOGPROBS = shape(
    {
        "tokens": listing(TEXT),
        "token_logprobs": listing(NUMBER),
        "top_logprobs": listing({"type": "object", "additionalProperties": NUMBER}),
        "text_offset": listing(COUNT),
    }
)
COMPLETION = shape(
    {
        "id": TEXT,
        "object": constant("text_completion"),
        "created": COUNT,
        "model": TEXT,
        "choices": listing(
            shape(
                {
                    "index": COUNT,
                    "text": TEXT,
                    "logprobs": {"anyOf": [_OLD_LOGPROBS, NULL]},
                    "finish_reason": constant("stop", "length", "error"),
                }
            )
        ),
        "usage": _USAGE,
        "timings": _TIMINGS,
    },
    may=_WARNINGS,
)

EMBEDDINGS = shape(
    {
        "object": constant("list"),
        "model": TEXT,
        "data": listing(
            shape({"object": constant("embedding"), "index": COUNT, "embedding": {"anyOf": [listing(NUMBER), TEXT]}})
        ),
        "usage": _EMBEDDING_USAGE,
    },
    may=_WARNINGS,
)

_STATUS = constant("completed", "incomplete", "in_progress", "failed")
_SAID = shape(
    {
        "type": constant("output_text"),
        "text": TEXT,
        "annotations": {"type": "array", "maxItems": 0},
        "logprobs": listing(_SCORED),
    }
)
_SPOKEN = shape(
    {
        "type": constant("message"),
        "id": TEXT,
        "role": constant("assistant"),
        "content": listing(_SAID),
        "status": _STATUS,
    }
)
_CALLED = shape(
    {
        "type": constant("function_call"),
        "id": TEXT,
        "call_id": TEXT,
        "name": TEXT,
        "arguments": TEXT,
        "status": _STATUS,
    }
)
RESPONSE = shape(
    {
        "id": TEXT,
        "object": constant("response"),
        "created_at": COUNT,
        "model": TEXT,
        "status": _STATUS,
        "output": listing({"anyOf": [_SPOKEN, _CALLED]}),
        "error": {"anyOf": [shape({"code": TEXT, "message": TEXT}), NULL]},
        "incomplete_details": {"anyOf": [shape({"reason": TEXT}), NULL]},
        "usage": {
            "anyOf": [
                shape(
                    {
                        "input_tokens": COUNT,
                        "input_tokens_details": shape({"cached_tokens": COUNT}),
                        "output_tokens": COUNT,
                        "output_tokens_details": shape({"reasoning_tokens": COUNT}),
                        "total_tokens": COUNT,
                    }
                ),
                NULL,
            ]
        },
        "timings": _TIMINGS,
        "instructions": nullable(TEXT),
        "max_output_tokens": nullable(COUNT),
        "metadata": ANY_OBJECT,
        "parallel_tool_calls": FLAG,
        "previous_response_id": NULL,
        "reasoning": ANY_OBJECT,
        "store": FLAG,
        "temperature": NUMBER,
        "text": ANY_OBJECT,
        "tool_choice": {"anyOf": [TEXT, ANY_OBJECT]},
        "tools": listing(ANY_OBJECT),
        "top_logprobs": COUNT,
        "top_p": NUMBER,
        "truncation": TEXT,
    },
    may={"dropped_messages": COUNT, **_WARNINGS},
)

MODEL = shape(
    {
        "id": TEXT,
        "object": constant("model"),
        "created": COUNT,
        "owned_by": TEXT,
        "context_length": COUNT,
        "quant": TEXT,
    }
)
MODELS = shape({"object": constant("list"), "data": listing(MODEL)})

_PIECE = shape({"id": COUNT, "piece": {"anyOf": [TEXT, listing(COUNT)]}})
TOKENS = shape({"tokens": listing({"anyOf": [COUNT, _PIECE]})})
CONTENT = shape({"content": TEXT})
PROMPT = shape({"prompt": TEXT})
PROPS: Schema = {
    "type": "object",
    "properties": {
        "default_generation_settings": ANY_OBJECT,
        "total_slots": COUNT,
        "model_alias": TEXT,
        "modalities": shape({"vision": FLAG, "audio": FLAG}),
        "chat_template": TEXT,
    },
    "required": ["default_generation_settings", "total_slots", "model_alias", "modalities", "chat_template"],
}
SLOTS = listing(
    shape(
        {
            "id": COUNT,
            "n_ctx": COUNT,
            "speculative": FLAG,
            "is_processing": FLAG,
            "state": constant("empty", "idle", "busy"),
            "n_past": COUNT,
        }
    )
)
HEALTH: Schema = {"type": "object", "properties": {"status": TEXT}, "required": ["status"]}

NAMED: dict[str, Schema] = {
    "Error": ERROR,
    "ChatCompletion": CHAT_COMPLETION,
    "Completion": COMPLETION,
    "Embeddings": EMBEDDINGS,
    "Response": RESPONSE,
    "Model": MODEL,
    "Models": MODELS,
    "Tokens": TOKENS,
    "Content": CONTENT,
    "Prompt": PROMPT,
    "Props": PROPS,
    "Slots": SLOTS,
    "Health": HEALTH,
}
