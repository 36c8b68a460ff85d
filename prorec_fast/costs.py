"""What every operation costs: the one table of formulas, for `losses.explain` and for benchmarks.

A formula takes how an operation is called and its sizes, which are numbers of rows and columns, and gives two costs:
the kernels' and that of the definition in plain PyTorch ("eager"). They are of the operation's default options, and of
widths that are multiples of 16. In a formula g is 1 with a backward pass, for the gradient of every table that has one,
else 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from prorec_fast.ops.multinomial_nll import chunks
from prorec_fast.reference import pair_scores as reference_pair_scores
from prorec_fast.reference import topk as reference_topk


@dataclass(frozen=True)
class Cost:
    """What one call takes.

    Attributes:
        flops: 2 for every product of tables' entries that is added up: products of matrices, dot products of rows, sums
            over profiles and over edges. What is done once an entry, an exponential say, is not counted.
        bytes_read, bytes_written: of a kernel, its inputs once for every pass over them, and its results and gradients;
            scratch is not counted. Of eager, what every operation of torch reads and writes.
        memory: the most bytes that are held at once beyond the inputs, results and gradients among them.
    """

    flops: int
    bytes_read: int
    bytes_written: int
    memory: int


Costs = tuple[Cost, Cost]  # the kernels', eager's


@dataclass(frozen=True)
class Call:
    """How an operation is called."""

    dtype: torch.dtype = torch.float32  # of the tables
    cuda: bool = False  # on a CUDA device, or on the CPU
    gradients: bool = True  # with a backward pass
    threads: int = 1  # of the CPU
    processors: int = 132  # the CUDA device's multiprocessors
    served: bool = True  # by a kernel

    @property
    def size(self) -> int:
        """Bytes of a table's entry."""
        return self.dtype.itemsize

    def kernel(
        self, flops: float, tables: float, memory: float, *, read: float = 0, written: float = 0, gradients: float = 0,
        whole: float | None = None, passes: int = 1,
    ) -> Cost:  # fmt: skip
        """A kernel's cost: in every pass it reads so many entries of `tables`, which stand in `whole` ones, and `read`
        bytes more. `gradients` are entries that it makes in float32; where tables are narrower, autograd has them
        rounded."""
        # The CPU's kernels read float16 as float32.
        copies = 4 * (tables if whole is None else whole) if self.dtype == torch.float16 and not self.cuda else 0
        made = 4 * gradients if self.gradients else 0
        rounded = made * self.size / 4 if self.size < 4 else 0
        held = memory + copies + made
        return _cost(
            flops,
            passes * (self.size * tables + copies + read) + (made if rounded else 0),
            passes * (written + copies) + made + rounded,
            # A device's scratch is free again when gradients are rounded; the CPU keeps it for the next call.
            max(held, made + rounded) if self.cuda else held + rounded,
        )


def _cost(flops: float, read: float, written: float, memory: float) -> Cost:
    return Cost(round(flops), round(read), round(written), math.ceil(memory))


def distribution_kl(
    at: Call, *, batch: int, num_items: int, dim: int, teacher_dim: int | None = None, num_users: int | None = None
) -> Costs:
    """Two tables of scores, the student's twice more for its gradients; the teacher's statistics are kept, for which
    eager has no place. With `num_users` the batch is an index into tables of so many rows."""
    g, s, t = at.gradients, at.size, teacher_dim or dim
    pairs, rows, teacher = batch * num_items, (batch + num_items) * dim, (batch + num_items) * t
    gathered, whole = batch if num_users else 0, num_items + (num_users or batch)
    if at.cuda:
        # Three sweeps score anew: over the student with its rows' gradient, over the teacher with what it adds to loss
        # and gradient, and over both for the items' gradient.
        flops = 2 * pairs * (2 * dim + t + g * (3 * dim + t))
        memory = s * ((batch + num_items) * (_packed(dim) + _packed(t)) + gathered * (dim + t))
        memory += 4 * ((1 + g) * _parts(at, batch, num_items) * _packed(dim) + g * gathered * dim)
        # The gradient of all users comes when the items' parts are gone.
        memory += 4 * g * max(0, _parts(at, num_items, batch) * _packed(dim) - (num_users or 0) * dim)
    else:
        flops = 2 * pairs * (dim + t + g * 2 * dim)
        memory = 4 * (_sweep(at, batch, num_items, dim, tiles=2) + teacher)
    ours = at.kernel(
        flops, rows + teacher, memory, read=8 * (batch + gathered), written=4 * batch, gradients=whole * dim,
        whole=whole * (dim + t),
    )  # fmt: skip
    eager = _cost(
        2 * pairs * (dim + t + g * 2 * dim),
        s * ((13 + 6 * g) * pairs + (3 + 13 * g) * rows + 3 * teacher),
        s * ((11 + 3 * g) * pairs + (1 + 10 * g) * rows + teacher),
        s * max(5 * pairs + g * rows + gathered * (dim + t), g * whole * dim),
    )
    return ours, eager


