"""A data folder's profile texts to the vectors that training reads."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prorec_fast._checks import positive_int
from prorec_fast.data import Dataset, load
from prorec_fast.data.npz import INTERACTIONS

from .embed import Embedded, EmbedSession, EmbedSettings, batches, distinct_texts, embed, gather
from .errors import ProfileError
from .local import PREFIX, LocalModel, embed_locally
from .pricing import Prices, estimated_tokens
from .running import run_to_end
from .settings import ServiceSettings
from .store import Spent, Store, store_for_estimate
from .vectors import FolderTexts, make_vectors, save_vectors

Progress = Callable[[Embedded, Spent], None]


@dataclass
class EmbedReport:
    """What a run did.

    Attributes:
        texts: to be embedded, `distinct` of them different.
        reused: of the distinct ones, those that had a vector before.
        embedded: those that have one now.
        cut: those longer than what is embedded of a text.
        failures: one line each: the node, and why one of its texts has no vector.
        spent: by this run, and whatever else used the store meanwhile.
        stopped: why it ended before its end; None if it did not.
        file: the vectors; None if there are none yet.
        provenance: of the vectors, in words.
    """

    texts: int
    distinct: int
    reused: int
    embedded: int
    cut: int
    failures: list[str] = field(default_factory=list)
    spent: Spent = field(default_factory=Spent)
    stopped: str | None = None
    file: str | None = None
    provenance: str | None = None

    @property
    def complete(self) -> bool:
        """Whether the file is written."""
        return self.file is not None

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "complete": self.complete}


@dataclass(frozen=True)
class EmbedEstimate:
    """What a run would cost.

    Attributes:
        requests: to be sent, none of them asked twice.
        stored: of the distinct texts, those that have a vector; not known of a model that runs here, and 0.
        tokens: by a rule of thumb.
        dollars: None for a model without a price; 0 for one that runs here.
    """

    texts: int
    distinct: int
    stored: int
    requests: int
    tokens: int
    dollars: float | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def embed_profiles(
    folder: str | os.PathLike[str],
    settings: EmbedSettings,
    *,
    name: str = "llm",
    whiten: int | None = None,
    service: ServiceSettings | None = None,
    store: str | os.PathLike[str] | None = None,
    prices: Prices | None = None,
    budget: float | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> EmbedReport:
    """Embeds the profiles of a data folder and writes `profiles_<name>.safetensors` into it.

    What is paid for is in the store before it is used: a run that was killed or stopped goes on where it was.

    Args:
        folder: with `interactions.npz`, and `profiles_users.jsonl.gz` or `profiles_items.jsonl.gz` or both.
        settings: of a service's model, or of one that runs here: "local:" and a model folder or name (`LocalModel`).
        name: of the file; one that is there is replaced. Training reads every file of the folder, so that one for
            vectors that replace others should have their name.
        whiten: the width to whiten to; see `make_vectors`, also for what nodes without profiles have.
        store: the SQLite file of answers and vectors; None: `answers.sqlite` in the folder.
        budget: dollars for all that the store ever pays for.
        device: where a local model runs.
        progress: called with what is embedded and what is spent so far, whenever that has changed.

    Returns:
        A report; no file is written as long as a text has no vector.

    Raises:
        ProfileError, DataError, ValueError: settings, data or a service that cannot be used; one line.
        KeyboardInterrupt: interrupted; what was under way is kept.
    """
    if not re.fullmatch(r"[\w.-]+", name):
        raise ProfileError(f"name: want letters, digits, '-', '_' and '.', got {name!r}")
    if whiten is not None:
        positive_int("whiten", whiten)
    folder, data, texts = _read(folder)
    with Store(store or folder / "answers.sqlite") as opened:
        before = opened.spent()

        def tell(embedded: Embedded) -> None:
            if progress is not None:
                progress(embedded, opened.spent() - before)

        if settings.model.startswith(PREFIX):
            model = LocalModel(settings.model, device=device, dimensions=settings.dimensions)
            name_of_model = model.name
            embedded = embed_locally(texts, model, opened, progress=tell)
        else:
            name_of_model = settings.model
            session = EmbedSession(
                opened, service or ServiceSettings(), settings, prices or Prices.load(), budget, tell
            )
            embedded = run_to_end(lambda: embed(texts, session), session)
        report = EmbedReport(
            texts=len(embedded.keys),
            distinct=embedded.total,
            reused=embedded.reused,
            embedded=embedded.done,
            cut=embedded.cut,
            failures=_named(texts, embedded),
            spent=opened.spent() - before,
            stopped=embedded.stopped,
        )
        if embedded.done < embedded.total:
            return report
        lineage = {"embed_model": name_of_model, "dimensions": settings.dimensions, "cut_texts": embedded.cut}
        vectors = make_vectors(
            data, texts, embedded.keys, lambda keys: gather(opened, keys), whiten=whiten, lineage=lineage
        )
    path = folder / f"profiles_{name}.safetensors"
    save_vectors(path, vectors)
    report.file, report.provenance = str(path), vectors.provenance
    return report


def estimate_embeddings(
    folder: str | os.PathLike[str],
    settings: EmbedSettings,
    *,
    store: str | os.PathLike[str] | None = None,
    prices: Prices | None = None,
) -> EmbedEstimate:
    """What `embed_profiles` with the same arguments would ask for; nothing is sent.

    Raises:
        ProfileError, DataError: settings or data that cannot be used; one line.
    """
    folder, _, texts = _read(folder)
    embedded, wanted = distinct_texts(texts, settings.key, settings.max_chars)
    with store_for_estimate(store or folder / "answers.sqlite") as opened:
        stored = opened.with_vectors(list(wanted))
    calls = list(batches(wanted, stored, settings))
    tokens = sum(estimated_tokens(len(text)) for batch in calls for text in batch.values())
    local = settings.model.startswith(PREFIX)
    return EmbedEstimate(
        texts=len(embedded.keys),
        distinct=embedded.total,
        stored=len(stored),
        requests=0 if local else len(calls),
        tokens=tokens,
        dollars=0.0 if local else (prices or Prices.load()).embedding_cost(settings.model, tokens),
    )


def check_folder(folder: Path) -> None:
    """Refuses a data folder whose vectors nothing would read, such as one of pickles.

    Raises:
        ProfileError: it is one.
    """
    if folder.is_dir() and not (folder / INTERACTIONS).is_file():
        raise ProfileError(f"{folder}: holds no {INTERACTIONS}, and vectors are read beside that alone")


def _read(folder: str | os.PathLike[str]) -> tuple[Path, Dataset, FolderTexts]:
    folder = Path(folder)
    check_folder(folder)
    data = load(folder, profiles=False)
    return folder, data, FolderTexts.read(folder, data)


def _named(texts: FolderTexts, embedded: Embedded) -> list[str]:
    """One line a failure, with the own id of the first node that has the text."""
    left, own_keys = dict(embedded.failures), {"user": texts.user_keys, "item": texts.item_keys}
    pairs = zip(texts.nodes(), embedded.keys, strict=True)
    return [
        f"{side} {row if own_keys[side] is None else own_keys[side][row]}: {left.pop(key)}"
        for (side, row), key in pairs
        if key in left
    ]
