"""The two endpoints that cost: the (status, body) of a request to them, without any HTTP."""

from __future__ import annotations

import json

from llm_answers import chat_content, count_tokens, cut_to, embedding, encoded, strict_problem, texts_of
from llm_faults import Request, error_body, spoil

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
CREATED = 1_700_000_000  # of completions: the same request has the same answer, to the byte
MOST_INPUTS = 2048  # texts of one embeddings request
MOST_TOKENS = 8192  # of one text to embed


def answered(request: Request, fault: str | None, width: int, context: int | None) -> tuple[int, dict]:
    """The answer, spoilt where `fault` says so, or status 400 for a request that OpenAI would not take.

    `width` is that of embeddings for which no dimensions are asked, `context` the most tokens of a chat's messages."""
    body, wrong = request.body, None
    if not isinstance(body, dict):
        wrong = None, "We could not parse the JSON body of your request."
    elif not isinstance(body.get("model"), str):
        wrong = None, "you must provide a model parameter"
    elif request.path == CHAT:
        wrong = _chat_problem(body, context)
    else:
        wrong = _embeddings_problem(body)
    if wrong:
        return error_body(400, "invalid_request_error", *wrong)
    return 200, _chat(request, fault) if request.path == CHAT else _embeddings(body, width)


def inputs(body: dict) -> list:
    """The texts of an embeddings request."""
    given = body.get("input")
    return given if isinstance(given, list) else [given]


def _chat(request: Request, fault: str | None) -> dict:
    body = request.body
    choice = {"content": chat_content(body), "refusal": None, "finish_reason": "stop"}
    most = body.get("max_completion_tokens") or body.get("max_tokens")
    if most and count_tokens(choice["content"]) > most:
        choice |= {"content": cut_to(choice["content"], most), "finish_reason": "length"}
    choice |= spoil(fault, request, choice["content"])
    finish = choice.pop("finish_reason")
    asked, used = _prompt_tokens(body), count_tokens(choice["content"] or choice["refusal"] or "")
    message = {"role": "assistant", **choice}
    return {
        "id": f"chatcmpl-{request.digest}",
        "object": "chat.completion",
        "created": CREATED,
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
        "usage": {"prompt_tokens": asked, "completion_tokens": used, "total_tokens": asked + used},
    }


def _chat_problem(body: dict, context: int | None) -> tuple[str | None, str] | None:
    """(code, message) of what is wrong."""
    messages, form = body.get("messages"), body.get("response_format") or {"type": "text"}
    if not isinstance(messages, list) or not messages or not all(isinstance(each, dict) for each in messages):
        return None, "Invalid 'messages': a non-empty array of objects is wanted."
    if body.get("stream") or body.get("n", 1) != 1:
        return None, "This server neither streams nor answers more than once."
    if form.get("type") == "json_schema":
        named = form.get("json_schema") or {}
        if not isinstance(named.get("name"), str) or not isinstance(named.get("schema"), dict):
            return None, "Missing required parameter: 'response_format.json_schema' with 'name' and 'schema'."
        problem = strict_problem(named["schema"]) if named.get("strict") else None
        if problem:
            return None, f"Invalid schema for response_format {named['name']!r}: {problem}."
    elif form.get("type") == "json_object":
        if "json" not in json.dumps(messages).lower():
            return None, "'messages' must contain the word 'json' in some form, to use 'json_object'."
    elif form.get("type") != "text":
        return None, f"Invalid value for response_format.type: {form.get('type')!r}."
    if context is not None and _prompt_tokens(body) > context:
        return "context_length_exceeded", f"This model's maximum context length is {context} tokens."
    return None


def _prompt_tokens(body: dict) -> int:
    return sum(map(count_tokens, texts_of(body, "system", "developer", "user", "assistant")))


def _embeddings(body: dict, width: int) -> dict:
    texts, encoding = inputs(body), body.get("encoding_format", "float")
    vectors = [encoded(embedding(text, body.get("dimensions") or width), encoding) for text in texts]
    used = sum(map(count_tokens, texts))
    return {
        "object": "list",
        "model": body["model"],
        "data": [{"object": "embedding", "index": place, "embedding": each} for place, each in enumerate(vectors)],
        "usage": {"prompt_tokens": used, "total_tokens": used},
    }


def _embeddings_problem(body: dict) -> tuple[str | None, str] | None:
    texts = inputs(body)
    if not texts or not all(isinstance(text, str) and text for text in texts):
        return None, "'$.input' is invalid: a text or an array of texts, none of them empty."
    if len(texts) > MOST_INPUTS:
        return None, f"'$.input' is invalid: at most {MOST_INPUTS} texts."
    if max(map(count_tokens, texts)) > MOST_TOKENS:
        return None, f"This model's maximum context length is {MOST_TOKENS} tokens."
    if body.get("encoding_format", "float") not in ("float", "base64"):
        return None, "'encoding_format' must be 'float' or 'base64'."
    return None