def teacher_distribution(at: Call, *, num_users: int, num_items: int, dim: int) -> Costs:
    """One table of scores, whose statistics are kept. Eager takes 1024 users at a time, in float32."""
    pairs, rows = num_users * num_items, (num_users + num_items) * dim
    scratch = 4 * (rows + at.threads * 48 * 64)
    if at.cuda:
        scratch = (num_users + num_items) * _packed(dim) * at.size + 12 * _parts(at, num_users, num_items)
    ours = at.kernel(2 * pairs * dim, rows, scratch + 8 * num_users, written=8 * num_users)
    held = 4 * min(num_users, 1024) * num_items
    return ours, _cost(2 * pairs * dim, 4 * (7 * pairs + 3 * rows), 4 * (5 * pairs + rows), 4 * held)


def info_nce(at: Call, *, batch: int, dim: int) -> Costs:
    """One table of scores, twice more for the gradients."""
    g, s, pairs, rows = at.gradients, at.size, batch * batch, batch * dim
    flops, memory = _contrast(at, batch, batch, dim)
    ours = at.kernel(flops, 2 * rows, memory, written=4 * batch, gradients=2 * rows)
    eager = _cost(
        2 * pairs * dim * (1 + 2 * g),
        s * ((2 + 5 * g) * pairs + (6 + 26 * g) * rows),
        s * (3 * (1 + g) * pairs + (2 + 20 * g) * rows),
        s * ((2 + g) * pairs + 2 * rows),
    )
    return ours, eager


def cross_view_info_nce(
    at: Call,
    *,
    batch: int,
    dim: int,
    distinct_users: int | None = None,
    distinct_items: int | None = None,
    num_users: int | None = None,
    num_items: int | None = None,
) -> Costs:
    """Two tables of scores between the batch's distinct rows, twice more for the gradients; eager's are of all rows."""
    g, s, pairs, rows = at.gradients, at.size, batch * batch, batch * dim
    users, items = distinct_users or batch, distinct_items or batch
    tables = ((num_users or users) + (num_items or items)) * dim
    flops, memory = _contrast(at, users, items, dim)
    if at.cuda:  # whose memory is that of a batch without repetitions, so that a CUDA graph can hold it
        memory = _contrast(at, batch, batch, dim, views=2)[1]
    index = 88 * batch  # what is found of its repetitions
    ours = at.kernel(
        2 * flops, 2 * (users + items) * dim, memory + index, read=16 * batch, written=4 * batch,
        gradients=2 * tables, whole=2 * tables,
    )  # fmt: skip
    eager = _cost(
        4 * pairs * dim * (1 + 2 * g),
        s * ((4 + 10 * g) * pairs + (16 + 58 * g) * rows + 2 * g * tables),
        s * (6 * (1 + g) * pairs + (8 + 39 * g) * rows + 4 * g * tables),
        s * max(2 * (1 + g) * pairs + (6 + 2 * g) * rows, g * (2 * tables + rows)),
    )
    return ours, eager


def multinomial_nll(at: Call, *, batch: int, num_items: int, dim: int, num_targets: int) -> Costs:
    """One product of matrices, two more for the gradients, a chunk of the batch at a time. `dim` is the width of the
    decoder's last hidden layer."""
    g, s, pairs, tables = at.gradients, at.size, batch * num_items, (batch + num_items) * dim + num_items
    chunk = next(chunks(batch, num_items, *((64 << 20, 256) if at.cuda else (32 << 20, 192))))
    logits = (chunk.stop - chunk.start) * num_items
    memory = 4 * logits
    if at.cuda:
        memory += s * logits if g and s < 4 else 0  # their gradient, rounded
    elif at.dtype == torch.bfloat16:
        memory += 4 * tables  # read as float32, as float16 is by every operation
    flops = 2 * pairs * dim * (1 + 2 * g)
    ours = at.kernel(flops, tables, memory, read=8 * batch + 4 * num_targets, written=4 * batch, gradients=tables)
    eager = _cost(
        flops,
        s * ((1 + 6 * g) * pairs + (1 + g) * tables) + (152 + 40 * g) * num_targets,
        s * ((2 + 3 * g) * pairs + g * tables) + (92 + 8 * g) * num_targets,
        s * max((2 + g) * pairs, g * (pairs + tables)) + 16 * (1 - g) * num_targets,
    )
    return ours, eager


