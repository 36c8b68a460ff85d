"""Data sets: interactions in three splits, with profile vectors where there are any."""

from .dataset import Dataset, Interactions
from .enriched import save_enrichment, with_enrichment
from .errors import DataError
from .importing import ImportSettings, import_interactions
from .loading import load
from .texts import NodeText, Review, Texts, load_texts, own_ids

__all__ = [
    "DataError", "Dataset", "ImportSettings", "Interactions", "NodeText", "Review", "Texts", "import_interactions",
    "load", "load_texts", "own_ids", "save_enrichment", "with_enrichment",
]  # fmt: skip
