"""The question which candidates to take: what is asked, and what is made of the answers. Nothing is sent."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("pydantic", reason="profiles need pydantic")

from prorec_fast.profiles.errors import Malformed, NothingToSay
from prorec_fast.profiles.requests import Answer
from prorec_fast.profiles.rerank import Reranked, rerank_chain

USER = {"profile": "Likes <amber> & basalt."}
CANDIDATES = [{"id": 7, "title": "Seven"}, {"id": 30}, {"id": 4, "profile": "Four."}, {"id": 11}]


def walk(answers, *, user=USER, candidates=CANDIDATES, count=2, **given):
    """(what the chain came to, its requests); `answers` are contents, or what they are the JSON of."""
    chain, requests = rerank_chain(user, candidates, count, "Choose.", **given), []
    try:
        requests.append(next(chain))
        for answer in answers:
            content = answer if isinstance(answer, str) else json.dumps(answer)
            requests.append(chain.send(Answer("key", content, None, "stop", 1, 1)))
    except StopIteration as end:
        return end.value, requests
    raise AssertionError("it asks for more")


def test_rerank_asks_once_with_all_that_is_offered():
    found, (request,) = walk([{"ids": [4, 7]}])
    assert found == Reranked((4, 7), 0)
    system, message = request.messages
    assert system == {"role": "system", "content": "Choose."}
    assert json.loads(message["content"]) == {"user": USER, "candidates": CANDIDATES, "count": 2}
    schema = request.schema.model_json_schema()
    assert schema["properties"]["ids"]["items"] == {"type": "integer"} and schema["additionalProperties"] is False


@pytest.mark.parametrize(
    ("ids", "items", "invented"),
    [
        ([30, 4, 7], (30, 4), 0),  # more than there may be
        ([11], (11,), 0),  # fewer
        ([7, 7, 7, 4], (7, 4), 0),  # repeated
        ([5, 30, -1, 5, 10**30, 4], (30, 4), 3),  # invented, one of them twice
        ([8, 11], (11,), 1),
    ],
)
def test_rerank_keeps_the_candidates_ids_alone(ids, items, invented):
    assert walk([{"ids": ids}])[0] == Reranked(items, invented)


@pytest.mark.parametrize(
    "bad", [{"ids": []}, {"ids": [5, 6]}, {"ids": [4], "note": "x"}, {"ids": "all"}, "4, 7", "[4]"]
)
def test_rerank_asks_again_where_no_candidate_is_named(bad):
    found, requests = walk([bad, {"ids": [30]}])
    assert found == Reranked((30,), 0) and len(requests) == 2
    assert "cannot be used" in requests[1].messages[-1]["content"]
    with pytest.raises(Malformed, match="no valid answer in 2 attempts"):
        walk([bad, bad], attempts=2)


def test_rerank_tells_what_was_wrong_with_ids_that_are_no_candidates():
    requests = walk([{"ids": [5]}, {"ids": [4]}])[1]
    assert "ids has no id of a candidate" in requests[1].messages[-1]["content"]


def test_rerank_has_nothing_to_say():
    with pytest.raises(NothingToSay, match="no profile"):
        walk([], user={})
    with pytest.raises(NothingToSay, match="none of the candidates"):
        walk([], candidates=[{"id": 1}, {"id": 2}])


def test_rerank_round_reaches_the_key():
    assert walk([{"ids": [4]}], round=3)[1][0].round == 3
