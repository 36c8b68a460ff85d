"""What tokens cost, and a user's own table of prices."""

from __future__ import annotations

import json

import pytest

from prorec_fast.profiles.errors import ProfileError
from prorec_fast.profiles.pricing import Prices, estimated_tokens, most_tokens


def table(tmp_path, **parts):
    path = tmp_path / "prices.json"
    path.write_text(json.dumps(parts))
    return path


def test_costs_are_dollars_a_million_tokens():
    prices = Prices({"m": (2.0, 8.0)}, {"e": 0.5}, batch_factor=0.25)
    assert prices.chat_cost("m", 1_000_000, 0) == 2.0
    assert prices.chat_cost("m", 0, 1_000_000) == 8.0
    assert prices.chat_cost("m", 500, 250, batch=True) == pytest.approx((500 * 2 + 250 * 8) / 1e6 / 4)
    assert prices.embedding_cost("e", 4_000_000) == 2.0
    assert prices.chat_cost("e", 1, 1) is prices.embedding_cost("m", 1) is None


def test_an_own_table_replaces_entries_and_keeps_the_others(tmp_path):
    own = Prices.load()
    assert all(completion >= prompt > 0 for prompt, completion in own.chat.values()) and own.embedding
    path = table(tmp_path, chat={"gpt-4o-mini": [1, 2], "mine": [0, 0]}, embedding={"mine": 3})
    mixed = Prices.load(path)
    assert (mixed.chat["gpt-4o-mini"], mixed.chat["mine"], mixed.chat["gpt-4o"]) == ((1, 2), (0, 0), own.chat["gpt-4o"])
    assert mixed.embedding == {**own.embedding, "mine": 3} and mixed.batch_factor == own.batch_factor
    assert Prices.load(table(tmp_path, batch_factor=1)).batch_factor == 1


@pytest.mark.parametrize(
    ("parts", "wanted"),
    [
        ({"chats": {}}, "'chat', 'embedding' and 'batch_factor'"),
        ({"chat": []}, "object of models as 'chat'"),
        ({"embedding": 1}, "object of models as 'embedding'"),
        ({"chat": {"m": 1}}, r"\[prompt, completion\].*'m'"),
        ({"chat": {"m": [1]}}, "'m'"),
        ({"chat": {"m": [1, -1]}}, "'m'"),
        ({"chat": {"m": [1, True]}}, "'m'"),
        ({"chat": {"m": [1, float("inf")]}}, "'m'"),
        ({"chat": {"m": [1, float("nan")]}}, "'m'"),
        ({"embedding": {"m": "1"}}, "'m'"),
        ({"batch_factor": None}, "'batch_factor'"),
    ],
)
def test_a_table_of_another_form_is_refused(tmp_path, parts, wanted):
    with pytest.raises(ProfileError, match=f"prices.json: want .*{wanted}"):
        Prices.load(table(tmp_path, **parts))


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff", b"[1]"])
def test_a_file_that_is_no_table_is_refused(tmp_path, content):
    path = tmp_path / "prices.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ProfileError, match=r"prices\.json: (no readable|want)"):
        Prices.load(path)


def test_tokens_by_the_size_of_a_text():
    assert estimated_tokens(400) == 100
    assert (most_tokens(""), most_tokens("four"), most_tokens("小"), most_tokens("🙂")) == (0, 4, 3, 4)
