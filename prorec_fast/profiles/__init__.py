"""Profiles: written by a language model from training interactions and reviews, embedded, looked at.

Needs the extra `profiles` (openai and pydantic); importing this module needs nothing.
"""

from __future__ import annotations

import importlib

_HOMES = {
    "ChatSettings": "settings",
    "ServiceSettings": "settings",
    "Prices": "pricing",
    "Store": "store",
    "ProfileError": "errors",
    "RerankSettings": "reranking",
    "estimate_reranking": "reranking",
    "rerank_candidates": "reranking",
    "WriteSettings": "write",
    "write_profiles": "write",
    "estimate_profiles": "estimate",
    "EmbedSettings": "embed",
    "embed_profiles": "embed_folder",
    "estimate_embeddings": "embed_folder",
    "plot_diversity": "diversity_report",
    "report_diversity": "diversity_report",
    "load_vectors": "vectors",
    "save_vectors": "vectors",
}

__all__ = list(_HOMES)


def __getattr__(name: str):
    if name in _HOMES:
        try:
            return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        except ImportError as error:
            from prorec_fast.backends import missing_extra

            raise ImportError(missing_extra(error) or str(error), name=error.name) from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
