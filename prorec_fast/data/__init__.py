"""Data sets: interactions in three splits, with profile vectors where there are any."""

from .dataset import Dataset, Interactions
from .errors import DataError
from .loading import load

__all__ = ["DataError", "Dataset", "Interactions", "load"]
