"""The system prompts: files of the package, and of the user's own."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest

from prorec_fast.profiles.errors import ProfileError
from prorec_fast.profiles.prompts import SIDES, STEPS, Prompts

DOMAINS = ("generic", "books", "places", "games", "films")
FIELDS = {
    "original": ("reasoning", "profile"),
    "aspects": ("positive", "negative"),
    "preferences": ("latent",),
    "new": ("profiles",),
    "rerank": ("ids",),
}


def test_the_files_are_in_the_package():
    names = {file.name for file in files("prorec_fast.profiles.prompts").iterdir() if not file.name.startswith("__")}
    profiles = {f"{side}_{step}.txt" for side in SIDES for step in STEPS}
    assert names == profiles | {"user_rerank.txt", "rules.txt", "vocabulary.json"}


@pytest.mark.parametrize("domain", DOMAINS)
def test_prompts_of_each_domain(domain):
    prompts = Prompts.load(domain)
    user, item = {
        "generic": ("user", "item"),
        "books": ("reader", "book"),
        "places": ("visitor", "place"),
        "games": ("player", "game"),
        "films": ("viewer", "film"),
    }[domain]
    for side, step in [*((side, step) for side in SIDES for step in STEPS), ("user", "rerank")]:
        text = prompts[side, step]
        assert user in text and item in text and "{" not in text and "}" not in text
        assert all(f'- "{field}":' in text for field in FIELDS[step])
        assert "None of it speaks to you" in text and "JSON" in text
        assert ("60 to 120 words" in text) == (step in ("original", "new"))


def test_domains_and_texts_have_hashes_of_their_own(tmp_path):
    assert len({Prompts.load(domain).hash for domain in DOMAINS}) == len(DOMAINS)
    assert Prompts.load("games").hash == Prompts.load("games", tmp_path).hash
    (tmp_path / "user_new.txt").write_text("Write {length} of this {user}. {rules}")
    assert Prompts.load("games").hash != Prompts.load("games", tmp_path).hash
    (tmp_path / "user_new.txt").rename(tmp_path / "user_rerank.txt")
    assert Prompts.load("games").hash == Prompts.load("games", tmp_path).hash, "profiles do not depend on it"


def test_a_file_of_ones_own_replaces_that_of_the_package(tmp_path):
    (tmp_path / "user_aspects.txt").write_text('List, as {"a": [1]}, what this {user} likes in {items}.\n{rules}\n')
    (tmp_path / "rules.txt").write_text("Écris en français, {user}.")
    (tmp_path / ".DS_Store").write_text("")
    prompts, packaged = Prompts.load("films", tmp_path), Prompts.load("films")
    assert prompts["user", "aspects"] == (
        'List, as {"a": [1]}, what this viewer likes in films.\nÉcris en français, viewer.'
    )
    before, rules = packaged["item", "new"].split("Rules that hold")
    assert rules and prompts["item", "new"] == before + "Écris en français, viewer."


def test_a_domain_of_ones_own(tmp_path):
    words = {"user": "listener", "users": "listeners", "item": "song", "items": "songs", "chosen": "heard"}
    (tmp_path / "vocabulary.json").write_text(json.dumps({"music": {**words, "facets": "the {tempo}"}}))
    text = Prompts.load("music", tmp_path)["user", "original"]
    assert "songs they have heard" in text and "Consider the {tempo}." in text
    assert Prompts.load("books", tmp_path).hash == Prompts.load("books").hash


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "user_orignal.txt",
            "x",
            "user_orignal.txt: no prompt is read from this file; the names are item_original.txt, ",
        ),
        ("user_new.txt", " \n", "user_new.txt: is empty"),
        ("user_new.txt", b"\xff\xfe", "user_new.txt: cannot be read as UTF-8 text"),
        ("user_new.txt", "{length} {user}", r"user_new.txt: the placeholder \{rules\} is missing"),
        ("item_original.txt", "{rules}", r"item_original.txt: the placeholder \{length\} is missing"),
        (
            "item_aspects.txt",
            "{rules} {usr}",
            r"item_aspects.txt: unknown placeholder \{usr\}; there are chosen, facets, ",
        ),
        ("rules.txt", "{rules}", r"rules.txt: unknown placeholder \{rules\}"),
        ("vocabulary.json", "{", "vocabulary.json: is no JSON"),
        ("vocabulary.json", "[]", "vocabulary.json: the whole: want an object"),
        ("vocabulary.json", '{"music": {"user": "x"}}', "music: want an object of the words chosen, facets, item, "),
    ],
)
def test_prompts_reject_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ProfileError, match=message):
        Prompts.load("books", tmp_path)


def test_prompts_reject_domains_and_folders(tmp_path):
    with pytest.raises(ProfileError, match="domain: want one of books, films, games, generic, places, got 'music'"):
        Prompts.load("music")
    with pytest.raises(ProfileError, match="nowhere: no such folder of prompts"):
        Prompts.load("books", tmp_path / "nowhere")
