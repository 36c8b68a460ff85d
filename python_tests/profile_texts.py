"""A small data set with reviews of every pair there is, by split, and chains walked with made-up answers."""

from __future__ import annotations

import json

import numpy as np

from prorec_fast.data.dataset import Dataset, Interactions
from prorec_fast.data.texts import NodeText, Review, Texts
from prorec_fast.profiles.requests import Answer, ChatRequest
from prorec_fast.profiles.settings import ChatSettings

SETTINGS = ChatSettings("test-model")


def rows(lists: list[list[int]]) -> Interactions:
    indptr = np.concatenate(([0], np.cumsum([len(row) for row in lists]))).astype(np.int64)
    return Interactions(indptr, np.array([item for row in lists for item in row], dtype=np.int32))


def dataset(train: list[list[int]], num_items: int, valid=None, test=None) -> Dataset:
    nothing = [[] for _ in train]
    return Dataset("small", "small", len(train), num_items, rows(train), rows(valid or nothing), rows(test or nothing))


def texts(items=None, users=None, reviews=()) -> Texts:
    return Texts(items or {}, users or {}, list(reviews), "fingerprint")


def split_data(num_users: int = 12, num_items: int = 15) -> tuple[Dataset, Texts]:
    """A third of all pairs in train, a few in valid and test; every pair is reviewed, by a text that says its split."""
    kind = np.random.default_rng(5).integers(0, 9, (num_users, num_items))
    split_of = np.array(["train"] * 3 + ["valid", "test"] + ["nowhere"] * 4)[kind]
    lists = {split: [np.flatnonzero(row == split).tolist() for row in split_of] for split in np.unique(split_of)}
    reviews = [
        Review(u, i, f"canary-{split_of[u, i]}-{u}-{i}: what a pleasant thing", float(1 + (u + i) % 5))
        for u in range(num_users)
        for i in range(num_items)
    ]
    items = {i: NodeText(f"i{i}", f"Title {i}", f"About number {i}", {"kind": "thing"}) for i in range(num_items)}
    users = {u: NodeText(f"u{u}", text=f"I am number {u}") for u in range(num_users)}
    data = dataset(lists["train"], num_items, lists["valid"], lists["test"])
    return data, texts(items, users, reviews)


def said(value: dict | str, request: ChatRequest) -> Answer:
    content = value if isinstance(value, str) else json.dumps(value)
    return Answer(request.key(SETTINGS), content, None, "stop", 10, 10)


def walk(chain, answer):
    """(what the chain returns, the requests it made); `answer(request)` gives a value or an Answer for each."""
    requests = []
    try:
        request = next(chain)
        while True:
            requests.append(request)
            given = answer(request)
            request = chain.send(given if isinstance(given, Answer) else said(given, request))
    except StopIteration as end:
        return end.value, requests


def material_of(request: ChatRequest) -> dict:
    return json.loads(request.messages[1]["content"])
