"""From what a table holds to ids, numbers, times and texts; a chunk at a time, and by value where it is mixed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import date, datetime, timezone
from typing import Any

import numpy as np

Problems = dict[int, str]


class Ids(defaultdict[str, int]):
    """Every id that was looked up, numbered in the order of first appearance; `.get` looks up and adds none."""

    def __init__(self) -> None:
        super().__init__()
        self.default_factory = self.__len__

    def codes(self, ids: Sequence[str]) -> np.ndarray:
        """int32 [len(ids)]: their numbers, new ones included."""
        return np.fromiter(map(self.__getitem__, ids), dtype=np.int32, count=len(ids))

    def known(self, ids: Sequence[str]) -> np.ndarray:
        """int32 [len(ids)]: their numbers; -1 for ids that are new."""
        return np.fromiter((self.get(one, -1) for one in ids), dtype=np.int32, count=len(ids))


def as_ids(values: Sequence[Any], what: str) -> tuple[list[str], Problems]:
    """Ids as strings, exactly as they are; integers in decimal. `what` names them in the problems."""
    kinds = set(map(type, values))
    if kinds <= {str}:
        ids = list(values)
    elif kinds <= {int}:
        ids = list(map(str, values))
    else:
        ids = [str(value) if type(value) in (str, int) else "" for value in values]
    problems: Problems = {}
    if "" in ids:
        for at, one in enumerate(ids):
            if one == "":
                empty = values[at] is None or values[at] == ""
                problems[at] = f"no {what}" if empty else f"{what} {shown(values[at])} is no string or integer"
    if "\n" in "".join(ids):
        problems |= {at: f"{what} {shown(one)} has a line break" for at, one in enumerate(ids) if "\n" in one}
    return ids, problems


def as_numbers(values: Sequence[Any], what: str, *, required: bool) -> tuple[np.ndarray, Problems]:
    """float64 [len(values)]; NaN where there is no number: a problem if it is `required` or something else is there."""
    return _converted(values, what, "a number", _number, required)


def as_times(values: Sequence[Any], what: str, *, required: bool) -> tuple[np.ndarray, Problems]:
    """As `as_numbers`; ISO 8601 dates and times become seconds since 1970 (UTC where they name no zone)."""
    return _converted(values, what, "a number or an ISO date", _time, required)


def as_text(value: Any, separator: str = ", ") -> str:
    """One string: lists joined, objects as "key: value", nothing for null."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, dict):
        return separator.join(f"{key}: {as_text(one)}" for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return separator.join(text for text in map(as_text, value) if text)
    return str(value)


def shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _converted(
    values: Sequence[Any], what: str, wanted: str, convert: Callable[[Any], float], required: bool
) -> tuple[np.ndarray, Problems]:
    kinds = set(map(type, values))
    # float() reads 1_000 as a number, which no file means by it
    if kinds <= {int, float} or (kinds <= {str} and "_" not in "".join(values)):
        try:
            quick = np.fromiter(map(float, values), dtype=np.float64, count=len(values))
            if np.isfinite(quick).all():
                return quick, {}
        except (ValueError, OverflowError):
            pass
    found = np.full(len(values), np.nan)
    problems: Problems = {}
    for at, value in enumerate(values):
        if value is None or (isinstance(value, str) and not value.strip()):
            if required:
                problems[at] = f"no {what}"
            continue
        try:
            found[at] = convert(value)
        except (ValueError, OverflowError):
            problems[at] = f"{what} {shown(value)} is not {wanted}"
        else:
            if not math.isfinite(found[at]):
                problems[at] = f"{what} {shown(value)} is not finite"
    return found, problems


def _number(value: Any) -> float:
    if type(value) is bool or (isinstance(value, str) and "_" in value):
        raise ValueError
    try:
        return float(value)
    except TypeError as error:
        raise ValueError from error


def _time(value: Any) -> float:
    if isinstance(value, datetime):
        moment = value
    elif isinstance(value, date):
        moment = datetime(value.year, value.month, value.day)
    else:
        try:
            return _number(value)
        except ValueError:
            if not isinstance(value, str):
                raise
        text = value.strip()
        moment = datetime.fromisoformat(text[:-1] + "+00:00" if text[-1] in "Zz" else text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
