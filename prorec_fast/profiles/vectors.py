"""From profile texts to K vectors of every user and item, in a file that training reads."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from prorec_fast.data import DataError, Dataset
from prorec_fast.data.profile_tensors import LINEAGE, ProfileVectors, key_bytes, read_profile_tensors, text_digests
from prorec_fast.data.texts import NodeText, load_nodes
from prorec_fast.retrieval import Whitening

from .errors import ProfileError
from .texts import ProfileTexts, read_profile_texts

_ROWS = 1 << 14  # rows whose vectors, or whose neighbours, are held at a time

VectorsOf = Callable[[Sequence[str]], np.ndarray]  # keys of texts -> float32 [n, t]


@dataclass(frozen=True)
class FolderTexts:
    """All that is to be embedded of a data folder.

    Attributes:
        digests: of the files of profiles, by side, by which it is known that others were written since.
        descriptions: row -> title and description of the items without profiles, as far as they have any.
        user_keys, item_keys: own ids by row; None where they are the row numbers.
    """

    num_profiles: int
    users: ProfileTexts
    items: ProfileTexts
    descriptions: dict[int, str]
    user_keys: list[str] | None
    item_keys: list[str] | None
    digests: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, data: Dataset) -> FolderTexts:
        """
        Raises:
            ProfileError: there are no profiles.
            DataError: a malformed line, another split than the data's, or users and items with different K.
        """
        users = read_profile_texts(folder, "users", data.num_users, data.split_hash)
        items = read_profile_texts(folder, "items", data.num_items, data.split_hash)
        counts = [side.num_profiles for side in (users, items) if side.num_profiles is not None]
        if not counts:
            raise ProfileError(f"{folder}: holds no written profiles; `prorec-fast profile` writes them")
        if len(set(counts)) > 1:
            raise DataError(f"{folder}: users have {counts[0]} profiles each and items {counts[1]}; want as many")
        user_nodes, item_nodes = load_nodes(folder, data.num_users, data.num_items)
        described = {row: _description(node) for row, node in sorted(item_nodes.items()) if row not in items.texts}
        return cls(
            counts[0],
            users,
            items,
            {row: text for row, text in described.items() if text},
            _own_keys(user_nodes, data.num_users),
            _own_keys(item_nodes, data.num_items),
            text_digests(folder),
        )

    def __iter__(self) -> Iterator[str]:
        """Every text, in the order in which `make_vectors` wants their keys."""
        for side in (self.users, self.items):
            for texts in side.texts.values():
                yield from texts
        yield from self.descriptions.values()

    def nodes(self) -> Iterator[tuple[str, int]]:
        """Whose each of the texts is, in their order."""
        for name, side in (("user", self.users), ("item", self.items)):
            for row, texts in side.texts.items():
                yield from [(name, row)] * len(texts)
        yield from (("item", row) for row in self.descriptions)

    @property
    def lineage(self) -> dict[str, Any]:
        """What the texts' own lineages say; `split` only where every text names it."""
        found: dict[str, set[str | None]] = {"split": set(), "model": set(), "settings": set(), "prompt": set()}
        for side in (self.users, self.items):
            for name, values in side.lineage.items():
                found[name].update(values)
        splits = found.pop("split")
        named = {name: sorted(value for value in values if value is not None) for name, values in found.items()}
        return {
            **({} if None in splits else {"split": splits.pop()}),
            "chat_models": named["model"],
            "chat_settings": named["settings"],
            "prompts": named["prompt"],
            "texts": self.digests,
        }


def _description(node: NodeText) -> str:
    return "\n".join(part.strip() for part in (node.title, node.text) if part.strip())


def _own_keys(nodes: dict[int, NodeText], count: int) -> list[str] | None:
    keys = [nodes[row].key if row in nodes else str(row) for row in range(count)]
    return None if all(key == str(row) for row, key in enumerate(keys)) else keys


def make_vectors(
    data: Dataset,
    texts: FolderTexts,
    keys: Sequence[str],
    vectors_of: VectorsOf,
    *,
    whiten: int | None = None,
    lineage: dict[str, Any] | None = None,
) -> ProfileVectors:
    """K vectors of every user and item.

    A node with profiles has their vectors. An item without has in all K tables the vector of its title and description,
    else the mean of its training users' vectors; then a user without has the mean of their training items' vectors,
    table by table. Means are scaled to the mean length of the vectors they are taken of (1, with most models). What is
    left has zeros: no direction, so that it is similar to nothing. The mean of all, which is near to everybody, would
    make it similar to everything.

    Args:
        keys: of the texts, in the order of `iter(texts)`.
        whiten: the width to whiten to (ProMax Eq. 2-4), with mean and covariance of the vectors of texts on both sides;
            what stands in for a text is made of whitened vectors.
        lineage: what to add to it.

    Raises:
        ProfileError: there are too few texts to whiten so wide.
    """
    users, items = _tables(data, texts, keys, vectors_of)
    own_users, own_items = _mask(texts.users.texts, data.num_users), _mask(texts.items.texts, data.num_items)
    described = _mask(texts.descriptions, data.num_items)
    whitening: dict[str, Tensor] = {}
    if whiten is not None:
        users, items, whitening = _whitened(users, items, own_users, own_items | described, whiten)
    graph = data.train_graph
    rest = ~(own_items | described)
    _stand_in(items, rest, graph.item_indptr, graph.item_indices, users)
    _stand_in(users, ~own_users, graph.user_indptr, graph.user_indices, items)
    user_zeros, item_zeros = _zeros(users), _zeros(items)
    found = {
        "num_profiles": texts.num_profiles,
        "whiten": whiten,
        "users": {
            "profiles": int(own_users.sum()),
            "items_mean": int((~own_users & ~user_zeros).sum()),
            "none": int(user_zeros.sum()),
        },
        "items": {
            "profiles": int(own_items.sum()),
            "description": int(described.sum()),
            "readers_mean": int((rest & ~item_zeros).sum()),
            "none": int(item_zeros.sum()),
        },
    }
    return ProfileVectors(
        users,
        items,
        own_users,
        own_items,
        {**texts.lineage, **found, **(lineage or {})},
        texts.user_keys,
        texts.item_keys,
        whitening,
    )