def bpr(at: Call, *, batch: int, dim: int) -> Costs:
    """One dot product a row, again for the gradients."""
    g, s, rows, passes = at.gradients, at.size, batch * dim, 1 + at.gradients
    ours = at.kernel(2 * rows * passes, 3 * rows, 24 * batch, written=4 * batch, gradients=3 * rows, passes=passes)
    eager = _cost(
        4 * rows,
        s * ((6 + 6 * g) * rows + (4 + 6 * g) * batch),
        s * ((2 + 5 * g) * rows + (4 + 2 * g) * batch),
        s * ((1 + 3 * g) * rows + (2 - g) * batch),
    )
    return ours, eager


def environment_bpr(
    at: Call, *, batch: int, num_users: int, num_items: int, dim: int, num_profiles: int, num_environments: int
) -> Costs:
    """Forward, a triplet's mixtures and their product in every environment; backward, a small matrix for each triplet,
    times its rows. Eager writes the mixtures out."""
    g, s, k, e, rows = at.gradients, at.size, num_profiles, num_environments, 1 + num_profiles
    entries, users, items = batch * dim, rows * num_users * dim, rows * num_items * dim
    flops = 2 * e * entries * (2 * k + 1) + g * (6 * rows**2 * entries + 2 * e * rows**2 * batch)
    scratch = 132 * batch if at.cuda else 4 * batch * -(-(rows**2) // 16) * 16 + 8 * (num_users + num_items + 3 * batch)
    memory, written, made = g * (4 * e * batch + scratch), 4 * (e + 2), users + items
    if at.cuda:  # adds to gradients in the tables' dtype
        memory, written, made = memory + g * s * made, written + g * s * made, 0
    ours = at.kernel(
        flops, (3 + 4 * g) * rows * entries, memory, read=24 * batch + g * (24 + 4 * e) * batch, written=written,
        gradients=made, whole=users + items,
    )  # fmt: skip
    # Either the mixtures that are saved are the most that eager holds, or the tables' gradients.
    held = (3 * e + max(e, k) + 1) * entries
    held = max(held, g * (users + items + entries), g * ((1 + k / rows) * items + (2 * e + 2) * entries))
    eager = _cost(
        (2 + 6 * k + g * (4 + 6 * k)) * e * entries,
        s * ((8 * e + 6 * k + 6 + g * (9 * e + 6 * k + 6)) * entries + g * (users + 4 * items)),
        s * ((8 * e + 3 * k + 3 + g * (3 * e + 3 * k + 3)) * entries + g * (2 * users + 5 * items)),
        s * held,
    )
    return ours, eager


def mix_environments(at: Call, *, num_rows: int, dim: int, num_profiles: int, num_environments: int) -> Costs:
    """A product of a small matrix and the profiles, and of its transpose for the profiles' gradient; the weights have
    none."""
    g, s, profiles, mixtures = at.gradients, at.size, num_profiles * num_rows * dim, num_environments * num_rows * dim
    flops, read, written = 2 * num_environments * profiles * (1 + g), profiles + g * mixtures, mixtures + g * profiles
    ours = at.kernel(flops, read, s * written, written=s * written)
    return ours, _cost(flops, s * read, s * written, s * written)


def profile_contrast(at: Call, *, batch: int, dim: int, num_profiles: int) -> Costs:
    """Dot products of a row's profiles, and again for the gradients, which are as many sums of profiles."""
    g, s, k, passes = at.gradients, at.size, num_profiles, 1 + at.gradients
    entries, scores = k * batch * dim, k * k * batch
    flops = (2 * k * (1 + 2 * g) if at.cuda else (k - 1) * (1 + 3 * g)) * entries  # a device has no use for symmetry
    ours = at.kernel(flops, entries, 16 * batch, written=4 * batch, gradients=entries, passes=passes)
    eager = _cost(
        2 * k * entries * (1 + 2 * g),
        s * ((1 + 4 * g) * entries + (3.5 + 7.5 * g) * scores),
        s * (3 * g * entries + (3.5 + 5.5 * g) * scores),
        s * 3 * (entries if g else scores),
    )
    return ours, eager


def gaussian_kl(at: Call, *, batch: int, dim: int) -> Costs:
    """Against the standard prior and another: all of it is done once an entry."""
    g, entries, passes = at.gradients, batch * dim, 1 + at.gradients
    ours = at.kernel(0, 4 * entries, 16 * batch, written=4 * batch, gradients=4 * entries, passes=passes)
    moved = at.size * entries
    return ours, _cost(0, (22 + 28 * g) * moved, (13 + 23 * g) * moved, (5 + 4 * g) * moved)


def propagate(at: Call, *, num_users: int, num_items: int, num_edges: int, dim: int, num_layers: int = 3) -> Costs:
    """A row gathered for every edge, in both directions, in every layer, and again for the gradients."""
    g, s, layers, passes = at.gradients, at.size, num_layers, 1 + at.gradients
    nodes, rows, edges = num_users + num_items, (num_users + num_items) * dim, num_edges * dim
    entry = 2 if at.cuda and at.dtype == torch.bfloat16 else 4  # bytes, of the rows that are gathered
    result = s if at.cuda else 4 + (s if s < 4 else 0)
    memory = 2 * nodes * (dim if at.cuda else min(dim, 64)) * entry + 4 * nodes + passes * result * rows
    flops, read = 4 * edges * layers * passes, layers * (2 * edges * entry + 8 * num_edges + 8 * nodes)
    ours = at.kernel(
        flops, layers * rows, memory, read=read, written=layers * rows * entry + rows * s, whole=rows, passes=passes
    )
    by_rows = (4 * layers * passes + 3 + g) * rows
    eager = _cost(
        flops,
        s * (8 * layers * passes * edges + by_rows) + (172 + (36 + 40 * g) * layers) * num_edges,
        s * (4 * layers * passes * edges + by_rows) + 80 * num_edges,
        s * ((2 * layers + 1 if g else 2) * edges + (layers + 2 * g) * rows) + (24 - 4 * g) * num_edges,
    )
    return ours, eager


def topk(at: Call, *, batch: int, num_items: int, dim: int, k: int) -> Costs:
    """One table of scores, a tile at a time; eager sorts it whole, with its indices."""
    s, pairs, tables, kept = at.size, batch * num_items, (batch + num_items) * dim, min(k, num_items)
    if at.cuda:
        cols = num_items if num_items * min(batch, 256) <= 1 << 24 else min(num_items, 1 << 16)
        steps = -(-batch // max(1, (1 << 24) // cols))
        memory = 4 * cols * -(-batch // steps) + (4 * tables if s < 4 else 0)
    else:
        groups = max(1, -(-batch // 4096), min(batch // 256, 4 * at.threads))
        segments = 1 if groups >= 2 * at.threads else -(-2 * at.threads // groups)
        memory = 8 * segments * batch * ((2 * kept if kept >= 8 else 16) + 64)
        memory += at.threads * (4 * -(-batch // groups) * dim + (512 << 10))
    results = batch * k * (12 + (s if s < 4 else 0))
    ours = at.kernel(2 * pairs * dim, tables, memory + results, written=results)
    # Of more scores than it takes at a time eager holds what it sorted last while it sorts the next.
    chunk = max(1, reference_topk.CHUNK // num_items) * num_items
    held = (2 * s + 8) * pairs if pairs <= chunk else (3 * s + 16) * chunk
    return ours, _cost(2 * pairs * dim, (3 * s + 1) * pairs + s * tables, (3 * s + 9) * pairs, held)


def similar_users(at: Call, *, num_users: int, dim: int, k: int = 10) -> Costs:
    """Profiles are looked at, measured and scaled, parts of them in float64; what topk ranks is float32 whatever they
    are. Eager writes all cosines out."""
    s, entries, pairs, alone = at.size, num_users * dim, num_users**2, 12 * num_users
    kernel, definition = topk(replace(at, dtype=torch.float32), batch=num_users, num_items=num_users, dim=dim, k=k)
    ranked = kernel if at.served else definition
    unit, part, best = 4 * entries, 16 * min(entries, 1 << 20), (s + 8) * num_users * k
    read, held = ranked.bytes_read + 3 * s * entries + alone, unit + max(part, alone + ranked.memory)
    return _cost(ranked.flops, read, ranked.bytes_written + unit, held), _cost(
        ranked.flops, s * (pairs + 3 * entries), s * (pairs + entries) + best, s * (pairs + entries) + best
    )


def ranking_metrics(at: Call, *, num_users: int, num_items: int, num_ranks: int, num_truth: int) -> Costs:
    """Every item of lists of `num_ranks` is looked up among its user's own; at two cut-offs."""
    places = num_users * num_ranks
    memory = 4 * num_items * (1 if at.cuda else at.threads) + (num_users // 256 + 1) * 104
    ours = at.kernel(0, 0, memory, read=8 * places + 4 * num_truth + 8 * num_users, written=2 * 7 * 8)
    return ours, _cost(0, 216 * places + 44 * num_truth, 116 * places + 32 * num_truth, 56 * places + 40 * num_truth)


def sample_negatives(at: Call, *, batch: int, num_users: int, num_edges: int, num: int = 1) -> Costs:
    """Every draw is a bisection of its user's row; eager's draws go through as many steps as all edges would take."""
    draws, steps, own_steps = batch * num, num_edges.bit_length(), math.ceil(math.log2(num_edges / num_users + 2))
    ours = at.kernel(0, 0, 8 * draws, read=24 * batch + 4 * draws * own_steps, written=8 * draws)
    eager = _cost(
        0,
        (124 * steps + 1184) * draws + 164 * num_edges,
        (60 * steps + 1064) * draws + 104 * num_edges,
        80 * draws + 40 * num_edges,
    )
    return ours, eager


def candidate_items(
    at: Call, *, num_users: int, num_items: int, num_edges: int, num_similar: int, num_candidates: int
) -> Costs:
    """The similar users' rows are read to count the candidates, and again to write them; eager sorts what it met."""
    similar, met = num_users * num_similar, num_similar * num_edges
    memory = 8 * num_candidates + 24 * num_users + (0 if at.cuda else 4.125 * num_items * at.threads)
    read, written = 8 * similar + 4 * met + 4 * num_edges + 8 * num_users, 16 * num_users + 8 * num_candidates
    eager = _cost(
        0,
        144 * (met + similar) + 48 * num_edges + 68 * num_candidates,
        92 * (met + similar) + 36 * num_edges + 56 * num_candidates,
        28 * met + 16 * similar + 40 * num_edges + 44 * num_candidates,
    )
    return at.kernel(0, 0, memory, read=2 * read, written=written), eager


def pair_scores(at: Call, *, num_pairs: int, num_users: int, dim: int) -> Costs:
    """A dot product a pair: a row of users once, of items for each of its pairs."""
    s, entries = at.size, num_pairs * dim
    made = num_pairs * (4 + (s if s < 4 else 0))
    ours = at.kernel(
        2 * entries, num_users * dim + entries, made, read=4 * num_pairs + 8 * num_users, written=made,
        whole=2 * num_users * dim,
    )  # fmt: skip
    held = min(reference_pair_scores.CHUNK, entries)
    return ours, _cost(
        2 * entries, 5 * s * entries + 44 * num_pairs, 3 * s * entries + 36 * num_pairs, 3 * s * held + 20 * num_pairs
    )


FORMULAS: dict[str, Callable[..., Costs]] = {
    formula.__name__: formula
    for formula in (
        bpr, candidate_items, cross_view_info_nce, distribution_kl, environment_bpr, gaussian_kl, info_nce,
        mix_environments, multinomial_nll, pair_scores, profile_contrast, propagate, ranking_metrics, sample_negatives,
        similar_users, teacher_distribution, topk,
    )
}  # fmt: skip


def _contrast(at: Call, rows: int, cols: int, dim: int, views: int = 1) -> tuple[float, float]:
    """Flops of scores of rows against columns, and memory; on a device that of so many views at a time. There a sweep
    owns the rows and another, which scores anew, the columns."""
    g = at.gradients
    if not at.cuda:
        return 2 * rows * cols * dim * (1 + 2 * g), 4 * _sweep(at, rows, cols, dim, tiles=1)
    width = _packed(dim)

    def parts(own: int) -> int:  # as many as keep the device busy
        return own * max(1, 4 * at.processors // (views * -(-own // 64) * -(-width // 64)))

    held = at.size * (rows + cols) + 4 * g * (parts(rows) + parts(cols))
    return 2 * rows * cols * dim * (1 + 3 * g), views * width * held


def _sweep(at: Call, rows: int, cols: int, dim: int, tiles: int) -> int:
    """Floats that csrc/cpu/softmax_sweep.h holds: both sides packed, a block's tiles and, with gradients, the columns
    once more, their gradient where the caller lends no memory for it, and the block's in up to 32 parts."""
    block, parts = min(192, max(16, dim, (8 << 20) * at.threads // (4 * cols * tiles))), min(32, -(-cols // 64))
    held = (rows + cols) * dim + tiles * cols * block
    return held + at.gradients * ((3 - tiles) * cols * dim + (parts + 1) * block * dim)


def _packed(dim: int) -> int:
    """Columns of a table that Triton's kernels pack."""
    return max(16, 1 << (dim - 1).bit_length())


def _parts(at: Call, rows: int, cols: int) -> int:
    """Rows of sums that a device's sweep over columns leaves: of so many parts as keep it busy."""
    return rows * min(-(-2 * 64 * at.processors // rows), -(-cols // 64), 64)
