"""The question which of a user's candidates to add to their interactions (ProMax, arXiv 2604.26231, Eq. 10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from .errors import NothingToSay
from .requests import Chain, ask
from .wording import to_json


class Choice(BaseModel):
    model_config = ConfigDict(extra="forbid")
    ids: list[int] = Field(description="Ids of candidates, best first.")


@dataclass(frozen=True)
class Reranked:
    """What the model chose for a user.

    Attributes:
        items: ids of candidates, best first; at most as many as were wanted, and at least one.
        invented: how many ids the answer had that no candidate has; they are dropped.
    """

    items: tuple[int, ...]
    invented: int


def rerank_chain(
    user: Mapping[str, Any],
    candidates: Sequence[Mapping[str, Any]],
    count: int,
    prompt: str,
    *,
    attempts: int = 3,
    round: int = 0,
) -> Chain[Reranked]:
    """The chain that has the model choose `count` of the candidates, or fewer.

    It can only choose: an id that no candidate has is dropped, and so is one that came before. An answer without any
    candidate's id is asked again.

    Args:
        user: what there is to say of the user, ready for JSON.
        candidates: at least one; each with its "id", an integer, and what there is to say of it.
        prompt: the system prompt.
        attempts: answers before the chain gives up.
        round: of every request; see `ChatRequest`.

    Raises (once it is walked):
        NothingToSay: nothing is said of the user, or of any candidate.
        Malformed: there never was a valid answer.
    """
    if not user:
        raise NothingToSay("no profile, and no training interactions with items that say anything, to choose by")
    if all(candidate.keys() == {"id"} for candidate in candidates):
        raise NothingToSay("none of the candidates has a title, text or profile to be chosen by")
    offered = {candidate["id"] for candidate in candidates}

    def check(choice: Choice) -> Reranked:
        named = list(dict.fromkeys(choice.ids))
        known = [item for item in named if item in offered]
        if not known:
            raise ValueError("ids has no id of a candidate; copy ids from candidates")
        return Reranked(tuple(known[:count]), len(named) - len(known))

    messages = (
        {"role": "system", "content": prompt},
        {"role": "user", "content": to_json({"user": user, "candidates": candidates, "count": count})},
    )
    checked = yield from ask(messages, Choice, check, attempts=attempts, round=round)
    return checked.value
