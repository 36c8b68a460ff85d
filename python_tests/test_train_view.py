"""What of a data set reaches a prompt, and how much of it."""

from __future__ import annotations

import gc
import json
import re
import types

import numpy as np
import pytest
from profile_texts import dataset, split_data, texts

from prorec_fast.data.texts import NodeText, Review
from prorec_fast.profiles.errors import ProfileError
from prorec_fast.profiles.train_view import TrainView
from prorec_fast.profiles.wording import clean, cut, overlap, to_json


def all_materials(view: TrainView, item_profiles=()) -> list[dict]:
    items = [view.item_material(row) for row in range(view.num_items)]
    return items + [view.user_material(row, dict(item_profiles)) for row in range(view.num_users)]


def test_only_training_reviews_are_in_materials():
    data, words = split_data()
    view = TrainView(data, words, max_reviews=50, max_items=50)
    found = re.findall(r"canary-(\w+)-(\d+)-(\d+)", json.dumps(all_materials(view)))
    pairs = list(zip(*(side.tolist() for side in data.train.edges()), strict=True))
    assert {split for split, _, _ in found} == {"train"}
    assert sorted((int(u), int(i)) for _, u, i in found) == sorted(pairs * 2)  # with the item, and with the user


def test_a_view_holds_nothing_of_the_other_splits():
    data, words = split_data()
    view = TrainView(data, words)
    del words.reviews[:]
    seen, open_ends = set(), [view]
    while open_ends:
        one = open_ends.pop()
        if id(one) in seen or isinstance(one, type | types.ModuleType | types.FunctionType):
            continue
        seen.add(id(one))
        assert one is not data and one is not words
        assert not any(
            one is getattr(split, part) for split in (data.valid, data.test) for part in ("indptr", "indices")
        )
        assert not (isinstance(one, str) and re.search("canary-(valid|test|nowhere)", one))
        open_ends += gc.get_referents(one)
    assert all_materials(view) == all_materials(TrainView(*split_data()))


def test_item_material_is_what_there_is():
    data = dataset([[0], [0, 1]], 4)
    items = {0: NodeText("a", "Mole", "Small.", {"pages": "90", "empty": " "}), 2: NodeText("c", attributes={"x": "y"})}
    view = TrainView(data, texts(items, reviews=[Review(0, 0, "Fine", 4.0), Review(1, 0, " "), Review(1, 1, "Odd")]))
    assert view.item_material(0) == {
        "title": "Mole",
        "description": "Small.",
        "attributes": {"pages": "90"},
        "reviews": [{"rating": 4, "text": "Fine"}],
    }
    assert '"rating": 4,' in to_json(view.item_material(0))  # not 4.0
    assert view.item_material(1) == {"reviews": [{"text": "Odd"}]}
    assert view.item_material(2) == {"attributes": {"x": "y"}}
    assert view.item_material(3) == {}


def test_user_material_is_what_there_is():
    data = dataset([[0, 1, 2, 3], [], [3]], 4)
    items = {0: NodeText("a", "Mole", "Small."), 1: NodeText("b", "", "Tall."), 2: NodeText("c", "Vole")}
    users = {0: NodeText("u", text="I dig", attributes={"since": "1999"}), 1: NodeText("v", text="I wait")}
    reviews = [Review(0, 0, "Fine", 4.5), Review(0, 2, "", 1.0)]
    view = TrainView(data, texts(items, users, reviews))
    assert view.user_material(0, {1: "For climbers.", 0: "For diggers."}) == {
        "about": "I dig",
        "attributes": {"since": "1999"},
        "items": [
            {"title": "Mole", "profile": "For diggers.", "rating": 4.5, "review": "Fine"},
            {"profile": "For climbers."},
            {"title": "Vole", "rating": 1},
        ],
    }
    assert view.user_material(0, {})["items"][:2] == [
        {"title": "Mole", "description": "Small.", "rating": 4.5, "review": "Fine"},
        {"description": "Tall."},
    ]
    assert view.user_material(1, {}) == {}  # no training interactions
    assert view.user_material(2, {}) == {}  # one, with an item of which nothing is known
    assert view.user_material(2, {3: "For nobody."}) == {"items": [{"profile": "For nobody."}]}


def one_item_view(ratings: list[float | None], **given) -> TrainView:
    data = dataset([[0] for _ in ratings], 1)
    return TrainView(data, texts(reviews=[Review(u, 0, f"r{u}", r) for u, r in enumerate(ratings)]), **given)


def sampled(view: TrainView) -> list[str]:
    return [review["text"] for review in view.item_material(0).get("reviews", [])]


def test_samples_are_spread_over_ratings():
    view = one_item_view([5.0] * 90 + [1.0] * 2 + [3.0] * 30 + [None] * 5, max_reviews=6)
    ratings = [review.get("rating") for review in view.item_material(0)["reviews"]]
    assert len(ratings) == 6 and {1, 3, 5} <= set(ratings) and ratings.count(5) >= 3


def test_samples_depend_on_the_seed_and_the_pairs_alone():
    samples = [sampled(one_item_view([None] * 200, max_reviews=8, seed=seed)) for seed in (0, 0, 1, 2**40)]
    assert samples[0] == samples[1]
    assert len({tuple(sample) for sample in samples}) == 3 and all(len(set(sample)) == 8 for sample in samples)
    # pinned: another sample would ask, and pay, anew for what is stored
    assert samples[0] == ["r2", "r29", "r64", "r130", "r170", "r181", "r191", "r196"]

    data, words = split_data()
    views = [TrainView(data, words, max_reviews=2, max_items=3)]
    words.reviews.reverse()
    views.append(TrainView(data, words, max_reviews=2, max_items=3))
    assert all_materials(views[0]) == all_materials(views[1])


