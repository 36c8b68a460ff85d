"""Files and batches of the test server: a batch moves on as it is looked at, and costs from its creation."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from llm_model import CHAT, EMBEDDINGS

FINISHED = ("completed", "failed", "expired", "cancelled")
_EXPIRED = {
    "code": "batch_expired",
    "message": "This request could not be executed before the completion window expired.",
}


@dataclass(frozen=True)
class BatchPlan:
    """What becomes of a batch. Its lines meet the server's faults as other requests do."""

    polls: int = 2  # GETs of the batch until one shows it finished; those before show it in progress
    delay: float = 0.0  # seconds from its creation until it is finished, at the least
    expire_after: float | None = None  # it expires with this share of its lines done
    fail: str | None = None  # it fails its validation with this code, "token_limit_exceeded" say
    shuffle: bool = False  # the output's lines come in another order than the input's
    max_lines: int = 50_000
    edit: Callable[[list[dict]], list[dict | str]] | None = None  # its output instead; text as it is


@dataclass
class _Batch:
    shown: dict
    plan: BatchPlan
    good: list[dict] = field(default_factory=list)  # the lines of its output file, and of its error file
    bad: list[dict] = field(default_factory=list)
    polls: int = 0
    created: float = field(default_factory=time.monotonic)


class Batches:
    """`answer(path, body)` is the (status, body) that the server has for a line."""

    def __init__(self, plan: BatchPlan | Callable[[int], BatchPlan], answer: Callable[[str, dict], tuple[int, dict]]):
        self._plan = plan if callable(plan) else lambda number: plan
        self._answer = answer
        self._files: dict[str, tuple[dict, bytes]] = {}
        self._batches: dict[str, _Batch] = {}

    def add_file(self, content: bytes, filename: str, purpose: str) -> dict:
        name = f"file-{len(self._files) + 1:06d}"
        shown = {
            "id": name,
            "object": "file",
            "bytes": len(content),
            "created_at": int(time.time()),
            "filename": filename,
            "purpose": purpose,
            "status": "processed",
        }
        self._files[name] = (shown, content)
        return shown

    def files(self, purpose: str | None, limit: int, after: str | None) -> dict:
        """Newest first."""
        shown = [file for file, _ in reversed(self._files.values()) if purpose in (None, file["purpose"])]
        return _page(shown, limit, after)

    def file(self, name: str) -> tuple[dict, bytes] | None:
        return self._files.get(name)

    def create(self, body: object) -> dict:
        """The new batch, already answered but for showing it.

        Raises:
            ValueError: the request is none for a batch. (What is wrong with its file, the batch itself says later.)
        """
        if not isinstance(body, dict):
            raise ValueError("We could not parse the JSON body of your request.")
        source, endpoint = self._files.get(body.get("input_file_id")), body.get("endpoint")
        if source is None:
            raise ValueError(f"No such File object: {body.get('input_file_id')}")
        if source[0]["purpose"] != "batch":
            raise ValueError("The input file must have the purpose 'batch'.")
        if endpoint not in (CHAT, EMBEDDINGS):
            raise ValueError(f"Unsupported endpoint {endpoint!r}.")
        if body.get("completion_window") != "24h":
            raise ValueError("completion_window must be '24h'.")
        plan, now, name = self._plan(len(self._batches)), int(time.time()), f"batch_{len(self._batches) + 1:06d}"
        lines, errors = _lines(source[1], endpoint, plan)
        shown = {
            "id": name,
            "object": "batch",
            "endpoint": endpoint,
            "errors": {"object": "list", "data": errors} if errors else None,
            "input_file_id": source[0]["id"],
            "completion_window": "24h",
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": now,
            "expires_at": now + 24 * 3600,
            "metadata": body.get("metadata"),
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
        }
        batch = self._batches[name] = _Batch(shown, plan)
        if not errors:
            self._run(batch, lines)
        return shown.copy()

    def poll(self, name: str) -> dict | None:
        batch = self._batches.get(name)
        if batch is None:
            return None
        batch.polls += 1
        if batch.shown["status"] not in FINISHED:
            self._move_on(batch)
        return batch.shown.copy()

    def cancel(self, name: str) -> dict | None:
        """What was done by then is in the cancelled batch's files."""
        batch = self._batches.get(name)
        if batch is None:
            return None
        if batch.shown["status"] not in FINISHED:
            batch.shown |= {"status": "cancelling", "cancelling_at": int(time.time())}
        return batch.shown.copy()

    def page(self, limit: int, after: str | None) -> dict:
        """Newest first. To be listed moves no batch on."""
        return _page([batch.shown.copy() for batch in reversed(self._batches.values())], limit, after)

    def _run(self, batch: _Batch, lines: list[dict]) -> None:
        share = batch.plan.expire_after
        done = len(lines) if share is None else int(share * len(lines))
        for place, line in enumerate(lines):
            entry = {"id": f"batch_req_{place}", "custom_id": line["custom_id"], "response": None, "error": None}
            status = None
            if place < done:
                status, body = self._answer(batch.shown["endpoint"], line["body"])
                entry["response"] = {"status_code": status, "request_id": f"req_{place}", "body": body}
            else:
                entry["error"] = _EXPIRED
            (batch.good if status == 200 else batch.bad).append(entry)
        if batch.plan.shuffle:
            random.Random(0).shuffle(batch.good)

    def _move_on(self, batch: _Batch) -> None:
        shown, plan = batch.shown, batch.plan
        if shown["errors"]:
            status = "failed"
        elif shown["status"] == "cancelling":
            status = "cancelled"
        elif batch.polls < plan.polls or time.monotonic() - batch.created < plan.delay:
            status = "in_progress"
        else:
            status = "completed" if plan.expire_after is None else "expired"
        shown |= {"status": status, f"{status}_at": int(time.time())}
        if status == "failed":
            return
        finished, total = status in FINISHED, len(batch.good) + len(batch.bad)
        done = (len(batch.good), len(batch.bad)) if finished else (0, 0)
        shown["request_counts"] = {"total": total, "completed": done[0], "failed": done[1]}
        for entries, kind in ((batch.good, "output"), (batch.bad, "error")) if finished else ():
            if kind == "output" and plan.edit is not None:
                entries = plan.edit(entries)
            if entries:
                lines = (entry if isinstance(entry, str) else json.dumps(entry) + "\n" for entry in entries)
                text = "".join(lines).encode()
                shown[f"{kind}_file_id"] = self.add_file(text, f"{shown['id']}_{kind}.jsonl", "batch_output")["id"]


