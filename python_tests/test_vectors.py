"""Files of K profile vectors: written from texts, read by training, refused where they are not what they seem."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from profile_texts import dataset
from training_data import write_tiny
from written_profiles import write_profiles

from prorec_fast.data import DataError, load
from prorec_fast.data.jsonl import write_jsonl
from prorec_fast.data.profile_tensors import ProfileVectors, read_profile_tensors
from prorec_fast.profiles.errors import ProfileError
from prorec_fast.profiles.texts import ProfileTexts, read_profile_texts
from prorec_fast.profiles.vectors import FolderTexts, load_vectors, make_vectors, save_vectors
from prorec_fast.retrieval import Whitening

safetensors_torch = pytest.importorskip("safetensors.torch")


def some_vectors(num_users=60, num_items=50, width=6, count=3, lineage=None, **given):
    generator = torch.Generator().manual_seed(1)
    users, items = (torch.randn(count, rows, width, generator=generator) for rows in (num_users, num_items))
    has = torch.ones(num_users, dtype=torch.bool), torch.ones(num_items, dtype=torch.bool)
    return ProfileVectors(users, items, *has, {} if lineage is None else lineage, **given)


@pytest.fixture
def folder(tmp_path):
    return write_tiny(tmp_path / "tiny", profiles=False)


# files


def test_vectors_come_back_as_they_were_written(tmp_path):
    has_text = torch.arange(60) % 2 == 0
    keys = [f'u"{row}é' for row in range(60)]
    whitening = Whitening(6).fit(torch.randn(30, 9, generator=torch.Generator().manual_seed(0))).state_dict()
    vectors = some_vectors(lineage={"split": "abc", "n": 1}, user_keys=keys, whitening=whitening)
    vectors = replace(vectors, user_has_text=has_text)
    path = tmp_path / "profiles_x.safetensors"
    save_vectors(path, vectors)
    found = load_vectors(path, num_users=60, num_items=50)
    for name in ("users", "items", "user_has_text", "item_has_text"):
        assert torch.equal(getattr(found, name), getattr(vectors, name)), name
    assert found.lineage == {"split": "abc", "n": 1} and found.user_keys == keys and found.item_keys is None
    assert found.num_profiles == 3
    new = torch.randn(4, 9)
    again = Whitening(6).load_state_dict(found.whitening)
    assert torch.equal(again.transform(new), Whitening(6).load_state_dict(whitening).transform(new))
    before = path.read_bytes()
    save_vectors(path, replace(found, lineage={"n": 1, "split": "abc"}))
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "profiles_x.safetensors"
    save_vectors(path, some_vectors())
    before = path.read_bytes()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space left"):
        save_vectors(path, some_vectors(count=1))
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == [path.name]


def save(path, tensors=None, lineage=None, **changed):
    vectors = some_vectors()
    tensors = tensors or {"users": vectors.users, "items": vectors.items}
    metadata = None if lineage is None else {"lineage": lineage if isinstance(lineage, str) else json.dumps(lineage)}
    tensors = {name: tensor for name, tensor in {**tensors, **changed}.items() if tensor is not None}
    safetensors_torch.save_file(tensors, path, metadata)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_read_as_float32(tmp_path, dtype):
    vectors = some_vectors()
    save(tmp_path / "f", {"users": vectors.users.to(dtype), "items": vectors.items.to(dtype)})
    found = read_profile_tensors(tmp_path / "f")
    assert found.users.dtype == torch.float32 and torch.equal(found.users, vectors.users.to(dtype).float())
    assert bool(found.user_has_text.all()) and found.lineage == {} and found.user_keys is None


def _nan(tensor):
    tensor = tensor.clone()
    tensor[1, 4, 2] = float("nan")
    return tensor


VECTORS = some_vectors()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"users": None}, r"no tensor 'users' \[K, users, t\]"),
        ({"users": VECTORS.users[:2].clone()}, r"users are \(2, 60, 6\) and items \(3, 50, 6\)"),
        ({"items": VECTORS.items[:, :, :4].clone()}, "one space"),
        ({"items": VECTORS.items[0].clone()}, r"items: want a floating tensor \[K, items, t\], got float32 \(50, 6\)"),
        ({"items": VECTORS.items.long()}, "got int64"),
        ({"users": VECTORS.users[:0].clone()}, r"\(0, 60, 6\)"),
        ({"users": VECTORS.users[:, :59].clone()}, "users: 59 rows, expected 60"),
        ({"items": _nan(VECTORS.items)}, "items: row 4 of profile 1 holds a value that is not finite"),
        ({"users": VECTORS.users.double() * 1e300}, "users: row 0 of profile 0"),
        ({"user_has_text": torch.ones(60)}, r"user_has_text: want bool \[60\], got torch.float32"),
        ({"item_has_text": torch.ones(60, dtype=torch.bool)}, r"item_has_text: want bool \[50\]"),
        ({"user_keys": torch.tensor([91, 49])}, "user_keys: want a JSON list of 60 strings|no"),
        ({"user_keys": torch.tensor(list(b'["a"]'), dtype=torch.uint8)}, "user_keys: want a JSON list of 60 strings"),
        ({"item_keys": torch.tensor([255, 0], dtype=torch.uint8)}, "item_keys: not a JSON list in UTF-8"),
        ({"lineage": "{"}, "its lineage is no JSON"),
        ({"lineage": "[" * 100_000}, "its lineage is no JSON"),
        ({"lineage": [1]}, "its lineage is no JSON object"),
        ({"lineage": {"split": 3}}, "its lineage is no JSON object"),
    ],
)
def test_damaged_files_are_named_in_one_line(folder, changed, message):
    save(folder / "profiles_bad.safetensors", **changed)
    with pytest.raises(DataError, match=message) as caught:
        load(folder)
    assert "profiles_bad.safetensors" in str(caught.value) and "\n" not in str(caught.value)
    assert not load(folder, profiles=False).has_profiles


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0notjson!", None])
def test_files_that_are_no_safetensors_are_named(folder, content):
    path = folder / "profiles_bad.safetensors"
    if content is None:
        save_vectors(path, some_vectors())
        content = path.read_bytes()[:-10]
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"profiles_bad.safetensors: not a readable safetensors file") as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="no such file"):
        load_vectors(folder / "profiles_other.safetensors")


# what training makes of them


def test_a_data_set_has_k_pairs_and_says_where_they_are_from(folder):
    split = load(folder).split_hash
    lineage = {
        "split": split, "chat_models": ["gpt-x", "gpt-y"], "embed_model": "embed-z",
        "users": {"profiles": 54, "items_mean": 5, "none": 1}, "items": {"profiles": 50},
    }  # fmt: skip
    vectors = replace(some_vectors(lineage=lineage), user_has_text=torch.arange(60) >= 6)
    save_vectors(folder / "profiles_b.safetensors", vectors)
    data = load(folder)
    assert [pair[0].shape for pair in data.profile_pairs] == [(60, 6)] * 3
    for place, (users, items) in enumerate(data.profile_pairs):
        assert torch.equal(users, vectors.users[place]) and torch.equal(items, vectors.items[place])
    assert data.provenance == (
        "profiles_b.safetensors (3 profiles of each user and item, 6-d; written by gpt-x, gpt-y; embedded by embed-z; "
        "6 of 60 users without a profile text: 5 with their training items' mean, 1 with zeros)"
    )
    assert data.profiles_for(3).provenance == f"3 profiles of the data set: {data.provenance}"
    np.savez(folder / "profiles_a.npz", users=np.ones((60, 4)), items=np.ones((50, 4)))
    data = load(folder)
    assert data.provenance.startswith("profiles_a.npz (4-d), profiles_b.safetensors (")
    assert [pair[0].shape[1] for pair in data.profile_pairs] == [4, 6, 6, 6]
    assert data.split_hash == split


def test_profiles_of_another_split_are_refused_and_those_of_an_unknown_one_say_so(folder):
    path = folder / "profiles_llm.safetensors"
    save_vectors(path, some_vectors(lineage={"split": "0123456789abcdef"}))
    with pytest.raises(
        DataError, match=r"profiles_llm.safetensors: written from split 0123456789ab, and this"
    ) as caught:
        load(folder)
    bare = load(folder, profiles=False)
    assert bare.split_hash[:12] in str(caught.value) and bare.provenance == "no profiles"
    save_vectors(path, some_vectors())
    assert "from a split that the file does not name" in load(folder).provenance
    save_vectors(path, some_vectors(lineage={"split": bare.split_hash}))
    assert "split" not in load(folder).provenance


def test_profiles_false_leaves_every_kind_of_profiles_out(folder, tmp_path):
    full = load(write_tiny(tmp_path / "full"))
    bare = load(tmp_path / "full", profiles=False)
    assert full.has_profiles and not bare.profile_pairs and bare.fingerprint == load(folder).fingerprint


# from texts to vectors


def unit(*rows):
    return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float32), dim=1)


def make(data, users, items, descriptions=None, whiten=None, scale=1.0):
    """The vectors of texts that are their own vectors: (text, vector) pairs would say the same twice."""
    count = len(next(iter((users or items).values())))
    lineage = {"split": [data.split_hash], "model": ["m"], "settings": [None], "prompt": ["p"]}
    texts = FolderTexts(
        count, ProfileTexts(users, count, lineage), ProfileTexts(items, count, {}), descriptions or {}, None, None
    )
    keys = list(texts)
    assert len(keys) == len(list(texts.nodes()))
    return make_vectors(
        data, texts, keys, lambda some: scale * np.float32([json.loads(key) for key in some]), whiten=whiten
    )


def text(*vector):
    return json.dumps(vector)


def test_what_stands_in_for_a_text():
    # user 0: items 0 1; user 1: items 1 2; user 2: items 0 4; user 3: nothing; items 3 is nobody's, 4 only user 2's
    data = dataset([[0, 1], [1, 2], [0, 4], []], 5)
    users = {0: (text(1, 0), text(0, 1)), 1: (text(3, 4), text(0, 5))}
    items = {0: (text(0, 2), text(1, 0))}
    for scale in (1.0, 7.0):
        found = make(data, users, items, {2: text(1, 1)}, scale=scale)
        assert found.users.shape == (2, 4, 2) and found.items.shape == (2, 5, 2)
        assert torch.equal(found.users[:, 0], scale * torch.tensor([[1.0, 0], [0, 1]]))
        assert torch.equal(found.items[:, 0], scale * torch.tensor([[0.0, 2], [1, 0]]))
        assert torch.equal(found.items[:, 2], scale * torch.ones(2, 2))  # its description, in every table
        # item 1 is read by users 0 and 1: the direction of their sum, at the mean length of users' vectors
        torch.testing.assert_close(found.items[0, 1], scale * 3 * unit((4.0, 4.0))[0])
        torch.testing.assert_close(found.items[1, 1], scale * 3 * unit((0.0, 6.0))[0])
        # user 2 has items 0 and 4; 4 has no text and no reader but user 2, who has none either
        lengths = torch.tensor([2.0, 3.0, 2**0.5])
        torch.testing.assert_close(found.users[0, 2], scale * lengths.mean() * unit((0.0, 1.0))[0])
        assert not found.items[:, 3:].any() and not found.users[:, 3].any()
        assert found.user_has_text.tolist() == [True, True, False, False]
        assert found.item_has_text.tolist() == [True, False, False, False, False]
        assert found.lineage["users"] == {"profiles": 2, "items_mean": 1, "none": 1}
        assert found.lineage["items"] == {"profiles": 1, "description": 1, "readers_mean": 1, "none": 2}
    assert found.lineage["chat_models"] == ["m"] and found.lineage["split"] == data.split_hash
    assert found.lineage["prompts"] == ["p"] and found.lineage["chat_settings"] == []
    assert found.provenance.endswith(
        "2 of 4 users without a profile text: 1 with their training items' mean, 1 with zeros; 4 of 5 items without "
        "a profile text: 1 with the vector of their title and description, 1 with their training users' mean, "
        "2 with zeros"
    )


def test_one_side_alone_and_portions(monkeypatch):
    generator = np.random.default_rng(0)
    rows = [sorted(generator.choice(20, 4, replace=False).tolist()) for _ in range(30)]
    data = dataset(rows, 20)
    items = {row: (text(*generator.normal(size=3)), text(*generator.normal(size=3))) for row in range(20)}
    whole = make(data, {}, items)
    monkeypatch.setattr("prorec_fast.profiles.vectors._ROWS", 7)
    parts = make(data, {}, items)
    assert torch.equal(whole.users, parts.users) and torch.equal(whole.items, parts.items)
    for table in range(2):
        own = whole.items[table][torch.tensor(rows)].sum(1)
        length = whole.items[table].norm(dim=1).mean()
        torch.testing.assert_close(whole.users[table], length * torch.nn.functional.normalize(own))
    assert whole.lineage["users"] == {"profiles": 0, "items_mean": 30, "none": 0}
    assert whole.provenance.endswith("30 of 30 users without a profile text: 30 with their training items' mean")


def test_whitened_vectors_have_unit_covariance_and_the_file_maps_new_rows_alike():
    generator = np.random.default_rng(0)
    data = dataset([sorted(generator.choice(40, 4, replace=False).tolist()) for _ in range(50)] + [[]], 40)
    draw = lambda: text(*(3 + generator.normal(size=5) * [1, 2, 3, 4, 5]))  # noqa: E731
    users = {row: (draw(), draw()) for row in range(3, 50)}
    items = {row: (draw(), draw()) for row in range(38)}
    plain, white = make(data, users, items, {39: draw()}), make(data, users, items, {39: draw()}, whiten=3)
    own = torch.cat([white.users[:, 3:50].flatten(0, 1), white.items[:, :38].flatten(0, 1)])
    described = white.items[:, 39]
    covariance = torch.cat([own, described]).double().T.cov()
    torch.testing.assert_close(covariance, torch.eye(3, dtype=torch.float64), atol=1e-5, rtol=0)
    mapping = Whitening(3).load_state_dict(white.whitening)
    torch.testing.assert_close(mapping.transform(plain.users[1, 3:50]), white.users[1, 3:50])
    assert not white.users[:, 50].any()  # nothing is known, and zeros stay zeros
    torch.testing.assert_close(
        white.users[0, 0],
        white.items[0].norm(dim=1)[white.items[0].any(1)].mean()
        * torch.nn.functional.normalize(white.items[0][data.train.indices[:4]].sum(0), dim=0),
    )
    assert white.lineage["whiten"] == 3 and "3-d" in white.provenance and "whitened" in white.provenance
    with pytest.raises(ProfileError, match="whiten: dim: want at most 5"):
        make(data, users, items, whiten=6)


# texts


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"id": 2}, ":2: 'profiles' must be"),
        ({"id": 2, "profiles": []}, ":2: 'profiles' must be"),
        ({"id": 2, "profiles": ["a", " "]}, ":2: 'profiles' must be"),
        ({"id": 2, "profiles": ["a", "\ud800"]}, "surrogate"),
        ({"id": 2, "profiles": ["a"]}, ":2: 1 profiles, and 2 in the lines before"),
        ({"id": 9, "profiles": ["a", "b"]}, r":2: 'id' must be a row in \[0, 9\), got 9"),
        ({"id": True, "profiles": ["a", "b"]}, ":2: 'id' must be a row"),
        ({"id": 1, "profiles": ["a", "b"]}, ":2: id 1 is here a second time"),
        ({"id": 2, "profiles": ["a", "b"], "lineage": []}, ":2: 'lineage' must be"),
        ({"id": 2, "profiles": ["a", "b"], "lineage": {"split": 1}}, ":2: 'lineage' must be"),
        ({"id": 2, "profiles": ["a", "b"], "lineage": {"split": "else"}}, ":2: written from split else, .* split here"),
    ],
)
def test_profile_lines_that_are_wrong_are_named(tmp_path, line, message):
    first = {"id": 1, "profiles": ["a", "b"], "lineage": {"split": "here"}}
    (tmp_path / "profiles_users.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (first, line)))
    with pytest.raises(DataError, match=message):
        read_profile_texts(tmp_path, "users", 9, "here")


def test_profile_texts_are_read_in_the_order_of_rows(folder):
    data = load(folder)
    with pytest.raises(ProfileError, match="holds no written profiles"):
        FolderTexts.read(folder, data)
    write_profiles(folder, data, skip_users=range(1, 60))
    lines = [{"id": row, "profiles": [f"i {row}", "x"], "lineage": {"split": data.split_hash}} for row in (5, 2)]
    write_jsonl(folder / "profiles_items.jsonl.gz", lines)
    nodes = [{"id": 2, "title": "unused"}, {"id": 3, "title": "T", "text": " t\n"}, {"id": 4, "key": "k"}]
    write_jsonl(folder / "items.jsonl.gz", nodes)
    texts = FolderTexts.read(folder, data)
    assert list(texts) == ["user 0 likes 0", "user 0 likes 1", "i 2", "x", "i 5", "x", "T\nt"]
    assert list(texts.nodes()) == [("user", 0)] * 2 + [("item", 2)] * 2 + [("item", 5)] * 2 + [("item", 3)]
    assert texts.user_keys is None and texts.item_keys[:5] == ["0", "1", "2", "3", "k"]
    assert texts.lineage["split"] == data.split_hash and texts.lineage["prompts"] == ["p"]
    write_jsonl(folder / "profiles_items.jsonl.gz", [{"id": 0, "profiles": ["a", "b"]}])
    assert "split" not in FolderTexts.read(folder, data).lineage
    write_jsonl(folder / "profiles_items.jsonl.gz", [{"id": 0, "profiles": ["a", "b", "c"]}])
    with pytest.raises(DataError, match="users have 2 profiles each and items 3"):
        FolderTexts.read(folder, data)
