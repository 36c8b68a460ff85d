"""Vectors of models that run here: what needs no model, and a tiny random one where sentence-transformers is there."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from training_data import write_tiny
from written_profiles import write_profiles

from prorec_fast.data import load
from prorec_fast.profiles import EmbedSettings, Store, embed_profiles, estimate_embeddings
from prorec_fast.profiles.embed import gather
from prorec_fast.profiles.errors import ProfileError
from prorec_fast.profiles.local import LocalModel, embed_locally


class Counting:
    """Stands where a model does: a vector says how long its text is, and 'bad' has none."""

    name = "local:counting@0"

    def __init__(self):
        self.asked = []

    def key(self, text):
        return EmbedSettings(self.name).key(text)

    def vectors(self, texts, batch_size):
        self.asked.append((len(texts), batch_size))
        return np.array([[0, 0] if text == "bad" else [1, len(text)] for text in texts], dtype=np.float32)

    def count_cut(self, texts):
        return sum(len(text) > 9 for text in texts)


def test_local_vectors_are_stored_like_paid_ones(tmp_path, monkeypatch):
    monkeypatch.setattr("prorec_fast.profiles.local._KEPT_AT_ONCE", 3)
    texts = ["a", "bb", "a", "bad", "dddd", "e" * 10, "ff"]
    seen, model = [], Counting()
    with Store(tmp_path / "s") as store:
        embedded = embed_locally(texts, model, store, batch_size=2, progress=lambda now: seen.append(now.done))
        assert (embedded.total, embedded.done, embedded.reused, embedded.cut) == (6, 5, 0, 1)
        assert list(embedded.failures) == [embedded.keys[3]] and model.asked == [(3, 2), (3, 2)] and seen == [0, 2, 5]
        assert gather(store, [embedded.keys[place] for place in (2, 5)]).tolist() == [[1, 1], [1, 10]]
        again = embed_locally(texts, model, store)
        assert (again.reused, again.done) == (5, 5) and model.asked[2:] == [(1, 32)] and store.spent().dollars == 0
        with pytest.raises(ProfileError, match=r"texts\[1\]"):
            embed_locally(["a", ""], model, store)


def test_a_missing_extra_is_said_in_one_line(tmp_path, monkeypatch):
    folder = write_tiny(tmp_path / "tiny", profiles=False)
    write_profiles(folder, load(folder))
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(
        ProfileError, match=r'^sentence-transformers is not installed; pip install "prorec-fast\[embed\]"$'
    ):
        embed_profiles(folder, EmbedSettings("local:some-model"))
    estimate = estimate_embeddings(folder, EmbedSettings("local:some-model"))
    assert (estimate.dollars, estimate.requests, estimate.distinct) == (0.0, 0, 220)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A BERT of random weights, 32 wide, that reads 16 tokens."""
    pytest.importorskip("sentence_transformers", reason="local models need sentence-transformers")
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(0)
    size = {"vocab_size": len(vocabulary), "hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 32}
    BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=2, **size)).save_pretrained(folder / "plain")
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder / "plain")
    model = SentenceTransformer(str(folder / "plain"), device="cpu")  # which adds mean pooling
    model.max_seq_length = 16
    model.save(str(folder / "model"))
    return folder / "model"


def test_a_real_model(tmp_path, model_folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = LocalModel(f"local:{model_folder}", device="cpu")
    assert model.name.startswith("local:model@") and model.name == LocalModel(str(model_folder), device="cpu").name
    texts = ["one two", "a b c d e f g h i j k l m n o p q", "three"]
    rows = model.vectors(texts)
    assert rows.shape == (3, 32) and rows.dtype == np.float32 and model.count_cut(texts) == 1
    short = LocalModel(str(model_folder), device="cpu", dimensions=8)
    np.testing.assert_allclose(np.linalg.norm(short.vectors(texts), axis=1), 1, rtol=1e-5)
    assert short.key("x") != model.key("x")
    folder = write_tiny(tmp_path / "tiny", profiles=False)
    write_profiles(folder, load(folder))
    report = embed_profiles(folder, EmbedSettings(f"local:{model_folder}"), device="cpu")
    assert report.complete and report.spent.dollars == 0 and model.name in load(folder).provenance
    with pytest.raises(ProfileError, match="no model that can be loaded"):
        LocalModel(str(tmp_path / "nothing"))
