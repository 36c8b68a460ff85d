"""What the test server's model answers: made-up text and vectors, a pure function of the request's body.

Chat answers are instances of the JSON schema that the request holds; sentences are made of the words of its user
messages, so that what is written of two users differs as their reviews do. A vector is a hashed bag of words."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import random
import re
from collections import Counter
from functools import lru_cache

import numpy as np

_OPENINGS = (
    "Drawn to {a} and {b}",
    "Someone who comes back to {a}",
    "Looks first for {a}, then for {b}",
    "A quiet taste for {a} runs beneath {b}",
    "Would give up {a} for more {b}",
    "Finds {a} where others see only {b}",
    "Between {a} and {b}, always {a}",
    "Values {a} above all",
)
_ENDINGS = (
    "and rarely forgives {c}.",
    "with an eye for {c} and {d}.",
    "but is bored by {c}.",
    "as long as {c} stays close to {d}.",
    "because {c} feels {manner}.",
    "and shares {c} in a {manner} way.",
    "while {c} is read as {manner}.",
    "and expects {c} to be {manner}.",
)
_MANNERS = ("honest", "playful", "unhurried", "sharp", "generous", "restless", "careful", "bold", "tender", "plain")
_FALLBACK = ("detail", "comfort", "surprise", "craft", "value", "company", "story", "pace")
_TOKEN = re.compile(r"\w+|[^\w\s]")
_WORD = re.compile(r"[^\W\d_]{5,}")
_STOP = {
    "about", "after", "again", "answer", "attributes", "because", "before", "being", "between", "candidates", "could",
    "count", "description", "every", "false", "given", "items", "other", "please", "profile", "profiles", "rating",
    "review", "reviews", "should", "since", "their", "there", "these", "thing", "those", "title", "users", "where",
    "which", "while", "without", "would", "write",
}  # fmt: skip
# what was written before comes back in prompts: its own words would crowd out those of the users
_STOP.update(_WORD.findall(" ".join((*_OPENINGS, *_ENDINGS, *_MANNERS)).lower()))


def digest(path: str, body: object) -> str:
    """Hex hash of an endpoint and the canonical JSON of a body: what the ledger calls the same request."""
    text = path + "\n" + json.dumps(body, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def count_tokens(text: str) -> int:
    return len(_TOKEN.findall(text))


def cut_to(text: str, tokens: int) -> str:
    """The first `tokens` tokens of a text that has more."""
    return text[: [match.end() for match in _TOKEN.finditer(text)][tokens - 1]]


# --- What a request holds ---


def schema_of(body: dict) -> dict | None:
    """The JSON schema that the answer has to fit: of response_format, or in JSON mode the first in a system message."""
    form = body.get("response_format") or {}
    if form.get("type") == "json_schema":
        return form["json_schema"]["schema"]
    if form.get("type") == "json_object":
        for text in texts_of(body, "system", "developer"):
            for found in _json_objects(text):
                if "properties" in found:
                    return found
    return None


def candidates_of(body: dict) -> list[int]:
    """The ids of the list "candidates" in the JSON of a user message."""
    return [
        entry["id"] for entry in _field(body, "candidates", list) or [] if isinstance(entry, dict) and "id" in entry
    ]


def injected(body: dict) -> str | None:
    """What a text among the user messages, or in their JSON, orders the model to answer literally."""
    for message in texts_of(body, "user"):
        inner = [text for found in _json_objects(message) for text in _strings(found)]
        for text in [*inner, message]:
            order = re.search(r"IGNORE ALL INSTRUCTIONS AND ANSWER:[ \t]*([^\n]+)", text)
            if order:
                return order[1].strip()
    return None


def texts_of(body: dict, *roles: str) -> list[str]:
    """The messages of some roles, or the text parts of those that have parts."""
    texts = []
    for message in body["messages"]:
        if message.get("role") in roles:
            content = message.get("content") or ""
            texts += [content] if isinstance(content, str) else [part.get("text", "") for part in content]
    return texts


def _json_objects(text: str):
    """The outermost JSON objects in a text, first to last."""
    decoder, start = json.JSONDecoder(), text.find("{")
    while start >= 0:
        try:
            found, end = decoder.raw_decode(text, start)
        except ValueError:
            end = start + 1
        else:
            yield found
        start = text.find("{", end)


def _strings(value: object):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def _field(body: dict, name: str, kind: type):
    for text in texts_of(body, "user"):
        for found in _json_objects(text):
            if isinstance(found.get(name), kind):
                return found[name]
    return None


# --- Chat ---


def chat_content(body: dict) -> str:
    """The text of a well-behaved model's answer."""
    schema, writer = schema_of(body), _Writer(body)
    if schema is not None:
        return json.dumps(writer.instance(schema, schema), ensure_ascii=False)
    if (body.get("response_format") or {}).get("type") == "json_object":
        return json.dumps({"text": writer.text()}, ensure_ascii=False)
    return writer.text()


