"""Files and batches of the test server: uploads, and batches that move on as they are looked at."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

ENDPOINTS = ("/v1/chat/completions", "/v1/embeddings")
FINISHED = ("completed", "failed", "expired", "cancelled")


@dataclass(frozen=True)
class BatchPlan:
    """What becomes of a batch. Lines of a batch meet the server's faults as other requests do."""

    polls: int = 2  # GETs of the batch until it is finished: validating, in_progress ..., completed
    delay: float = 0.0  # seconds from its creation, at the least
    expire_after: float | None = None  # it expires with this share of its lines done
    fail: str | None = None  # it fails its validation with this code, "token_limit_exceeded" say
    shuffle: bool = False  # the output's lines come in another order than the input's
    max_lines: int = 50_000


@dataclass
class _Batch:
    shown: dict
    lines: list[dict]
    plan: BatchPlan
    created: float = field(default_factory=time.monotonic)
    polls: int = 0


class Batches:
    """`answer(path, body) -> (status, body)` answers a line as the server would answer it as a request."""

    def __init__(self, plan: BatchPlan | Callable[[int], BatchPlan], answer: Callable[[str, dict], tuple[int, dict]]):
        self._plan = plan if callable(plan) else lambda number: plan
        self._answer = answer
        self._files: dict[str, tuple[dict, bytes]] = {}
        self._batches: dict[str, _Batch] = {}

    # --- Files ---

    def add_file(self, content: bytes, filename: str, purpose: str) -> dict:
        name = f"file-{len(self._files) + 1:06d}"
        shown = {"id": name, "object": "file", "bytes": len(content), "created_at": int(time.time()),
                 "filename": filename, "purpose": purpose, "status": "processed"}  # fmt: skip
        self._files[name] = (shown, content)
        return shown

    def file(self, name: str) -> tuple[dict, bytes] | None:
        return self._files.get(name)

    # --- Batches ---

    def create(self, body: dict) -> dict | str:
        """The new batch, or what is wrong with the request."""
        source, endpoint = self._files.get(body.get("input_file_id")), body.get("endpoint")
        if source is None:
            return f"No such File object: {body.get('input_file_id')}"
        if source[0]["purpose"] != "batch":
            return "The input file must have the purpose 'batch'."
        if endpoint not in ENDPOINTS:
            return f"Unsupported endpoint {endpoint!r}."
        if body.get("completion_window") != "24h":
            return "completion_window must be '24h'."
        plan, now, name = self._plan(len(self._batches)), int(time.time()), f"batch_{len(self._batches) + 1:06d}"
        lines, errors = _lines(source[1], endpoint, plan)
        shown = {"id": name, "object": "batch", "endpoint": endpoint, "errors": None, "input_file_id": source[0]["id"],
                 "completion_window": "24h", "status": "validating", "output_file_id": None, "error_file_id": None,
                 "created_at": now, "expires_at": now + 86400, "metadata": body.get("metadata"),
                 "request_counts": {"total": 0, "completed": 0, "failed": 0}}  # fmt: skip
        if errors:
            shown["errors"] = {"object": "list", "data": errors}
        self._batches[name] = _Batch(shown, lines, plan)
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
        batch = self._batches.get(name)
        if batch is None:
            return None
        if batch.shown["status"] not in FINISHED:
            batch.shown |= {"status": "cancelling", "cancelling_at": int(time.time())}
        return batch.shown.copy()

    def page(self, limit: int, after: str | None) -> dict:
        """Newest first; a list is no poll."""
        names = list(reversed(self._batches))
        start = names.index(after) + 1 if after in names else 0
        data = [self._batches[name].shown.copy() for name in names[start : start + limit]]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
        return {"object": "list", "data": data, **ends, "has_more": start + limit < len(names)}

    def _move_on(self, batch: _Batch) -> None:
        shown, plan, now = batch.shown, batch.plan, int(time.time())
        if shown["status"] == "cancelling":
            shown |= {"status": "cancelled", "cancelled_at": now}
        elif shown["errors"]:
            shown |= {"status": "failed", "failed_at": now}
        elif batch.polls < plan.polls or time.monotonic() - batch.created < plan.delay:
            shown |= {"status": "in_progress", "in_progress_at": now}
            shown["request_counts"] = {"total": len(batch.lines), "completed": 0, "failed": 0}
        else:
            self._finish(batch)

    def _finish(self, batch: _Batch) -> None:
        shown, plan = batch.shown, batch.plan
        done = len(batch.lines) if plan.expire_after is None else int(plan.expire_after * len(batch.lines))
        good, bad = [], []
        for place, line in enumerate(batch.lines):
            entry = {"id": f"batch_req_{shown['id'][6:]}_{place}", "custom_id": line["custom_id"],
                     "response": None, "error": None}  # fmt: skip
            if place < done:
                status, body = self._answer(shown["endpoint"], line["body"])
                entry["response"] = {"status_code": status, "request_id": f"req_{place}", "body": body}
                (good if status == 200 else bad).append(entry)
            else:
                entry["error"] = {
                    "code": "batch_expired",
                    "message": "This request could not be executed before the completion window expired.",
                }
                bad.append(entry)
        if plan.shuffle:
            random.Random(len(good)).shuffle(good)
        status = "completed" if plan.expire_after is None else "expired"
        shown |= {"status": status, f"{status}_at": int(time.time())}
        shown["request_counts"] = {"total": len(batch.lines), "completed": len(good), "failed": len(bad)}
        for entries, kind in ((good, "output"), (bad, "error")):
            if entries:
                text = "".join(json.dumps(entry) + "\n" for entry in entries).encode()
                shown[f"{kind}_file_id"] = self.add_file(text, f"{shown['id']}_{kind}.jsonl", "batch_output")["id"]


def _lines(content: bytes, endpoint: str, plan: BatchPlan) -> tuple[list[dict], list[dict]]:
    """The requests of an input file, and why it fails its validation."""
    lines, errors, seen = [], [], set()

    def error(code: str, message: str, line: int | None) -> None:
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
    if not lines and not errors:
        error("empty_file", "The input file is empty.", None)
    if len(lines) > plan.max_lines:
        error("too_many_requests", f"The input file has more than {plan.max_lines} requests.", None)
    if plan.fail:
        error(plan.fail, "The batch was refused.", None)
    return lines, errors
