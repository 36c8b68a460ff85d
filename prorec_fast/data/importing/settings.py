"""What an import is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class ImportSettings:
    """How files are read and what is kept of them.

    Attributes:
        user_column, item_column, rating_column, time_column, review_column: of the interactions; None for the usual
            names, "-" for none. Without a header they are numbers, as strings, counted from 1.
        user_id_column, item_id_column, title_column, text_column: of the tables of users and items; None for the usual.
        attributes: further columns of these tables to keep, each where it is found.
        format, delimiter, header: of the interactions' file; None for what its name says. The others have a header.
        quotes: whether a double quote at the start of a field of CSV or TSV opens a quoted field.
        skip_malformed: leave out rows that cannot be read, and count them, instead of refusing the file.
        min_rating: interactions rated lower are left out.
        k_core: keep users and items with at least so many interactions, to the fixed point.
        split: "random", or "time" (within each user, the latest to test).
        ratios: of training, validation and test.
        seed: of the random split.

    Raises:
        ValueError: a value out of range.
    """

    user_column: str | None = None
    item_column: str | None = None
    rating_column: str | None = None
    time_column: str | None = None
    review_column: str | None = None
    user_id_column: str | None = None
    item_id_column: str | None = None
    title_column: str | None = None
    text_column: str | None = None
    attributes: tuple[str, ...] = ()
    format: str | None = None
    delimiter: str | None = None
    header: bool = True
    quotes: bool = True
    skip_malformed: bool = False
    min_rating: float | None = None
    k_core: int = 1
    split: str = "random"
    ratios: tuple[float, float, float] = (3, 1, 1)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.min_rating is not None and not math.isfinite(self.min_rating):
            raise ValueError(f"min_rating (--min-rating): want a finite number, got {self.min_rating}")
        if type(self.k_core) is not int or self.k_core < 1:
            raise ValueError(f"k_core (--k-core): want an integer of at least 1, got {self.k_core}")
        if self.split not in ("random", "time"):
            raise ValueError(f"split (--split): want random or time, got {self.split!r}")
        ratios = list(self.ratios)
        if len(ratios) != 3 or not all(0 <= one < math.inf for one in ratios) or ratios[0] <= 0:
            raise ValueError(f"ratios (--ratios): want three numbers of at least 0, the first above, got {ratios}")
        if isinstance(self.attributes, str):
            raise ValueError(f"attributes (--attributes): want several names, got the string {self.attributes!r}")
        if self.delimiter is not None and (not self.delimiter or set(self.delimiter) & set('"\r\n')):
            raise ValueError(
                f"delimiter (--delimiter): want no quote and no line end, got {self.delimiter!r}"
            )
        if type(self.seed) is not int or self.seed < 0:
            raise ValueError(f"seed (--seed): want an integer of at least 0, got {self.seed}")
        if not self.header and (self.user_column is None or self.item_column is None):
            raise ValueError("header (--no-header): then give user_column and item_column as numbers, counted from 1")
