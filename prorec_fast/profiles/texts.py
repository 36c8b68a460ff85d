"""The files of written profiles in a data folder, read."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prorec_fast.data import DataError
from prorec_fast.data.jsonl import find_jsonl, read_jsonl


@dataclass(frozen=True)
class ProfileTexts:
    """What is written of one side.

    Attributes:
        texts: row -> its K profiles, rows ascending.
        num_profiles: K; None where there is no profile.
        lineage: every value that the lines have of "split", "model", "settings" and "prompt", each list sorted; None is
            among them where a line does not say.
    """

    texts: dict[int, tuple[str, ...]] = field(default_factory=dict)
    num_profiles: int | None = None
    lineage: dict[str, list[str | None]] = field(default_factory=dict)


_LINEAGE = ("split", "model", "settings", "prompt")


def read_profile_texts(folder: str | os.PathLike[str], side: str, count: int, split_hash: str) -> ProfileTexts:
    """Read `profiles_<side>.jsonl.gz` (or `.jsonl`) of a data folder, which may be absent.

    A line is {"id": row, "profiles": [K texts], "lineage": {"split": ..., ...}}, lineage optional; what else it has is
    not looked at.

    Args:
        side: "users" or "items", `count` of them.
        split_hash: of the data, as in `Dataset.split_hash`.

    Raises:
        DataError: naming file and line: no such line, a row outside the data set or twice, a profile that is no text,
            another number of profiles than before, or profiles written from another split than the data's.
    """
    path = find_jsonl(Path(folder), f"profiles_{side}")
    texts: dict[int, tuple[str, ...]] = {}
    seen: dict[str, set[str | None]] = {name: set() for name in _LINEAGE}
    num_profiles = None
    for number, line in read_jsonl(path) if path else ():
        where = f"{path}:{number}"
        row, profiles = line.get("id"), line.get("profiles")
        if type(row) is not int or not 0 <= row < count:
            raise DataError(f"{where}: 'id' must be a row in [0, {count}), got {row!r}")
        if row in texts:
            raise DataError(f"{where}: id {row} is here a second time")
        texts[row] = _checked(profiles, where)
        num_profiles = num_profiles or len(profiles)
        if len(profiles) != num_profiles:
            raise DataError(f"{where}: {len(profiles)} profiles, and {num_profiles} in the lines before")
        for name, value in _lineage(line, where).items():
            seen[name].add(value)
        other = seen["split"] - {split_hash, None}
        if other:
            raise DataError(
                f"{where}: written from split {other.pop()[:12]}, and this data set is split {split_hash[:12]}; write "
                "profiles for this split"
            )
    lineage = {name: sorted(values, key=str) for name, values in seen.items()}
    return ProfileTexts(dict(sorted(texts.items())), num_profiles, lineage)


def _checked(profiles: Any, where: str) -> tuple[str, ...]:
    good = isinstance(profiles, list) and profiles and all(isinstance(text, str) and text.strip() for text in profiles)
    if not good:
        raise DataError(f"{where}: 'profiles' must be a list of texts, none of them empty")
    try:
        "".join(profiles).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: a profile with an unpaired surrogate") from error
    return tuple(profiles)


def _lineage(line: dict[str, Any], where: str) -> dict[str, str | None]:
    lineage = line.get("lineage", {})
    if not isinstance(lineage, dict) or not all(isinstance(lineage.get(name), str | None) for name in _LINEAGE):
        raise DataError(f"{where}: 'lineage' must be an object of texts")
    return {name: lineage.get(name) for name in _LINEAGE}
