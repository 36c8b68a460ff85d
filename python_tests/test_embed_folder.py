"""From the texts of a data folder to vectors that training uses, over a service on loopback."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("openai", reason="embeddings of a service need openai")

from llm_answers import embedding
from llm_server import LLMServer
from training_data import write_tiny
from written_profiles import write_profiles

import prorec_fast
from prorec_fast.cli import main
from prorec_fast.data import DataError, load
from prorec_fast.data.jsonl import write_jsonl
from prorec_fast.profiles import EmbedSettings, ServiceSettings, embed_profiles, estimate_embeddings, load_vectors


@pytest.fixture
def folder(tmp_path):
    return write_tiny(tmp_path / "tiny", profiles=False)


def embed_over(server, folder, **given):
    settings = EmbedSettings("text-embedding-3-small", batch_texts=64)
    service = ServiceSettings(server.base_url, concurrency=4, timeout=5, retries=0)
    return embed_profiles(folder, settings, service=service, **given)


def test_texts_become_vectors_that_training_uses(folder):
    bare = load(folder)
    write_profiles(folder, bare, skip_users={4}, skip_items={6})
    seen = []
    with LLMServer(width=12) as server:
        estimate = estimate_embeddings(folder, EmbedSettings("text-embedding-3-small", batch_texts=64))
        assert (estimate.texts, estimate.stored, estimate.requests) == (216, 0, 4) and not server.requests
        assert not (folder / "answers.sqlite").exists()
        assert 0 < estimate.dollars < 1e-3
        report = embed_over(server, folder, progress=lambda embedded, spent: seen.append(spent.answers))
        assert report.complete and report.texts == 216 and len(server.requests) == 4 == report.spent.answers
        assert seen[0] == 0 and seen[-1] == 4
        again = embed_over(server, folder, whiten=5, name="white")
        assert again.reused == 216 and again.spent.answers == 0 and len(server.requests) == 4
    assert report.as_json()["file"].endswith("profiles_llm.safetensors") and report.as_json()["complete"]
    data = load(folder)
    assert len(data.profile_pairs) == 4 and data.further_profiles[1][0].shape == (60, 5)
    np.testing.assert_array_equal(data.profile_pairs[1][0][9].numpy(), np.float32(embedding("user 9 likes 1", 12)))
    model = prorec_fast.models.LightGCN(data, dim=8)
    proex = prorec_fast.frameworks.ProEx(num_profiles=2, num_environments=2)
    run = prorec_fast.fit(model, data, framework=proex, epochs=1, batch_size=256, device="cpu")
    assert "facet" not in run.notes["profiles"] and "embedded by text-embedding-3-small" in run.notes["profiles"]
    assert np.isfinite(run.history[0]["loss"])
    # the same texts for other interactions: neither embedded nor trained on
    with np.load(folder / "interactions.npz") as archive:
        arrays = dict(archive)
    for part in ("indptr", "indices"):
        arrays[f"valid_{part}"], arrays[f"test_{part}"] = arrays[f"test_{part}"], arrays[f"valid_{part}"]
    np.savez(folder / "interactions.npz", **arrays)
    with pytest.raises(DataError, match="written from split"):
        load(folder)
    with LLMServer() as server, pytest.raises(DataError, match=r"profiles_users.jsonl.gz:1: written from split"):
        embed_over(server, folder)


def test_no_file_as_long_as_a_text_has_no_vector(folder):
    data = load(folder)
    write_profiles(folder, data, skip_users=range(2, 60), skip_items=range(1, 50))
    write_jsonl(folder / "users.jsonl.gz", [{"id": 1, "key": "reader-1"}])

    def script(request):
        return "bad-request" if "user 1 likes 0" in request.body["input"] else None

    with LLMServer(faults=script) as server:
        report = embed_over(server, folder)
        assert not report.complete and report.embedded == 5 and not list(folder.glob("*.safetensors"))
        assert len(report.failures) == 1 and report.failures[0].startswith("user reader-1: ")
        report = embed_over(server, folder, budget=1e-9)
        assert "budget" not in report.failures and report.stopped is not None and not report.complete
    for wrong in ({"name": "a/b"}, {"name": ""}, {"whiten": 0}):
        with pytest.raises(ValueError, match=r"name|whiten"):
            embed_over(server, folder, **wrong)


def test_the_command_line_cuts_texts_where_it_is_told_to(folder, capsys):
    write_profiles(folder, load(folder), skip_users=range(2, 60), skip_items=range(1, 50))
    with LLMServer() as server:
        command = ["profile", "--data", str(folder), "--embed-model", "m", "--base-url", server.base_url, "--json"]
        assert main([*command, "--max-chars", "7"]) == 0
    assert json.loads(capsys.readouterr().out)["embed"]["cut"] == 3  # "user 0 ", "user 1 " and "item 0 "
    assert load_vectors(folder / "profiles_llm.safetensors").lineage["cut_texts"] == 3
