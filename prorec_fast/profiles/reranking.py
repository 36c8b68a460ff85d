"""A data folder's candidates, re-ranked by a language model (ProMax 2.3)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from prorec_fast._checks import one_of, positive_int
from prorec_fast.data.jsonl import write_jsonl
from prorec_fast.data.texts import load_texts

from .digests import digest
from .errors import BudgetReached, ProfileError
from .estimate import Estimate, estimate
from .pricing import Prices
from .progress import Progress, RunState, SideReport
from .prompts import Prompts
from .requests import Chain
from .rerank import Reranked, rerank_chain
from .session import Node, Session, Start
from .settings import ChatSettings, ServiceSettings
from .store import Spent, Store, store_for_estimate
from .texts import read_profile_texts
from .train_view import TrainView
from .transports import TRANSPORTS, run_chains
from .wording import clean, cut

if TYPE_CHECKING:
    from prorec_fast.retrieval import Found, RankedCandidates

FAILURES = "rerank_failures.jsonl"
_TITLE_CHARS = 200


@dataclass(frozen=True)
class RerankSettings:
    """What is asked of the model, beside `ChatSettings`.

    Attributes:
        num_candidates: offered for each new interaction that a user may get. Prompts grow with the budget alone; at
            the usual 2 to 8 new interactions and 3 for each, one has 6 to 24 candidates.
        domain, prompts, attempts, retry_failed: as in `WriteSettings`.
        max_items: of a user who has no profile, in their prompt.
        max_text_chars: of a profile or description.
    """

    num_candidates: int = 3
    domain: str = "generic"
    prompts: str | None = None
    attempts: int = 3
    retry_failed: bool = False
    max_items: int = 10
    max_text_chars: int = 500

    def __post_init__(self) -> None:
        for name in ("num_candidates", "attempts", "max_items", "max_text_chars"):
            positive_int(name, getattr(self, name))
        if self.num_candidates < 2:
            raise ProfileError(
                "num_candidates: want at least 2 for each new interaction, or there is nothing to choose"
            )


@dataclass(frozen=True)
class Reranking:
    """What the model chose, and from what.

    Attributes:
        answers: user -> items, best first, as `retrieval.choose` takes them; none for a user without a valid answer.
        asked: how far the users are that there is a choice for.
        unasked: users whose candidates are no more than they may get, who get them all.
        invented: ids in the answers that no candidate has; they were dropped.
        spent: by this run, and whatever else used the store meanwhile.
        stopped: why it ended before its end; None if it did not.
        ledger: the file with the reasons why users have no valid answer; None where all have one.
        how: model, settings and counts, ready for JSON.
    """

    answers: dict[int, list[int]]
    asked: SideReport
    unasked: int
    invented: int
    spent: Spent
    stopped: str | None
    ledger: str | None
    how: dict[str, Any]

    @property
    def complete(self) -> bool:
        """Whether another run would change nothing."""
        return self.asked.complete

    def as_json(self) -> dict[str, Any]:
        return {
            "asked": self.asked.as_json(),
            "unasked": self.unasked,
            "invented": self.invented,
            "spent": asdict(self.spent),
            "stopped": self.stopped,
            "ledger": self.ledger,
        }


def rerank_candidates(
    found: Found,
    chat: ChatSettings,
    settings: RerankSettings | None = None,
    *,
    service: ServiceSettings | None = None,
    store: str | os.PathLike[str] | None = None,
    prices: Prices | None = None,
    budget: float | None = None,
    transport: str = "online",
    poll: float = 30.0,
    progress: Progress | None = None,
) -> Reranking:
    """Has a language model choose among the candidates of every user that has more of them than budget.

    A user is told of by their profile, where `prorec-fast profile` left one, else by their own text and a sample of
    their training items; a candidate by its title and profile, or description. Every answer is in the store before it
    is used, and a run that was killed or stopped goes on where it was. Users whose answers were never valid get no new
    interactions, as those whose answers name too few get fewer: what a model did not choose is not made up. They are in
    `rerank_failures.jsonl` in the folder, with the reason.

    Args:
        found: what `retrieval.search` found in a data folder with texts.
        store, prices, budget, transport, poll, progress: as in `write_profiles`; `progress` hears of "user".

    Raises:
        ProfileError, DataError, ValueError: settings, data or service that cannot be used; one line.
        KeyboardInterrupt: interrupted; what was under way is kept.
    """
    one_of("transport", transport, TRANSPORTS)
    reranker = _Reranker(found, chat, settings or RerankSettings())
    with Store(store or reranker.folder / "answers.sqlite") as opened:
        session = Session(
            opened,
            chat,
            service or ServiceSettings(),
            reranker,
            prices or Prices.load(),
            budget,
            batch=transport == "batch",
        )
        reranker.open(opened, progress, budget)
        reranker.begin("user")
        stopped = None
        try:
            run_chains(reranker.chains(), session, poll=poll)
        except BudgetReached as error:
            stopped = str(error)
        finally:
            ledger = reranker.write_ledger()
        return reranker.result(stopped, ledger)


def estimate_reranking(
    found: Found,
    chat: ChatSettings,
    settings: RerankSettings | None = None,
    *,
    store: str | os.PathLike[str] | None = None,
    prices: Prices | None = None,
    batch: bool = False,
) -> Estimate:
    """What `rerank_candidates` with the same arguments would ask and cost; nothing is sent.

    Raises:
        ProfileError, DataError, ValueError: settings or data that cannot be used; one line.
    """
    reranker = _Reranker(found, chat, settings or RerankSettings())
    with store_for_estimate(store or reranker.folder / "answers.sqlite") as opened:
        reranker.open(opened)
        reranker.begin("user")
        return estimate(reranker.chains(), opened, chat, prices or Prices.load(), batch=batch)


class _Reranker(RunState):
    """The chains of one folder's candidates, and what became of them. An `Outcome` for a session."""

    def __init__(self, found: Found, chat: ChatSettings, settings: RerankSettings) -> None:
        if found.folder is None:
            raise ProfileError(f"{found.data.name}: a built-in set has no texts for a model to choose by")
        folder, data, candidates = found.folder, found.data, found.candidates
        self.folder, self.chat, self.settings, self.items = folder, chat, settings, candidates.items
        texts = load_texts(folder, data.num_users, data.num_items)
        self.nodes = texts.items
        self.keys = {row: node.key for row, node in texts.users.items()}
        self.user_profiles, self.item_profiles = (
            {row: one[0] for row, one in read_profile_texts(folder, side, count, data.split_hash).texts.items()}
            for side, count in (("users", data.num_users), ("items", data.num_items))
        )
        if not self.nodes and not self.item_profiles:
            raise ProfileError(f"{folder}: no titles, texts or profiles of items for a model to choose by")
        self.view = TrainView(data, texts, max_items=settings.max_items, max_text_chars=settings.max_text_chars)
        self.prompt = Prompts.load(settings.domain, settings.prompts)["user", "rerank"]
        begins, sizes = candidates.indptr[:-1].tolist(), candidates.indptr.diff().tolist()
        rows = zip(candidates.users.tolist(), begins, sizes, candidates.budget.tolist(), strict=True)
        self.asked = {
            user: (slice(begin, begin + min(size, budget * settings.num_candidates)), budget)
            for user, begin, size, budget in rows
            if size > budget
        }
        self.unasked = sum(size > 0 for size in sizes) - len(self.asked)
        parts = (
            data.split_hash,
            texts.fingerprint,
            sorted(self.user_profiles.items()),
            sorted(self.item_profiles.items()),
            _fingerprint(candidates),
            asdict(chat),
            self.prompt,
            self.view.settings,
            settings.num_candidates,
        )
        super().__init__(digest(parts), {"user": len(self.asked)}, retry_failed=settings.retry_failed)

    def chains(self) -> Iterator[tuple[Node, Start]]:
        """Every user to be asked that has neither an answer nor a failure that is to stay."""
        for user in self.asked:
            if self.due(user):
                yield ("user", user), lambda user=user: self.chain(user)

    def chain(self, user: int) -> Chain[Reranked]:
        offered, count = self.asked[user]
        if user in self.user_profiles:
            known = {"profile": self.text(self.user_profiles[user])}
        else:
            known = self.view.user_material(user, self.item_profiles)
        return rerank_chain(
            known,
            [self.candidate(item) for item in self.items[offered].tolist()],
            count,
            self.prompt,
            attempts=self.settings.attempts,
            round=self.round(user),
        )

    def candidate(self, item: int) -> dict[str, Any]:
        node = self.nodes.get(item)
        title, description = ("", "") if node is None else (cut(clean(node.title), _TITLE_CHARS), node.text)
        profile = self.text(self.item_profiles.get(item, description))
        return {"id": item, **{name: said for name, said in (("title", title), ("profile", profile)) if said}}

    def text(self, text: str) -> str:
        return cut(clean(text), self.settings.max_text_chars)

    def finished(self, node: Node, result: Reranked) -> None:
        self.keep(node, [str(item) for item in result.items], {"invented": result.invented})

    def write_ledger(self) -> str | None:
        """Who has no valid answer, and why; no file where there is nobody."""
        path = self.folder / FAILURES
        ledger = [
            {"id": user, "key": self.keys.get(user, str(user)), "kind": failure.kind, "reason": failure.reason}
            for user, failure in self.store.failures(self.run, "user").items()
        ]
        if not ledger:
            path.unlink(missing_ok=True)
            return None
        write_jsonl(path, ledger)
        return str(path)

    def result(self, stopped: str | None, ledger: str | None) -> Reranking:
        asked, invented = self.reports["user"], 0
        answers: dict[int, list[int]] = {user: [] for user in self.store.failures(self.run, "user")}
        for user, items, lineage in self.store.profiles(self.run, "user"):
            answers[user] = [int(item) for item in items]
            invented += lineage["invented"]
        how = {
            **asdict(self.chat),
            "prompt": digest(self.prompt),
            "num_candidates": self.settings.num_candidates,
            "asked": asked.total,
            "unasked": self.unasked,
            "without": sum(asked.failed.values()),
            "invented": invented,
        }
        return Reranking(answers, asked, self.unasked, invented, self.spent(), stopped, ledger, how)


def _fingerprint(candidates: RankedCandidates) -> str:
    hashed = hashlib.blake2b(digest_size=16)
    for part in (candidates.users, candidates.budget, candidates.indptr, candidates.items):
        hashed.update(part.cpu().numpy().data)
    return hashed.hexdigest()
