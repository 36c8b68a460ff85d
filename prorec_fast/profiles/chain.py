"""The questions that one user's or item's profiles are written with, one after the other.

F1 original profile; F2 what attracts and what repels; F3 latent preferences; F4 K - 1 profiles more, which differ from
the original and from one another (ProEx, arXiv 2512.00679, section 2.3.1 and appendix A.1). Each step is a conversation
of its own: its system prompt, and one message of JSON that holds the material and what the steps before it said.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import BaseModel

from prorec_fast._checks import positive_int

from . import answers
from .errors import NothingToSay
from .prompts import Prompts
from .requests import Answer, Chain, ChatRequest, ask, digest
from .train_view import TrainView
from .wording import to_json


@dataclass(frozen=True)
class Written:
    """A user's or item's profiles.

    Attributes:
        profiles: K texts, the original first.
        keys: of the requests whose answers they are made of, one a step.
        rejected: keys of the requests whose answers were asked again.
        prompt_hash: of the messages of all steps.
    """

    profiles: tuple[str, ...]
    keys: tuple[str, ...]
    rejected: tuple[str, ...]
    prompt_hash: str


def item_chain(
    view: TrainView, row: int, prompts: Prompts, num_profiles: int, *, attempts: int = 3, round: int = 0
) -> Chain[Written]:
    """The chain that writes an item's `num_profiles` profiles; for one, F1 alone is asked.

    Args:
        attempts: answers to a question before the chain gives up.
        round: of every request; see `ChatRequest`.

    Raises (once it is walked):
        NothingToSay: the item has no title, text, attributes or training reviews.
        Malformed: a step never got a valid answer.
    """
    material = view.item_material(row)
    if not material:
        raise NothingToSay(f"item {row}: no title, description, attributes or training reviews to write from")
    return (yield from _Steps("item", material, prompts, attempts, round).walk(num_profiles))


def user_chain(
    view: TrainView,
    row: int,
    item_profiles: Mapping[int, str],
    prompts: Prompts,
    num_profiles: int,
    *,
    attempts: int = 3,
    round: int = 0,
) -> Chain[Written]:
    """The chain that writes a user's profiles, as `item_chain`.

    Args:
        item_profiles: row -> original profile, of the items that have one.

    Raises (once it is walked):
        NothingToSay: the user has no training interactions, or nothing is known of them or of their items.
        Malformed: a step never got a valid answer.
    """
    material = view.user_material(row, item_profiles)
    if not material:
        raise NothingToSay(f"user {row}: no training interactions with items that say anything to write from")
    return (yield from _Steps("user", material, prompts, attempts, round).walk(num_profiles))


class _Steps:
    """One chain under way: what has been said so far, and the keys of what was asked."""

    def __init__(self, side: str, material: Mapping[str, Any], prompts: Prompts, attempts: int, round: int) -> None:
        self.side, self.prompts, self.attempts, self.round = side, prompts, attempts, round
        self.said: dict[str, Any] = {"material": material}
        self.keys: list[str] = []
        self.rejected: list[str] = []
        self.sent: list[Any] = []

    def walk(self, num_profiles: int) -> Chain[Written]:
        positive_int("num_profiles", num_profiles)
        original = yield from self.step("original", answers.OriginalProfile, answers.original_profile)
        profiles = [original]
        if num_profiles > 1:
            self.said["original_profile"] = original
            self.said["aspects"] = yield from self.step("aspects", answers.Aspects, answers.aspects)
            self.said["latent_preferences"] = yield from self.step(
                "preferences", answers.Preferences, answers.latent_preferences
            )
            self.said["count"] = num_profiles - 1
            check = partial(answers.new_profiles, original=original, count=num_profiles - 1)
            profiles += yield from self.step("new", answers.NewProfiles, check)
        return Written(tuple(profiles), tuple(self.keys), tuple(self.rejected), digest(self.sent))

    def step(
        self, name: str, schema: type[BaseModel], check: Callable[[Any], Any]
    ) -> Generator[ChatRequest, Answer, Any]:
        messages = (
            {"role": "system", "content": self.prompts[self.side, name]},
            {"role": "user", "content": to_json(self.said)},
        )
        self.sent.append(messages)
        checked = yield from ask(messages, schema, check, attempts=self.attempts, round=self.round)
        *rejected, accepted = checked.keys
        self.rejected += rejected
        self.keys.append(accepted)
        return checked.value
