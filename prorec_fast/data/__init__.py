"""Data sets: interactions in three splits, with profile vectors where there are any."""

from .dataset import Dataset, Interactions
from .errors import DataError
from .loading import load
from .texts import NodeText, Review, Texts, load_texts, own_ids

__all__ = [
    "DataError", "Dataset", "Interactions", "NodeText", "Review", "Texts", "load", "load_texts", "own_ids",
]  # fmt: skip
