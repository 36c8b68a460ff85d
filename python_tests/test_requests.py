"""What a model is asked, what its answers are stored under, and what becomes of one that is not as asked."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from pydantic import BaseModel, ConfigDict, Field, create_model

from prorec_fast.profiles.digests import digest
from prorec_fast.profiles.errors import Malformed, ProfileError
from prorec_fast.profiles.requests import Answer, ChatRequest, ask
from prorec_fast.profiles.settings import ChatSettings, ServiceSettings

SETTINGS = ChatSettings("m", temperature=0.7)
SYSTEM, USER = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}


class Named(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field(description="Whose?")
    ages: list[int]


def test_key_depends_on_all_that_shapes_an_answer():
    base = ChatRequest((SYSTEM, USER), Named)
    longer = create_model("Named", __base__=Named, more=(str, ...))
    renamed = create_model("Other", __base__=Named)
    keys = [
        base.key(SETTINGS),
        *(base.key(replace(SETTINGS, **{name: value})) for name, value in [
            ("model", "n"), ("temperature", None), ("temperature", 0), ("max_tokens", 9), ("seed", 1), ("seed", 0),
            ("answer_format", "json"),
        ]),
        *(ChatRequest(messages, Named).key(SETTINGS) for messages in [
            (SYSTEM,), (USER, SYSTEM), (SYSTEM, {**USER, "content": "Who"}), (SYSTEM, {**USER, "role": "assistant"}),
            (SYSTEM, USER, USER),
        ]),
        *(ChatRequest(base.messages, schema).key(SETTINGS) for schema in (longer, renamed)),
        *(ChatRequest(base.messages, Named, round).key(SETTINGS) for round in (1, 2)),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert base.key(ChatSettings("m", temperature=1)) == base.key(ChatSettings("m", temperature=1.0))
    assert ChatRequest((dict(SYSTEM), dict(reversed(USER.items()))), Named).key(replace(SETTINGS)) == keys[0]


def test_key_is_always_the_same():
    """Answers are stored under it: where it changes, all that users have paid for is lost to them."""
    request = ChatRequest(({"role": "user", "content": "ü\ud800"},), Named)
    assert request.key(ChatSettings("m", seed=3)) == "5ce70935b2481febee64754c818bcc23"


def test_body_holds_the_settings():
    body = ChatRequest((SYSTEM, USER), Named).body(SETTINGS)
    form = body.pop("response_format")
    assert body == {"model": "m", "messages": [SYSTEM, USER], "temperature": 0.7, "max_completion_tokens": 4096}
    assert (form["type"], form["json_schema"]["name"], form["json_schema"]["strict"]) == ("json_schema", "Named", True)
    assert form["json_schema"]["schema"] == Named.model_json_schema()
    assert form["json_schema"]["schema"]["additionalProperties"] is False
    bare = ChatRequest((USER,), Named).body(ChatSettings("m", max_tokens=5, seed=0))
    assert "temperature" not in bare and (bare["seed"], bare["max_completion_tokens"]) == (0, 5)


def test_body_for_a_server_without_schemas_tells_of_the_schema():
    request = ChatRequest((SYSTEM, USER), Named)
    body = request.body(replace(SETTINGS, answer_format="json"))
    assert body["response_format"] == {"type": "json_object"} and body["max_tokens"] == 4096
    text = body["messages"][0]["content"]
    assert text.startswith("Be brief.\n\n") and json.loads(text[text.index("{") :]) == Named.model_json_schema()
    assert body["messages"][1] == USER and request.messages == (SYSTEM, USER)


def test_sizes_count_the_schema_and_bytes():
    short, long = (ChatRequest(({**USER, "content": "小" * n},), Named) for n in (0, 100))
    assert long.prompt_chars - short.prompt_chars == 100
    assert long.most_prompt_tokens - short.most_prompt_tokens == 300
    assert short.prompt_chars > len(json.dumps(Named.model_json_schema()))
    assert short.most_prompt_tokens > short.prompt_chars


def test_half_a_surrogate_pair_can_be_sent_and_kept():
    request = ChatRequest(({**USER, "content": "a\ud83d"},), Named)
    assert json.dumps(request.body(SETTINGS), ensure_ascii=False).encode() and request.messages[0]["content"] == "a?"
    assert answer(content="a\ud800").content == "a?" and answer(content="🙂").content == "🙂"


def answer(key="k", *, finish_reason="stop", usage=None, **message):
    body = {"choices": [{"message": {"role": "assistant", **message}, "finish_reason": finish_reason}], "usage": usage}
    return Answer.from_body(key, json.dumps(body))


def test_answer_is_read_from_a_completion():
    assert answer(content="c", refusal=None, usage={"prompt_tokens": 3, "completion_tokens": 4, "more": {}}) == Answer(
        "k", "c", None, "stop", 3, 4
    )
    assert Answer.from_body("k", '{"choices": [{"message": {}}]}') == Answer("k", None, None, None, None, None)


@pytest.mark.parametrize("usage", [None, [], 7, {}, *({"prompt_tokens": n} for n in (-1, 1.5, True, "9", 10**30))])
def test_an_answer_is_not_lost_for_a_usage_that_makes_no_sense(usage):
    read = answer(content="c", usage=usage)
    assert (read.content, read.prompt_tokens, read.completion_tokens) == ("c", None, None)


@pytest.mark.parametrize("body", ["", "<html>", "null", "[]", "{}", '{"choices": []}', '{"choices": [1]}',
                                  '{"choices": [{"message": "x"}]}', '{"choices": [{"message": {"content": [1]}}]}',
                                  '{"choices": [{"message": {"refusal": 1}}]}', '{"error": {"message": "m"}}',
                                  '{"choices": [{"message": {}, "finish_reason": {}}]}', "[" * 100_000])  # fmt: skip
def test_what_is_no_completion_is_no_answer(body):
    with pytest.raises(ValueError, match="not a chat completion"):
        Answer.from_body("k", body)


GOOD = '{"name": "Ada", "ages": [1, 2]}'


def walked(answers, **given):
    """The requests of an `ask` that is sent these answers, and its result or its Malformed."""
    chain, requests = ask([SYSTEM, USER], Named, **given), []
    try:
        requests.append(next(chain))
        for each in answers:
            requests.append(chain.send(each))
    except StopIteration as end:
        return requests, end.value
    except Malformed as error:
        return requests, error
    raise AssertionError("the chain wants more answers")


def test_a_valid_answer_ends_it():
    requests, checked = walked([answer("one", content=GOOD)])
    assert requests == [ChatRequest((SYSTEM, USER), Named)]
    assert checked.value == Named(name="Ada", ages=[1, 2]) and checked.keys == ("one",)


@pytest.mark.parametrize(("bad", "said"), [
    ({"content": '{"name": "Ada"}'}, "ages: Field required"),
    ({"content": '{"name": "Ada", "ages": ["x"]}'}, r"ages\.0: Input should be a valid integer"),
    ({"content": '{"name": "Ada", "ages": [], "more": 1}'}, "more: Extra inputs are not permitted"),
    ({"content": GOOD[:-5]}, "Invalid JSON"),
    ({"content": "Sure!"}, "Invalid JSON"),
    ({"content": f"[{GOOD}]"}, "the whole: Input should be an object"),
    ({"content": f"{GOOD} {GOOD}"}, "Invalid JSON"),
    ({"content": '{"name": "\\ud800", "ages": []}'}, "Invalid JSON"),
    ({"content": "[" * 100_000}, "Invalid JSON"),
    ({"content": GOOD, "finish_reason": "length"}, "cut off"),
    ({"content": None}, r"empty \(finish reason stop\)"),
    ({"content": "", "finish_reason": "content_filter"}, r"empty \(finish reason content_filter\)"),
    ({"content": None, "refusal": "I would\nrather not."}, "refusal.*I would rather not"),
])  # fmt: skip
def test_a_malformed_answer_is_asked_again_with_what_was_wrong(bad, said):
    requests, checked = walked([answer("one", **bad), answer("two", content=GOOD)], round=3)
    assert checked.value.name == "Ada" and checked.keys == ("one", "two")
    assert requests[1].messages[:2] == (SYSTEM, USER) and {each.round for each in requests} == {3}
    shown, why = requests[1].messages[2:]
    assert shown["role"] == "assistant" and shown["content"] == (bad["content"] or bad.get("refusal") or "(no answer)")
    assert why["role"] == "user" and "\n" not in why["content"]
    requests, error = walked([answer(str(i), **bad) for i in range(3)])
    assert isinstance(error, Malformed) and len(error.reasons) == len(requests) == 3
    with pytest.raises(Malformed, match=said):
        raise error


def test_every_bad_answer_is_shown_so_that_none_is_asked_twice():
    requests, _ = walked([answer(content="one"), answer(content="one"), answer(content=GOOD)])
    assert [len(each.messages) for each in requests] == [2, 4, 6]
    assert len({each.key(SETTINGS) for each in requests}) == 3


@pytest.mark.parametrize("content", [f"```json\n{GOOD}\n```", f"```\n{GOOD}```", f" \n{GOOD}\n ",
                                     f"Here it is:\n```JSON\n{GOOD}\n```\nAnything else?"])  # fmt: skip
def test_json_in_a_code_block_is_read(content):
    assert walked([answer(content=content)])[1].value == Named(name="Ada", ages=[1, 2])


def test_a_code_block_inside_json_is_left_alone():
    content = json.dumps({"name": '```json\n{"name": "x", "ages": []}\n```', "ages": [5]})
    assert walked([answer(content=content)])[1].value.ages == [5]


def test_a_check_may_refuse_or_replace():
    def check(value):
        if value.name == "Ada":
            raise ValueError("no,\nnot Ada")
        return value.name.upper() if value.ages else None

    requests, checked = walked([answer(content=GOOD), answer(content='{"name": "Bo", "ages": [1]}')], check=check)
    assert checked.value == "BO" and "cannot be used: no, not Ada." in requests[1].messages[3]["content"]
    assert walked([answer(content='{"name": "Bo", "ages": []}')], check=check)[1].value == Named(name="Bo", ages=[])


def test_attempts_are_counted():
    requests, error = walked([answer(content="x")], attempts=1)
    assert len(requests) == 1 and "1 attempts" in str(error) and isinstance(error, ProfileError)
    with pytest.raises(ValueError, match="attempts: want"):
        next(ask([USER], Named, attempts=0))


def test_digest_tells_values_apart():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    values = [[], [[]], "", "1", 1, None, ["a", "b"], ["ab"], {"a": None}, {}]
    assert len({digest(value) for value in values}) == len(values)


@pytest.mark.parametrize(("wrong", "named"), [
    ({"model": ""}, "model"), ({"model": "m", "temperature": -1.0}, "temperature"),
    ({"model": "m", "temperature": float("nan")}, "temperature"), ({"model": "m", "max_tokens": 0}, "max_tokens"),
    ({"model": "m", "answer_format": "xml"}, "answer_format"),
])  # fmt: skip
def test_chat_settings_are_checked(wrong, named):
    with pytest.raises((ValueError, TypeError), match=f"{named}: want"):
        ChatSettings(**wrong)


@pytest.mark.parametrize(("wrong", "named"), [
    ({"timeout": 0}, "timeout"), ({"concurrency": 0}, "concurrency"), ({"retries": -1}, "retries"),
    ({"retries": 1.5}, "retries"), ({"base_url": "localhost:8000/v1"}, "base_url"), ({"base_url": ""}, "base_url"),
    ({"base_url": "http://"}, "base_url"), ({"base_url": "http://[::1"}, "base_url"),
    ({"base_url": "http://a b/v1"}, "base_url"), ({"base_url": "http://a\n/v1"}, "base_url"),
])  # fmt: skip
def test_service_settings_are_checked(wrong, named):
    with pytest.raises((ValueError, TypeError), match=f"{named}: want"):
        ServiceSettings(**wrong)


def test_a_password_in_a_url_is_refused_and_not_shown():
    for url in ("https://user:hunter2@localhost/v1", "hunter2://:hunter2@localhost"):
        with pytest.raises(ProfileError, match="without a user and password") as caught:
            ServiceSettings(base_url=url)
        assert "hunter2" not in str(caught.value)
    assert ServiceSettings(base_url="HTTPS://[::1]:8000/v1/@cf").base_url


def test_a_key_that_is_none_is_named_and_not_shown(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "sk-s\u00e9cret")
    with pytest.raises(ProfileError, match="SOME_KEY") as refused:
        ServiceSettings(key_variable="SOME_KEY").client()
    assert "cret" not in str(refused.value)
    monkeypatch.delenv("SOME_KEY")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ProfileError, match="no key: set the environment variable SOME_KEY"):
        ServiceSettings(key_variable="SOME_KEY").client()
    monkeypatch.setenv("OPENAI_BASE_URL", "localhost:1")
    with pytest.raises(ProfileError, match="OPENAI_BASE_URL: want a URL"):
        ServiceSettings(key_variable="SOME_KEY").client()


def test_a_key_is_redacted_and_read_without_its_line_end(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\n")
    service = ServiceSettings(base_url="http://127.0.0.1:1/v1")
    assert service.client().api_key == "sk-secret"
    assert service.redacted("no such key:\n sk-secret.") == "no such key: ***."