def test_samples_are_drawn_evenly():
    counts = np.zeros(20)
    for seed in range(300):
        for text in sampled(one_item_view([None] * 20, max_reviews=5, seed=seed)):
            counts[int(text[1:])] += 1
    assert counts.sum() == 1500 and np.abs(counts - 75).max() < 40  # 5 standard deviations


def test_reviews_are_in_the_order_of_users():
    data = dataset([[0, 1] for _ in range(500)], 2)
    view = TrainView(data, texts(reviews=[Review(u, i, f"r{u}") for u in range(500) for i in (1, 0)]), max_reviews=500)
    assert sampled(view) == [f"r{u}" for u in range(500)]


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_sample_sizes(count):
    assert len(sampled(one_item_view([None, 2.0] * 4, max_reviews=count))) == count
    assert len(sampled(one_item_view([None, 2.0], max_reviews=count))) == min(count, 2)


def test_reviewed_items_come_first_into_a_users_sample():
    data = dataset([list(range(40))], 40)
    items = {row: NodeText(str(row), f"T{row}") for row in range(30)}
    view = TrainView(data, texts(items, reviews=[Review(0, row, "mine") for row in (3, 17, 35)]), max_items=5)
    chosen = view.user_material(0, {})["items"]
    assert len(chosen) == 5 and [item.get("review") for item in chosen].count("mine") == 3
    assert all(item for item in chosen)  # items 30 to 39 say nothing, but for the reviewed one


def test_one_user_cannot_blow_up_a_prompt():
    long = "word " * 20_000
    data = dataset([list(range(300))], 300)
    items = {row: NodeText(str(row), long, long, {f"{n}{long}": long for n in range(100)}) for row in range(300)}
    view = TrainView(data, texts(items, {0: items[0]}, [Review(0, row, long, 3.0) for row in range(300)]))
    assert len(to_json(view.item_material(0))) < 20_000
    assert len(to_json(view.user_material(0, {row: long for row in range(300)}))) < 60_000
    shown = view.user_material(0, {})["items"][0]
    assert shown["review"].endswith("word...") and 490 < len(shown["review"]) <= 500


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_items": 0}, "max_items: want a whole number of at least 1, got 0"),
        ({"max_reviews": 2.0}, "max_reviews: want a whole number of at least 0, got 2.0"),
        ({"seed": -1}, "seed: want a whole number of at least 0, got -1"),
    ],
)
def test_view_rejects_settings(given, message):
    with pytest.raises(ProfileError, match=re.escape(message)):
        one_item_view([None], **given)


def test_view_rejects_rows():
    data = dataset([[0], [1]], 3)
    # user 0 and item 4 have the number of user 1 and item 1, a training pair
    with pytest.raises(ProfileError, match="review 1: user 0 and item 4 are not among 2 users and 3 items"):
        TrainView(data, texts(reviews=[Review(0, 0, "a"), Review(0, 4, "b")]))
    view = TrainView(data, texts())
    with pytest.raises(ProfileError, match="item 3: there are items 0 to 2"):
        view.item_material(3)
    with pytest.raises(ProfileError, match="user -1: there are users 0 to 1"):
        view.user_material(-1, {})


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        (" a\n\n b\tc\r\n", "a b c"),
        ("nul\x00 esc\x1b[31m del\x7f", "nul esc[31m del"),
        ("right \u202eleft\u2066 mark\u200f, zero\u200bwidth\ufeff, tag\U000e0041", "right left mark, zerowidth, tag"),
        ("half \ud83d of a pair", "half of a pair"),
        ("Q&amp;A, &#34;fine&#34; &lt;b&gt; &#8238;AT&T", 'Q&A, "fine" AT&T'),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \U0001f469\u200d\U0001f4bb", None),
        ("good<br />book, <b>bold</b>, 1 < 2 > 0 <3", "good book, bold , 1 < 2 > 0 <3"),
        ("</s><start_of_turn>user [INST] [/INST] [sic]", "user (INST) (/INST) [sic]"),
    ],
)
def test_clean(text, cleaned):
    assert clean(text) == (text if cleaned is None else cleaned)
    assert clean(text).encode()


def test_cut_ends_at_a_word():
    assert cut("one two three", 13) == "one two three"
    assert cut("one two three", 12) == "one two..."
    assert cut("one two three", 10) == "one two..."
    assert cut("one two three", 9) == "one..."
    assert cut("x" * 50, 10) == "x" * 7 + "..."
    assert cut("a " + "x" * 50, 10) == "a xxxxx..."
    assert all(len(cut("one two three", limit)) <= limit for limit in range(1, 20))


def test_json_is_short_and_without_angle_brackets():
    value = {"\u00fc": [4, 'a "b" \\ {c} <|im_end|>']}
    assert json.loads(to_json(value)) == value
    assert to_json(value).startswith('{"\u00fc": [4,') and not set("<>") & set(to_json(value))
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"rating": float("nan")})


def test_overlap():
    text = "Readers who love slow, winding mysteries set in small towns."
    assert overlap(text, text.upper().replace(",", " -")) == 1.0
    assert overlap(text, " ".join(reversed(text.split()))) == 1.0
    assert overlap(text, text.replace("small", "little")) == pytest.approx(9 / 11)
    assert overlap(text, "Fans of loud space battles and witty robots.") == 0.0
    assert overlap("!", "?") == 0.0
    assert overlap("喜欢慢节奏推理小说的读者", "喜欢慢节奏推理小说的读者。") == 1.0
