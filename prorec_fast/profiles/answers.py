"""What the steps of a chain answer: schemas, and what a schema cannot check. Reasons are read by the model."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from .wording import clean, overlap

PROFILE_LENGTH = "60 to 120 words"
_PROFILE_CHARS = (40, 1600)  # of any script: 120 long words of English are 1000, 60 words of Chinese about 100
_ENTRY_CHARS = (3, 600)
_MOST_ENTRIES = 12
_MOST_OVERLAP = 0.7  # of words; texts on different users share a third of theirs, a lightly changed copy 0.8 or more


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class OriginalProfile(_Answer):
    """F1."""

    reasoning: str = Field(description="Two or three sentences: what in the material the profile rests on.")
    profile: str = Field(description=f"The profile, {PROFILE_LENGTH} of running text.")


class Aspects(_Answer):
    """F2."""

    positive: list[str] = Field(description="What attracts, each with its evidence in the material.")
    negative: list[str] = Field(description="What repels, each with its evidence; empty where there is no sign of it.")


class Preferences(_Answer):
    """F3."""

    latent: list[str] = Field(description="Preferences that are not stated, each with what suggests it.")


class NewProfiles(_Answer):
    """F4."""

    profiles: list[str] = Field(description=f"As many new profiles as `count` says, each {PROFILE_LENGTH}.")


def original_profile(answer: OriginalProfile) -> str:
    """The profile, cleaned.

    Raises:
        ValueError: it is too short or too long.
    """
    return _sized("profile", answer.profile, *_PROFILE_CHARS, wanted=PROFILE_LENGTH)


def aspects(answer: Aspects) -> dict[str, list[str]]:
    """Both lists, cleaned.

    Raises:
        ValueError: both are empty, or an entry is too short or too long, or there are too many.
    """
    if not answer.positive and not answer.negative:
        raise ValueError("positive and negative are both empty; name at least one aspect that the material shows")
    return {"positive": _entries("positive", answer.positive), "negative": _entries("negative", answer.negative)}


def latent_preferences(answer: Preferences) -> list[str]:
    """The entries, cleaned.

    Raises:
        ValueError: there are none or too many, or one is too short or too long.
    """
    if not answer.latent:
        raise ValueError("latent is empty; infer at least one preference from the material")
    return _entries("latent", answer.latent)


def new_profiles(answer: NewProfiles, *, original: str, count: int) -> list[str]:
    """The profiles, cleaned.

    Raises:
        ValueError: there are more or fewer than `count`, one is too short or too long, or nearly the same as the
            original or as another one.
    """
    if len(answer.profiles) != count:
        raise ValueError(f"profiles has {len(answer.profiles)} entries; write exactly {count}")
    texts = [
        _sized(f"profiles[{at}]", text, *_PROFILE_CHARS, wanted=PROFILE_LENGTH)
        for at, text in enumerate(answer.profiles)
    ]
    named = [("the original profile", original), *((f"profiles[{at}]", text) for at, text in enumerate(texts))]
    for later, (name, text) in enumerate(named):
        for other, other_text in named[:later]:
            if overlap(text, other_text) > _MOST_OVERLAP:
                raise ValueError(
                    f"{name} is nearly the same as {other}; write it anew, from another angle, with other words and "
                    "sentences built otherwise"
                )
    return texts


def _entries(name: str, texts: Sequence[str]) -> list[str]:
    if len(texts) > _MOST_ENTRIES:
        raise ValueError(f"{name} has {len(texts)} entries; keep the {_MOST_ENTRIES} that matter most, or fewer")
    return [
        _sized(f"{name}[{at}]", text, *_ENTRY_CHARS, wanted="one or two short sentences")
        for at, text in enumerate(texts)
    ]


def _sized(name: str, text: str, least: int, most: int, *, wanted: str) -> str:
    text = clean(text)
    if not text:
        raise ValueError(f"{name} is empty; write {wanted}")
    if not least <= len(text) <= most:
        raise ValueError(
            f"{name} is too {'short' if len(text) < least else 'long'} ({len(text)} characters); write {wanted}"
        )
    return text
