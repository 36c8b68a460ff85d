from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from bench_distribution_kl import CHUNKED
from bench_topk import FAISS, faiss_search
from sizes import AMAZON_BOOK, COMPILED, EAGER, OURS, Setting, Unavailable, compiled

from prorec_fast import retrieval
from prorec_fast.ops.pair_scores import pair_scores
from prorec_fast.reference.candidate_items import candidate_items as candidate_items_reference
from prorec_fast.reference.pair_scores import pair_scores as pair_scores_reference
from prorec_fast.reference.similar_users import similar_users as similar_users_reference

SCIPY = "scipy.sparse"
CHUNK = 2048


def similar_users_providers(at: Setting = AMAZON_BOOK, dim: int = 384):
    profiles, k = at.table(at.num_users, 1, dim).detach(), at.num_similar

    def eager():
        return [similar_users_reference(profiles, k)]

    def chunked():
        unit, found = F.normalize(profiles), []
        for start in range(0, len(unit), CHUNK):
            cosines = unit[start : start + CHUNK] @ unit.T
            cosines.diagonal(start).fill_(float("-inf"))
            found.append(cosines.topk(k).indices)
        return [torch.cat(found)]

    found = {EAGER: eager, CHUNKED: chunked}
    if at.exact:
        return found
    found |= {OURS: lambda: [retrieval.similar_users(profiles, k)], COMPILED: compiled(eager)}
    return {**found, FAISS: _faiss(at, profiles, k)}


def _faiss(at: Setting, profiles: torch.Tensor, k: int):
    """Its exact search for one more, of whom the user is one: behind the others only where profiles are equal."""
    if at.device != "cpu":
        return Unavailable("timed on a CPU")
    search = faiss_search()
    if isinstance(search, Unavailable):
        return search
    users = torch.arange(len(profiles))[:, None]

    def run():
        unit = F.normalize(profiles)
        others = search(unit, unit, k + 1)[1]
        kept = others != users
        kept &= kept.cumsum(1) <= k
        return [others[kept].view(-1, k)]

    return run


def similar_users_seen(at: Setting, results: list[torch.Tensor], dim: int = 384) -> list[torch.Tensor]:
    """The cosines with the users of the lists, NaN for a user's own: where two differ by a rounding, either user may
    come first."""
    (similar,), unit = results, F.normalize(at.table(at.num_users, 1, dim).detach().double())
    cosines = torch.stack([(unit * unit[column]).sum(1) for column in similar.T], dim=1)
    return [cosines.masked_fill(similar == torch.arange(len(unit), device=unit.device)[:, None], torch.nan)]


def similar_to(at: Setting) -> torch.Tensor:
    """Some other users of every user."""
    apart = at.distinct(at.num_users - 1, at.num_similar, 8) + 1
    return (torch.arange(at.num_users, device=at.device)[:, None] + apart) % at.num_users


def candidates(at: Setting):
    return retrieval.candidate_items(at.graph(), similar_to(at))


def candidate_items_providers(at: Setting = AMAZON_BOOK):
    """Exact."""
    graph, similar = at.graph(), similar_to(at)
    return {
        EAGER: lambda: list(candidate_items_reference(*graph.csr(), at.num_items, similar)),
        OURS: lambda: list(retrieval.candidate_items(graph, similar)),
        SCIPY: _scipy(at, similar),
        COMPILED: Unavailable("sizes depend on the contents: nothing to fuse"),
    }


def _scipy(at: Setting, similar: torch.Tensor):
    """The same as a product of two sparse matrices, without the entries of the second."""
    if at.device != "cpu":
        return Unavailable("timed on a CPU")
    try:
        from scipy.sparse import csr_matrix
    except ImportError as error:
        return Unavailable(f"not importable ({error})")
    indptr, indices = (t.numpy() for t in at.graph().csr())
    own = csr_matrix((np.ones(len(indices), dtype=np.int32), indices, indptr), (at.num_users, at.num_items))
    starts = np.arange(at.num_users + 1) * at.num_similar
    alike = csr_matrix((np.ones(similar.numel(), dtype=np.int32), similar.flatten().numpy(), starts))

    def run():
        met = alike @ own
        met = met - met.multiply(own)
        met.eliminate_zeros()
        met.sort_indices()
        return [torch.from_numpy(t) for t in (met.indptr, met.indices, met.data)]

    return run


def pair_scores_providers(at: Setting = AMAZON_BOOK, dim: int = 384):
    """The cosines of every user's candidates."""
    user, item = at.table(at.num_users, 1, dim).detach(), at.table(at.num_items, 2, dim).detach()
    rows = candidates(at)[:2]
    users = torch.arange(at.num_users, device=at.device).repeat_interleave(rows[0].diff())

    def eager():
        return [pair_scores_reference(user, item, *rows)]

    def at_once():
        """Without the definition's chunks, a loop that torch.compile would unroll: it adds products up as they come.
        Every pair's row is found outside of its time."""
        return [(user[users] * item[rows[1]]).sum(1)]

    return {EAGER: eager, OURS: lambda: [pair_scores(user, item, *rows)], COMPILED: compiled(at_once)}
