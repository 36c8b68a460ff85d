"""What prompts are built from: training interactions, their reviews, and what users and items say themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import ProfileError
from .wording import clean, cut

if TYPE_CHECKING:
    from prorec_fast.data.dataset import Dataset
    from prorec_fast.data.texts import NodeText, Texts

_MAX_TITLE_CHARS = 200
_MAX_ATTRIBUTES = 20


class TrainView:
    """The training part of a data set and its texts; nothing else is kept, so nothing else can reach a prompt.

    Samples depend on `seed`, the training interactions and their ratings alone, not on NumPy's version: a stored answer
    is found again only under the very same prompt.

    Args:
        data: the data set; its validation and test interactions are not looked at.
        texts: titles, descriptions and reviews, of all splits.
        max_reviews: reviews in an item's material.
        max_review_chars: characters of each review.
        max_items: items in a user's material.
        max_text_chars: characters of a description, an item's profile or a user's own text.
        seed: of the samples.

    Attributes:
        settings: all that decides on the samples and lengths, ready for JSON.

    Raises:
        ProfileError: a limit or the seed is no whole number or too small, or a review is of an unknown user or item.
    """

    def __init__(
        self,
        data: Dataset,
        texts: Texts,
        *,
        max_reviews: int = 10,
        max_review_chars: int = 500,
        max_items: int = 20,
        max_text_chars: int = 1000,
        seed: int = 0,
    ) -> None:
        self.settings = {
            "max_reviews": max_reviews,
            "max_review_chars": max_review_chars,
            "max_items": max_items,
            "max_text_chars": max_text_chars,
            "seed": seed,
        }
        for name, value in self.settings.items():
            least = 0 if name in ("max_reviews", "seed") else 1
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ProfileError(f"{name}: want a whole number of at least {least}, got {value!r}")
        self.num_users, self.num_items = data.num_users, data.num_items
        self._items, self._users = dict(texts.items), dict(texts.users)
        self._indptr, self._indices = data.train.indptr.copy(), data.train.indices.copy()  # [M + 1], [E]
        self._index_reviews(texts)

    def _index_reviews(self, texts: Texts) -> None:
        """Finds the review of each training edge, and the reviewed edges of each item."""
        reviews, num_edges = texts.reviews, self._indices.shape[0]
        user, item = (np.fromiter((getattr(r, of) for r in reviews), np.int64, len(reviews)) for of in ("user", "item"))
        outside = (user < 0) | (user >= self.num_users) | (item < 0) | (item >= self.num_items)
        if outside.any():
            at = int(np.flatnonzero(outside)[0])
            raise ProfileError(
                f"review {at}: user {user[at]} and item {item[at]} are not among {self.num_users} users and "
                f"{self.num_items} items"
            )
        edge_user = np.repeat(np.arange(self.num_users, dtype=np.int64), np.diff(self._indptr))
        pairs = edge_user * self.num_items + self._indices  # ascending, for users are in order and their items sorted
        edge = np.minimum(np.searchsorted(pairs, user * self.num_items + item), num_edges - 1)
        trained = np.flatnonzero(pairs[edge] == user * self.num_items + item)
        edge = edge[trained]

        kept = [reviews[at] for at in trained.tolist()]
        has_text = np.fromiter((not r.text.isspace() and r.text != "" for r in kept), bool, len(kept))
        ratings = np.fromiter((np.nan if r.rating is None else r.rating for r in kept), np.float64, len(kept))
        self._texts = [r.text for r, said in zip(kept, has_text.tolist(), strict=True) if said]
        self._text_at = np.full(num_edges, -1)
        self._text_at[edge[has_text]] = np.arange(len(self._texts))
        self._rating = np.full(num_edges, np.nan)
        self._rating[edge] = ratings

        reviewed = np.flatnonzero(self._text_at >= 0)
        self._item_edges = reviewed[np.argsort(self._indices[reviewed], kind="stable")]
        counts = np.bincount(self._indices[reviewed], minlength=self.num_items)
        self._item_indptr = np.concatenate(([0], np.cumsum(counts)))

        unrated = np.isnan(ratings)
        usual = 0.0 if unrated.all() else ratings[~unrated].mean()
        self._level = np.where(np.isnan(self._rating), usual, self._rating)
        self._draw = _mixed(pairs, self.settings["seed"])

    def item_material(self, row: int) -> dict[str, Any]:
        """What there is to say of an item: title, description, attributes and a sample of its training reviews.

        Empty where there is nothing. The sample is spread over the ratings, from the lowest to the highest.

        Raises:
            ProfileError: no such row.
        """
        _require_row("item", row, self.num_items)
        edges = self._item_edges[self._item_indptr[row] : self._item_indptr[row + 1]]
        sample = self._sample(edges, self.settings["max_reviews"])
        reviews = [_filled(rating=self._rating_of(edge), text=self._review_of(edge)) for edge in sample.tolist()]
        node = self._items.get(row)
        return _filled(title=_title(node), **self._own_words(node, "description"), reviews=reviews)

    def user_material(self, row: int, item_profiles: Mapping[int, str]) -> dict[str, Any]:
        """What there is to say of a user: their own text and attributes, and a sample of their training items.

        Each item comes with its title, its profile (its description where `item_profiles`, row -> text, has none), and
        the user's rating and review; items that they reviewed go first into the sample. Empty for a user without
        training interactions.

        Raises:
            ProfileError: no such row.
        """
        _require_row("user", row, self.num_users)
        edges = np.arange(self._indptr[row], self._indptr[row + 1])
        if edges.size == 0:
            return {}
        reviewed = self._text_at[edges] >= 0
        sample = self._sample(edges[reviewed], self.settings["max_items"])
        if sample.size < self.settings["max_items"]:
            others = edges[~reviewed]
            said = [self._says(item, item_profiles) for item in self._indices[others].tolist()]
            others = self._sample(others[np.array(said, dtype=bool)], self.settings["max_items"] - sample.size)
            sample = np.sort(np.concatenate((sample, others)))
        items = [self._item_of_user(edge, item_profiles) for edge in sample.tolist()]
        return _filled(**self._own_words(self._users.get(row), "about"), items=items)

    def _item_of_user(self, edge: int, item_profiles: Mapping[int, str]) -> dict[str, Any]:
        item = int(self._indices[edge])
        node, profile = self._items.get(item), self._cut_text(item_profiles.get(item, ""))
        return _filled(
            title=_title(node),
            profile=profile,
            description="" if profile or node is None else self._cut_text(node.text),
            rating=self._rating_of(edge),
            review=self._review_of(edge),
        )

    def _says(self, item: int, item_profiles: Mapping[int, str]) -> bool:
        node = self._items.get(item)
        return item in item_profiles or (node is not None and bool(node.title.strip() or node.text.strip()))

    def _own_words(self, node: NodeText | None, name_of_text: str) -> dict[str, Any]:
        if node is None:
            return {}
        attributes = {
            cut(clean(name), _MAX_TITLE_CHARS): cut(clean(value), _MAX_TITLE_CHARS)
            for name, value in list(node.attributes.items())[:_MAX_ATTRIBUTES]
        }
        return {name_of_text: self._cut_text(node.text), "attributes": _filled(**attributes)}

    def _cut_text(self, text: str) -> str:
        return cut(clean(text), self.settings["max_text_chars"])

    def _review_of(self, edge: int) -> str:
        at = int(self._text_at[edge])
        return "" if at < 0 else cut(clean(self._texts[at]), self.settings["max_review_chars"])

    def _rating_of(self, edge: int) -> float | int | None:
        rating = float(self._rating[edge])
        if math.isnan(rating):
            return None
        return int(rating) if rating.is_integer() else rating

    def _sample(self, edges: np.ndarray, count: int) -> np.ndarray:
        """`count` of the edges, evenly spaced in the order of their ratings, both ends included; drawn among equals."""
        if edges.size <= count:
            return edges
        ranked = edges[np.lexsort((self._draw[edges], self._level[edges]))]
        if count < 2:
            return ranked[edges.size // 2 :][:count]
        return np.sort(ranked[np.arange(count) * (edges.size - 1) // (count - 1)])


def _title(node: NodeText | None) -> str:
    return "" if node is None else cut(clean(node.title), _MAX_TITLE_CHARS)


def _filled(**entries: Any) -> dict[str, Any]:
    """The entries that say something."""
    return {name: value for name, value in entries.items() if value not in (None, "", [], {})}


def _require_row(side: str, row: int, size: int) -> None:
    if not 0 <= row < size:
        raise ProfileError(f"{side} {row}: there are {side}s 0 to {size - 1}")


def _mixed(numbers: np.ndarray, seed: int) -> np.ndarray:
    """uint64, as good as drawn for each of the int64 `numbers` (the finaliser of SplitMix64)."""
    x = numbers.astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
