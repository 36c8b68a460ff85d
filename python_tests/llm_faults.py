"""What goes wrong at the test server, on demand: which request meets which fault, and what the fault does."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llm_answers import candidates_of, injected

# Name: (status, type, code, message). The model has not run: nothing is paid.
REFUSALS = {
    "rate-limit": (429, "requests", "rate_limit_exceeded", "Rate limit reached for requests. Please try again later."),
    "quota": (429, "insufficient_quota", "insufficient_quota", "You exceeded your current quota."),
    "server-error": (500, "server_error", None, "The server had an error while processing your request."),
    "overloaded": (503, "server_error", None, "The engine is currently overloaded."),
    "unauthorized": (401, "invalid_request_error", "invalid_api_key", "Incorrect API key provided: {key}."),
    "forbidden": (403, "invalid_request_error", "unsupported_country_region_territory", "Country not supported."),
    "unknown-model": (404, "invalid_request_error", "model_not_found", "The model does not exist."),
    "bad-request": (400, "invalid_request_error", None, "Invalid value in the request."),
}
RETRY_AFTER = ("rate-limit", "server-error", "overloaded")
# The model has run, and its completion says something wrong: paid. Of chat completions alone.
SPOILED = ("truncated", "wrong-schema", "not-json", "invented-ids", "refusal", "obey-injection")
# The connection closes, or a body that is no JSON comes, before the model has run: not paid.
LOST_BEFORE = ("dropped", "garbage-body")
# The answer was made and paid, and comes late or in half.
LOST_AFTER = ("slow", "half-body")
FAULTS = (*REFUSALS, *SPOILED, *LOST_BEFORE, *LOST_AFTER)


@dataclass(frozen=True)
class Request:
    """What a fault script sees: `attempt` counts from 0 how often the same request came before; `batch`: it is a line
    of a batch."""

    method: str
    path: str
    body: object
    digest: str
    attempt: int
    idempotency_key: str | None = None
    authorized: bool = False
    batch: bool = False


Script = Callable[[Request], str | None]


def first(times: int, fault: str, path: str = "") -> Script:
    """A script: the first `times` askings of every request whose path ends with `path` meet `fault`."""
    return lambda request: fault if request.attempt < times and request.path.endswith(path) else None


def by_chance(rates: Mapping[str, float], seed: int) -> Script:
    """A script that draws at most one fault a request, with the seed, the request and its attempt as the dice."""
    if sum(rates.values()) > 1 or min(rates.values(), default=0) < 0:
        raise ValueError(f"rates of faults must be probabilities with a sum of at most 1, got {dict(rates)}")
    check_names(rates)

    def script(request: Request) -> str | None:
        dice = hashlib.sha256(f"{seed} {request.digest} {request.attempt}".encode()).digest()
        left = int.from_bytes(dice[:8], "big") / 2**64
        for fault, rate in rates.items():
            left -= rate
            if left < 0:
                return fault
        return None

    return script


def check_names(faults) -> None:
    for fault in faults:
        if fault not in FAULTS:
            raise ValueError(f"no fault is called {fault!r}; there are {', '.join(FAULTS)}")


def error_body(status: int, kind: str, code: str | None, message: str) -> tuple[int, dict]:
    return status, {"error": {"message": message, "type": kind, "param": None, "code": code}}


def refused(fault: str, key: str) -> tuple[int, dict]:
    status, kind, code, message = REFUSALS[fault]
    return error_body(status, kind, code, message.replace("{key}", key))


def spoil(fault: str | None, request: Request, content: str) -> dict:
    """What of "content", "refusal" and "finish_reason" the fault changes in an answer with this content."""
    chance = random.Random(request.digest)
    match fault:
        case "truncated":
            cut = chance.randint(len(content) // 4, 3 * len(content) // 4)
            return {"content": content[:cut], "finish_reason": chance.choice(["length", "stop"])}
        case "not-json":
            return {"content": "Sure! I thought about it for a while, and here is what I would say instead."}
        case "refusal":
            return {"content": None, "refusal": "I'm sorry, I can't help with that."}
        case "wrong-schema":
            return {"content": json.dumps({"unexpected": _loaded(content)})}
        case "invented-ids":
            offered = set(candidates_of(request.body))
            return {"content": json.dumps(_invented(_loaded(content), offered, chance))}
        case "obey-injection":
            return {"content": injected(request.body) or content}
    return {}


def _loaded(content: str):
    try:
        return json.loads(content)
    except ValueError:
        return content


def _invented(value, offered: set[int], chance: random.Random):
    """The value with every second integer of its lists replaced by an id that was not offered."""
    if isinstance(value, dict):
        return {name: _invented(inner, offered, chance) for name, inner in value.items()}
    if not isinstance(value, list) or not all(type(inner) is int for inner in value):
        return value
    strangers = iter(chance.sample(range(max(offered, default=0) + 1, max(offered, default=0) + 1000), len(value)))
    return [next(strangers) if place % 2 == 0 else inner for place, inner in enumerate(value)]
