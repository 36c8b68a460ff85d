"""A data folder's profiles: items first, then users from the items they have (ProEx 2.3.1, ProMax 2.2)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prorec_fast._checks import one_of, positive_int
from prorec_fast.data import DataError, load
from prorec_fast.data.jsonl import read_jsonl, write_jsonl
from prorec_fast.data.texts import NodeText, load_texts

from .chain import Written, item_chain, user_chain
from .errors import BudgetReached, ProfileError
from .pricing import Prices
from .progress import AGAIN, Progress, RunState, SideReport
from .prompts import Prompts
from .requests import digest
from .session import Node, Session, Start
from .settings import ChatSettings, ServiceSettings
from .store import Spent, Store
from .train_view import TrainView
from .transports import TRANSPORTS, run_chains

SIDES = ("item", "user")
FAILURES = "profiles_failures.jsonl"
MOST_PROFILES = 32  # new ones come in one answer


@dataclass(frozen=True)
class WriteSettings:
    """What is asked of the model, beside `ChatSettings`.

    Attributes:
        num_profiles: K of every user and item: the original one and K - 1 new ones.
        domain: whose words the prompts use: generic, books, places, games or films.
        prompts: a folder with prompt files of the user's own, which replace those of the same name.
        sides: "item", "user" or both; users' prompts tell of items by the profiles that are there.
        attempts: at a valid answer.
        retry_failed: ask once more where a former run had no valid answer; those answers are paid for anew.
        max_reviews: of an item, in its prompt.
        max_items: of a user, in theirs.
    """

    num_profiles: int = 4
    domain: str = "generic"
    prompts: str | None = None
    sides: tuple[str, ...] = SIDES
    attempts: int = 3
    retry_failed: bool = False
    max_reviews: int = 10
    max_items: int = 20

    def __post_init__(self) -> None:
        positive_int("num_profiles", self.num_profiles)
        if self.num_profiles > MOST_PROFILES:
            raise ValueError(f"num_profiles: want at most {MOST_PROFILES}, in one answer, got {self.num_profiles}")
        positive_int("attempts", self.attempts)
        for side in self.sides:
            one_of("sides", side, SIDES)


@dataclass
class Report:
    """What a run did.

    Attributes:
        sides: "item" and "user", as far as they were asked for.
        spent: by this run, and whatever else used the store meanwhile.
        stopped: why it ended before its end; None if it did not.
        files: what was written.
    """

    sides: dict[str, SideReport]
    spent: Spent
    stopped: str | None
    files: list[str]

    @property
    def complete(self) -> bool:
        """Whether another run would change nothing."""
        return all(side.complete for side in self.sides.values())

    def as_json(self) -> dict[str, Any]:
        return {
            "sides": {name: side.as_json() for name, side in self.sides.items()},
            "spent": asdict(self.spent),
            "stopped": self.stopped,
            "complete": self.complete,
            "files": self.files,
        }


def write_profiles(
    folder: str | os.PathLike[str],
    chat: ChatSettings,
    settings: WriteSettings | None = None,
    *,
    service: ServiceSettings | None = None,
    store: str | os.PathLike[str] | None = None,
    prices: Prices | None = None,
    budget: float | None = None,
    transport: str = "online",
    poll: float = 30.0,
    progress: Progress | None = None,
) -> Report:
    """Has a language model write K profiles of every item and user of a data folder.

    Prompts are built from training interactions, and texts and reviews that belong to them, alone. Every answer is in
    the store before it is used: a run that was killed or stopped goes on where it was, and pays for nothing twice but
    requests that were under way (not those either, where the service honours Idempotency-Key). Users are begun when
    every item has its profile or a lasting failure, because their prompts tell of items by those.

    Args:
        folder: as `prorec-fast data import` writes it; `profiles_items.jsonl.gz`, `profiles_users.jsonl.gz` and, where
            any failed, `profiles_failures.jsonl` are written into it.
        store: the SQLite file of answers; None: `answers.sqlite` in the folder.
        budget: dollars for all that the store ever pays for.
        transport: "online", or "batch": the Batch API, looked at every `poll` seconds.
        progress: hears how it goes.

    Returns:
        A report. `stopped` says that the budget was reached, or that items were left unanswered.

    Raises:
        ProfileError, DataError, ValueError: settings, data or service that cannot be used; one line.
        KeyboardInterrupt: interrupted; what was under way is kept.
    """
    one_of("transport", transport, TRANSPORTS)
    writer = Writer(folder, chat, settings or WriteSettings())
    if not os.access(writer.folder, os.W_OK):
        raise ProfileError(f"{writer.folder}: cannot be written to, and the profiles go there")
    with Store(store or writer.folder / "answers.sqlite") as opened:
        writer.open(opened, progress, budget)
        session = Session(
            opened,
            chat,
            service or ServiceSettings(),
            writer,
            prices or Prices.load(),
            budget,
            batch=transport == "batch",
        )
        stopped = None
        try:
            for side in writer.settings.sides:
                writer.begin(side)
                if side == "user" and not writer.item_profiles:
                    writer.note("no item has a profile: users' prompts tell of items by title and description")
                run_chains(writer.chains(side), session, poll=poll)
                unanswered = writer.reports[side].failed[AGAIN]
                if unanswered and side != writer.settings.sides[-1]:
                    stopped = f"{unanswered} of the items got no answer, and users' profiles are written from theirs"
                    break
        except BudgetReached as error:
            stopped = str(error)
        finally:
            files = writer.write_files()
        return Report(writer.reports, writer.spent(), stopped, files)


class Writer(RunState):
    """The chains of one data folder, and what became of them. An `Outcome` for a session."""

    def __init__(self, folder: str | os.PathLike[str], chat: ChatSettings, settings: WriteSettings) -> None:
        self.folder, self.chat, self.settings = Path(folder), chat, settings
        data = load(folder, profiles=False)
        texts = load_texts(folder, data.num_users, data.num_items)
        self.nodes: dict[str, dict[int, NodeText]] = {"item": texts.items, "user": texts.users}
        self.sizes = {"item": data.num_items, "user": data.num_users}
        self.view = TrainView(data, texts, max_reviews=settings.max_reviews, max_items=settings.max_items)
        self.prompts = Prompts.load(settings.domain, settings.prompts)
        self.split = data.split_hash
        run = digest(
            [self.split, texts.fingerprint, asdict(chat), settings.num_profiles, self.prompts.hash, self.view.settings]
        )
        super().__init__(run, {side: self.sizes[side] for side in settings.sides}, retry_failed=settings.retry_failed)

    def open(self, store: Store, progress: Progress | None = None, budget: float | None = None) -> None:
        super().open(store, progress, budget)
        self.item_profiles = {row: texts[0] for row, texts, _ in store.profiles(self.run, "item")}

    def chains(self, side: str) -> Iterator[tuple[Node, Start]]:
        """Every node that has neither profiles nor a failure that is to stay."""
        for row in range(self.sizes[side]):
            if self.due(row):
                yield (side, row), lambda row=row: self.chain(side, row)

    def chain(self, side: str, row: int) -> Any:
        shared = {"attempts": self.settings.attempts, "round": self.round(row)}
        if side == "item":
            return item_chain(self.view, row, self.prompts, self.settings.num_profiles, **shared)
        return user_chain(self.view, row, self.item_profiles, self.prompts, self.settings.num_profiles, **shared)

    def finished(self, node: Node, result: Written) -> None:
        side, row = node
        lineage = {
            "run": self.run,
            "split": self.split,
            "model": self.chat.model,
            "settings": digest(asdict(self.chat)),
            "prompt": result.prompt_hash,
        }
        if side == "item":
            self.item_profiles[row] = result.profiles[0]
        self.keep(node, result.profiles, lineage)

    def write_files(self) -> list[str]:
        """The profiles and the ledger of all sides that the store knows of, as files of the data folder."""
        files, ledger = [], []
        for side in SIDES:
            done, failures = self.store.finished_rows(self.run, side), self.store.failures(self.run, side)
            path = self.folder / f"profiles_{side}s.jsonl.gz"
            settled = len(done) + sum(failure.kind != AGAIN for failure in failures.values())
            if done and settled < self.sizes[side] and _run_of(path) not in (None, self.run):
                self.note(f"{path}: stays as another run wrote it until this one is complete")
            elif done:
                write_jsonl(path, (self._line(side, *profile) for profile in self.store.profiles(self.run, side)))
                files.append(str(path))
            for row, failure in failures.items():
                ledger.append({"side": side, **self._named(side, row), "kind": failure.kind, "reason": failure.reason})
        path = self.folder / FAILURES
        if ledger:
            write_jsonl(path, ledger)
            files.append(str(path))
        else:
            path.unlink(missing_ok=True)
        return files

    def _line(self, side: str, row: int, texts: Sequence[str], lineage: dict[str, Any]) -> dict[str, Any]:
        return {**self._named(side, row), "profiles": texts, "lineage": lineage}

    def _named(self, side: str, row: int) -> dict[str, Any]:
        node = self.nodes[side].get(row)
        return {"id": row, "key": str(row) if node is None else node.key}


def _run_of(path: Path) -> str | None:
    """The run that wrote a file of profiles; None where there is none to be told."""
    try:
        _, line = next(read_jsonl(path))
        return line["lineage"]["run"]
    except (DataError, StopIteration, KeyError, TypeError):
        return None
