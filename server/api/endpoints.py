"""Every route for programs, with what /openapi.json and /docs say of it."""

from __future__ import annotations

from server.api.chat import chat_completions
from server.api.completions import COMPLETIONS, completions
from server.api.embeddings import EMBEDDINGS, embeddings
from server.api.llama_server import (
    APPLY_TEMPLATE,
    DETOKENIZE,
    TOKENIZE,
    apply_template,
    detokenize,
    props,
    slots,
    tokenize,
)
from server.api.models import model, models
from server.api.native import STREAM, health, stream
from server.api.openapi import Endpoint
from server.api.request import CHAT
from server.api.response_request import RESPONSES
from server.api.responses import responses

ENDPOINTS = [
    Endpoint(
        "POST",
        "/v1/chat/completions",
        chat_completions,
        "Answer a conversation, whole or as a stream.",
        "ChatCompletion",
        CHAT,
        streams=True,
    ),
    Endpoint(
        "POST",
        "/v1/completions",
        completions,
        "Go on behind a text, without a chat template.",
        "Completion",
        COMPLETIONS,
        streams=True,
    ),
    Endpoint(
        "POST",
        "/v1/responses",
        responses,
        "Answer as OpenAI's newer API does, stateless: send the whole conversation each time.",
        "Response",
        RESPONSES,
        streams=True,
    ),
    Endpoint(
        "POST",
        "/v1/embeddings",
        embeddings,
        "Texts as vectors: the mean of a chat model's last states, which finds what is nearly the same text, and is "
        "much weaker than a model made for searching.",
        "Embeddings",
        EMBEDDINGS,
        errors=(429,),
    ),
    Endpoint("GET", "/v1/models", models, "The one model that is loaded.", "Models"),
    Endpoint("GET", "/v1/models/{id:path}", model, "The model that is loaded, by its name.", "Model", errors=(404,)),
    Endpoint("POST", "/tokenize", tokenize, "A text as tokens.", "Tokens", TOKENIZE),
    Endpoint("POST", "/detokenize", detokenize, "Tokens as a text; special ones have none.", "Content", DETOKENIZE),
    Endpoint(
        "POST",
        "/apply-template",
        apply_template,
        "The prompt that a conversation becomes. Where a message holds a special token, U+FDD0 stands inside of it; "
        "/tokenize reads that as the text that it is.",
        "Prompt",
        APPLY_TEMPLATE,
    ),
    Endpoint("GET", "/props", props, "The model, and what a request without parameters gets.", "Props"),
    Endpoint("GET", "/slots", slots, "How full each place for a conversation is; no text of anybody.", "Slots"),
    Endpoint("GET", "/health", health, "200 once the model answers.", "Health"),
    Endpoint(
        "POST",
        "/stream",
        stream,
        'One message, one streamed answer: events of {"text": …}, then the end.',
        body=STREAM,
        streams=True,
    ),
    Endpoint(
        "GET",
        "/stream",
        stream,
        "The same by an address, for a browser's EventSource.",
        query=STREAM.fields,
        streams=True,
    ),
]