def _mask(rows: Any, count: int) -> Tensor:
    mask = torch.zeros(count, dtype=torch.bool)
    mask[torch.tensor(list(rows), dtype=torch.int64)] = True
    return mask


def _zeros(tables: Tensor) -> Tensor:
    """bool [n]: rows of [K, n, t] that are zeros in every table."""
    zeros = torch.ones(tables.shape[1], dtype=torch.bool)
    for table in tables:
        zeros &= torch.linalg.vector_norm(table, dim=1) == 0
    return zeros


def _tables(data: Dataset, texts: FolderTexts, keys: Sequence[str], vectors_of: VectorsOf) -> tuple[Tensor, Tensor]:
    """[K, M, t] and [K, N, t] with the vectors of texts, zeros elsewhere."""
    count, width = texts.num_profiles, vectors_of(keys[:1]).shape[1]
    users, items = torch.zeros(count, data.num_users, width), torch.zeros(count, data.num_items, width)
    at = 0
    for table, rows, each in (
        (users, texts.users.texts, count),
        (items, texts.items.texts, count),
        (items, texts.descriptions, 1),
    ):
        for part in torch.tensor(list(rows), dtype=torch.int64).split(_ROWS):
            size = len(part) * each
            if size:
                found = torch.from_numpy(vectors_of(keys[at : at + size])).view(len(part), each, width)
                table[:, part] = found.transpose(0, 1).expand(count, -1, -1)
            at += size
    return users, items


def _whitened(
    users: Tensor, items: Tensor, own_users: Tensor, own_items: Tensor, dim: int
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The tables whitened where they have texts, zeros elsewhere."""
    whitening = Whitening(dim)
    try:
        whitening.fit(torch.cat([users[:, own_users].flatten(0, 1), items[:, own_items].flatten(0, 1)]))
    except ValueError as error:
        raise ProfileError(f"whiten: {error}") from error
    narrow = []
    for tables, own in ((users, own_users), (items, own_items)):
        out = torch.zeros(*tables.shape[:2], dim)
        for table, to in zip(tables, out, strict=True):
            to[own] = whitening.transform(table[own])
        narrow.append(out)
    return narrow[0], narrow[1], whitening.state_dict()


def _stand_in(tables: Tensor, wanting: Tensor, indptr: Tensor, indices: Tensor, others: Tensor) -> None:
    """Give the rows that are wanting the mean direction of their neighbours in each table.

    Args:
        tables: [K, n, t], changed in place.
        wanting: bool [n].
        indptr, indices: CSR rows of the n nodes' neighbours.
        others: [K, m, t], the neighbours' vectors; zeros where they have none.
    """
    rows = wanting.nonzero().flatten()
    for table, other in zip(tables, others, strict=True):
        lengths = torch.linalg.vector_norm(other, dim=1)
        length = lengths.sum() / (lengths > 0).sum().clamp(min=1)
        for part in rows.split(_ROWS):
            sizes = indptr[part + 1] - indptr[part]
            ends = sizes.cumsum(0)
            at = torch.arange(int(sizes.sum())) + (indptr[part] - ends + sizes).repeat_interleave(sizes)
            bags = torch.cat([ends.new_zeros(1), ends])
            sums = F.embedding_bag(indices[at].long(), other, bags, mode="sum", include_last_offset=True)
            table[part] = length * F.normalize(sums)


def save_vectors(path: str | os.PathLike[str], vectors: ProfileVectors) -> None:
    """Replace `path` by a file that `load_vectors` and, as `profiles_<name>.safetensors` in a data folder, training
    read; in one step."""
    path = Path(path)
    tensors = {
        "users": vectors.users,
        "items": vectors.items,
        "user_has_text": vectors.user_has_text,
        "item_has_text": vectors.item_has_text,
        **{f"whitening.{name}": tensor for name, tensor in vectors.whitening.items()},
    }
    for name, keys in (("user_keys", vectors.user_keys), ("item_keys", vectors.item_keys)):
        if keys is not None:
            tensors[name] = key_bytes(keys)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, scratch, {LINEAGE: json.dumps(vectors.lineage, sort_keys=True)})
        with open(scratch, "rb") as file:
            os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def load_vectors(
    path: str | os.PathLike[str], *, num_users: int | None = None, num_items: int | None = None
) -> ProfileVectors:
    """What `save_vectors` wrote; see `read_profile_tensors`, which also reads what others wrote in that form.

    Args:
        num_users, num_items: what the file must have rows for; None: whatever it has.

    Raises:
        DataError: naming the file and what is missing, damaged, of another shape or not finite.
    """
    return read_profile_tensors(path, num_users=num_users, num_items=num_items)