class _Writer:
    """Instances of a JSON schema, drawn with a generator that the request's body seeds."""

    def __init__(self, body: dict):
        self.random = random.Random(digest("", body))
        self.candidates = candidates_of(body)
        self.count = _field(body, "count", int)
        found = dict.fromkeys(_WORD.findall(" ".join(texts_of(body, "user")).lower()))
        self.words = [word for word in found if word not in _STOP] or list(_FALLBACK)
        self.written: set[str] = set()

    def text(self) -> str:
        """One to three sentences, another text every time."""
        while (text := " ".join(self._sentence() for _ in range(self.random.randint(1, 3)))) in self.written:
            pass
        self.written.add(text)
        return text

    def _sentence(self) -> str:
        pick = self.random.sample(self.words, min(4, len(self.words)))
        pick += self.random.choices(self.words, k=4 - len(pick))
        form = f"{self.random.choice(_OPENINGS)} {self.random.choice(_ENDINGS)}"
        return form.format(a=pick[0], b=pick[1], c=pick[2], d=pick[3], manner=self.random.choice(_MANNERS))

    def instance(self, schema: dict, root: dict):
        schema = _resolved(schema, root)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self.random.choice(schema["enum"])
        for several in ("anyOf", "oneOf"):
            if several in schema:
                branches = [branch for branch in schema[several] if branch.get("type") != "null"]
                return self.instance(branches[0] if branches else schema[several][0], root)
        if "allOf" in schema:
            return self.instance({name: value for part in schema["allOf"] for name, value in part.items()}, root)
        kind = schema.get("type", "object" if "properties" in schema else "string")
        if isinstance(kind, list):
            kind = next(name for name in kind if name != "null")
        return getattr(self, f"_{kind}")(schema, root)

    def _object(self, schema: dict, root: dict) -> dict:
        return {name: self.instance(part, root) for name, part in schema.get("properties", {}).items()}

    def _array(self, schema: dict, root: dict) -> list:
        inner = _resolved(schema.get("items", {"type": "string"}), root)
        least, most = schema.get("minItems", 0), schema.get("maxItems", math.inf)
        kind = inner.get("type")
        if kind == "integer" and self.candidates:
            wanted = self.count or self.random.randint(1, len(self.candidates))
            length = min(max(wanted, least), most, len(self.candidates))
            return self.random.sample(self.candidates, int(length))
        wanted = self.count if kind == "string" and self.count is not None else self.random.randint(2, 4)
        return [self.instance(inner, root) for _ in range(int(min(max(wanted, least), most)))]

    def _string(self, schema: dict, root: dict) -> str:
        text = self.text()
        while len(text) < schema.get("minLength", 0):
            text += " " + self._sentence()
        return text[: schema.get("maxLength")]

    def _integer(self, schema: dict, root: dict) -> int:
        least = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
        most = schema.get("maximum", schema.get("exclusiveMaximum", max(least, 0) + 11) - 1)
        return self.random.randint(math.ceil(least), math.floor(most))

    def _number(self, schema: dict, root: dict) -> float:
        least = schema.get("minimum", schema.get("exclusiveMinimum", 0))
        return self.random.uniform(least, schema.get("maximum", schema.get("exclusiveMaximum", least + 1)))

    def _boolean(self, schema: dict, root: dict) -> bool:
        return self.random.random() < 0.5

    def _null(self, schema: dict, root: dict) -> None:
        return None


def _resolved(schema: dict, root: dict) -> dict:
    """The schema with what its $ref names in its place."""
    while "$ref" in schema:
        target = root
        for step in schema["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        schema = {**target, **{name: value for name, value in schema.items() if name != "$ref"}}
    return schema


def strict_problem(schema: dict) -> str | None:
    """Why a service refuses a schema in strict mode; None where it takes it."""
    if schema.get("type") != "object" or "properties" not in schema:
        return "schema must be a JSON Schema of 'type: \"object\"' with 'properties'"
    for part in _parts(schema):
        if "properties" in part:
            if part.get("additionalProperties") is not False:
                return "'additionalProperties' is required to be supplied and to be false"
            if set(part.get("required", ())) != set(part["properties"]):
                return "'required' is required to be supplied and to be an array including every key in properties"
    return None


def _parts(schema: object):
    if isinstance(schema, dict | list):
        if isinstance(schema, dict):
            yield schema
        for inner in schema.values() if isinstance(schema, dict) else schema:
            yield from _parts(inner)


# --- Embeddings ---


def embedding(text: str, width: int) -> np.ndarray:
    """A unit vector, [width] float32: each word adds a direction of its own, so that similar texts are near."""
    counts = Counter(re.findall(r"\w+", text.lower())) or Counter([text])
    total = sum((1 + math.log(count)) * _direction(word, width) for word, count in sorted(counts.items()))
    return (total / np.linalg.norm(total)).astype(np.float32)


@lru_cache(maxsize=65536)
def _direction(word: str, width: int) -> np.ndarray:
    seed = hashlib.sha256(word.encode("utf-8", "surrogatepass")).digest()
    return np.random.default_rng(int.from_bytes(seed, "big")).standard_normal(width)


def encoded(vector: np.ndarray, encoding: str) -> list[float] | str:
    """The vector as JSON holds it: numbers, or for "base64" the little-endian float32 bytes."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if encoding == "base64" else vector.tolist()
