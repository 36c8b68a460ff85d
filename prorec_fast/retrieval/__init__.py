"""Retrieval before training, after ProMax (arXiv 2604.26231, 2.2-2.3): whitened profiles, users with similar profiles,
the items those users have, and a graph enriched with the best of them for the users with few interactions.

`similar_users` and `candidate_items` run compiled kernels on CPUs and CUDA devices. Nothing here is differentiable.
"""

from prorec_fast.ops.candidate_items import CandidateItems

from .candidates import RankedCandidates, rank_candidates, sparsity_level_budget
from .enrichment import Enrichment, choose, enrich
from .folder import Found, Level, search
from .similar import candidate_items, similar_users
from .whitening import Whitening

__all__ = [
    "CandidateItems",
    "Enrichment",
    "Found",
    "Level",
    "RankedCandidates",
    "Whitening",
    "candidate_items",
    "choose",
    "enrich",
    "rank_candidates",
    "search",
    "similar_users",
    "sparsity_level_budget",
]