def _page(shown: list[dict], limit: int, after: str | None) -> dict:
    start = 1 + next((place for place, entry in enumerate(shown) if entry["id"] == after), -1)
    data = shown[start : start + limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": start + limit < len(shown),
    }


def _lines(content: bytes, endpoint: str, plan: BatchPlan) -> tuple[list[dict], list[dict]]:
    """The requests of an input file, and why it fails its validation."""
    lines, errors, seen = [], [], set()

    def error(code: str, message: str, line: int | None = None) -> None:
        errors.append({"code": code, "message": message, "line": line, "param": None})

    for number, text in enumerate(content.splitlines(), 1):
        try:
            line = json.loads(text)
            name, method, url, _ = line["custom_id"], line["method"], line["url"], line["body"]["model"]
        except (ValueError, KeyError, TypeError):
            error("invalid_json_line", "This line is not parseable as a request.", number)
            continue
        if name in seen:
            error("duplicate_custom_id", f"The custom_id {name!r} is not unique.", number)
        if (method, url) != ("POST", endpoint):
            error("invalid_url", f"The line asks for {method} {url}, the batch for POST {endpoint}.", number)
        seen.add(name)
        lines.append(line)
    if not content.strip():
        error("empty_file", "The input file is empty.")
    if len(lines) > plan.max_lines:
        error("too_many_requests", f"The input file has more than {plan.max_lines} requests.")
    if plan.fail:
        error(plan.fail, "The batch was refused.")
    return lines, errors
