"""How different profiles are: against cosines taken one by one, as text, as JSON and as a picture."""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from training_data import write_tiny
from written_profiles import write_profiles

from prorec_fast.data import DataError, load
from prorec_fast.data.profile_tensors import ProfileVectors
from prorec_fast.profiles.diversity import diversity, named
from prorec_fast.profiles.diversity_report import DiversityReport, plot_diversity, report_diversity
from prorec_fast.profiles.errors import ProfileError
from prorec_fast.profiles.vectors import save_vectors


def some_tables(count=3, rows=17, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(rows, width, generator=generator)
    return torch.stack([(1 + k) * (centre + 0.4 * torch.randn(rows, width, generator=generator)) for k in range(count)])


def one_by_one(tables, rows, threshold):
    """(mean own cosine of each node, own cosines above, nodes with one, mean cosine of each profile to all others')"""
    unit = torch.nn.functional.normalize(tables.double(), dim=2)
    pairs = list(itertools.combinations(range(len(tables)), 2))
    own = np.array([[float(unit[a, row] @ unit[b, row]) for a, b in pairs] for row in rows])
    to_others = {
        (row, k): np.mean(
            [float(unit[k, row] @ unit[j, other]) for other in rows if other != row for j in range(len(tables))]
        )
        for row in rows
        for k in range(len(tables))
    }
    return own, to_others


@pytest.mark.parametrize("portion", [1, 100, 1 << 22])
def test_diversity_is_that_of_cosines_taken_one_by_one(monkeypatch, portion):
    monkeypatch.setattr("prorec_fast.profiles.diversity._NUMBERS", portion)
    tables, has_text = some_tables(), torch.arange(17) % 5 != 2
    tables[:, ~has_text] = 0
    rows = has_text.nonzero().flatten().tolist()
    own, to_others = one_by_one(tables, rows, 0.85)
    found = diversity(tables, has_text, threshold=0.85, top=5)
    assert (found.nodes, found.num_profiles, found.width) == (14, 3, 6)
    levels = [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1]
    np.testing.assert_allclose(list(found.quantiles.values()), np.quantile(own.mean(1), levels), atol=1e-6)
    assert list(found.quantiles) == ["0", "0.05", "0.25", "0.5", "0.75", "0.95", "1"]
    assert (
        found.histogram == np.histogram(own.mean(1), bins=80, range=(-1, 1))[0].tolist() and sum(found.histogram) == 14
    )
    np.testing.assert_allclose(found.between_tables[0], [1, own[:, 0].mean(), own[:, 1].mean()], atol=1e-6)
    assert found.between_tables[2][1] == pytest.approx(own[:, 2].mean(), abs=1e-6)
    assert found.between_nodes == pytest.approx(np.mean(list(to_others.values())), abs=1e-6)
    assert 0 < found.duplicate_pairs == pytest.approx((own > 0.85).mean())
    assert found.duplicate_pairs < found.duplicate_nodes == pytest.approx((own > 0.85).any(1).mean())
    best = sorted(to_others, key=lambda key: -to_others[key])[:5]
    assert [(one.row, one.profile) for one in found.generic] == best
    np.testing.assert_allclose([one.cosine for one in found.generic], [to_others[key] for key in best], atol=1e-6)


def test_diversity_of_little():
    tables = some_tables(count=1, rows=4)
    found = diversity(tables, top=3)
    assert found.quantiles is None and found.histogram is None and found.duplicate_pairs == found.duplicate_nodes == 0
    assert found.between_nodes is not None and len(found.generic) == 3
    alone = diversity(some_tables(rows=1))
    assert alone.between_nodes is None and alone.generic == [] and sum(alone.histogram) == 1
    assert diversity(tables, torch.zeros(4, dtype=torch.bool)) is None
    same = diversity(some_tables()[:1].expand(3, -1, -1).half())
    assert same.duplicate_pairs == same.duplicate_nodes == 1 and same.quantiles["0"] == pytest.approx(1)
    for wrong in ({"threshold": 1.0}, {"threshold": float("nan")}, {"top": 0}, {"tables": tables[0]}):
        with pytest.raises(ValueError, match=f"^{next(iter(wrong))}:"):
            diversity(**{"tables": tables, **wrong})


@pytest.fixture
def folder(tmp_path):
    """Texts of all users but the first two and of all items, and vectors of theirs."""
    folder = write_tiny(tmp_path / "tiny", profiles=False)
    data = load(folder)
    write_profiles(folder, data, count=3, skip_users=(0, 1))
    lineage = {"split": data.split_hash, "chat_models": ["gpt-x"], "prompts": ["p"], "chat_settings": ["s"]}
    has = torch.arange(60) >= 2, torch.ones(50, dtype=torch.bool)
    keys = [f"own-{row}" for row in range(60)]
    vectors = ProfileVectors(some_tables(rows=60), some_tables(rows=50, seed=1), *has, lineage, keys)
    save_vectors(folder / "profiles_llm.safetensors", vectors)
    return folder


def test_a_report_names_ids_and_texts(folder):
    report = report_diversity(folder, threshold=0.9, top=4)
    first = report.users.generic[0]
    assert first.key == f"own-{first.row}" and first.text == f"user {first.row} likes {first.profile}"
    assert report.items.generic[0].key == str(report.items.generic[0].row)
    assert json.loads(json.dumps(report.as_json()))["users"]["generic"][0]["text"] == first.text
    text = report.as_text()
    assert "users: 58 with profiles, 3 each, 6-d" in text and "items: 50 with profiles" in text
    assert (
        f"median {report.users.quantiles['0.5']:.3f}" in text
        and f"different users' {report.users.between_nodes:.3f}" in text
    )
    assert f"(cosine above 0.9): {100 * report.items.duplicate_pairs:.1f} % of pairs" in text
    assert f"{first.cosine:.3f}  {first.key}, profile {first.profile + 1}: {first.text}" in text
    assert text.count("profile ") > 8 and "gpt-x" in text


def test_texts_written_since_are_not_taken_for_those_that_were_embedded(folder):
    data = load(folder, profiles=False)
    (folder / "profiles_users.jsonl.gz").unlink()
    lines = [{"id": row, "profiles": ["n", "e", "w"], "lineage": {"prompt": "another"}} for row in range(60)]
    (folder / "profiles_users.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = report_diversity(folder)
    assert all(one.text is None for one in report.users.generic) and report.items.generic[0].text is not None
    write_profiles(folder, data, count=2)
    (folder / "profiles_users.jsonl").unlink()
    assert all(one.text is None for one in report_diversity(folder).items.generic)


def test_reports_refuse_what_is_missing_or_of_another_split(folder):
    with pytest.raises(ProfileError, match=r"profiles_other.safetensors: no such file; embed"):
        report_diversity(folder, name="other")
    vectors = ProfileVectors(
        some_tables(rows=60), some_tables(rows=50), torch.ones(60) > 0, torch.ones(50) > 0, {"split": "x"}
    )
    save_vectors(folder / "profiles_llm.safetensors", vectors)
    with pytest.raises(DataError, match="written from split x"):
        report_diversity(folder)
    save_vectors(folder / "profiles_llm.safetensors", replace(vectors, users=some_tables(rows=59), lineage={}))
    with pytest.raises(DataError, match="59 rows, expected 60"):
        report_diversity(folder)


def test_a_picture_is_written_in_one_step(folder, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    report, before = report_diversity(folder), "matplotlib.pyplot" in sys.modules
    path = tmp_path / "diversity.png"
    plot_diversity(report, path)
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n") and content.endswith(b"IEND\xaeB`\x82") and len(content) > 5000
    assert ("matplotlib.pyplot" in sys.modules) == before  # which would choose a window system
    plot_diversity(replace(report, items=None), path)
    assert len(path.read_bytes()) < len(content)
    single = named(diversity(some_tables(count=1)))
    with pytest.raises(ProfileError, match="one profile a node"):
        plot_diversity(DiversityReport("s", "p", single, None), path)
    assert "mean cosine of different users'" in DiversityReport("s", "p", single, None).as_text()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ProfileError, match=r'pip install "prorec-fast\[plot\]"'):
        plot_diversity(report, path)
    assert [file.name for file in tmp_path.iterdir()].count("diversity.png") == 1
