"""Texts to vectors with a sentence-transformers model on this machine, kept in the store like what is paid for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .digests import digest
from .embed import Embedded, EmbedSettings, distinct_texts
from .errors import ProfileError
from .store import Store

PREFIX = "local:"
_KEPT_AT_ONCE = 1024  # texts between two writes, which is what a kill may cost


class LocalModel:
    """A model of the extra `embed`.

    Args:
        name: of a model folder, or of a model that sentence-transformers knows or downloads; with or without "local:".
        device: where it runs; None leaves it to sentence-transformers.
        dimensions: the vectors' first so many entries, scaled to length 1; None: all of them, as the model gives them.

    Attributes:
        name: "local:", the name, and a hash of the weights and the modules' settings: what the model is, wherever it
            lies, and what its vectors are stored under.

    Raises:
        ProfileError: sentence-transformers is not installed, or has no such model.
    """

    def __init__(self, name: str, *, device: str | None = None, dimensions: int | None = None) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            what = "is not installed" if error.name == "sentence_transformers" else f"cannot be imported ({error})"
            raise ProfileError(f'sentence-transformers {what}; pip install "prorec-fast[embed]"') from error
        name = name.removeprefix(PREFIX)
        try:
            self._model = SentenceTransformer(name, device=device, truncate_dim=dimensions)
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ProfileError(f"{PREFIX}{name}: no model that can be loaded ({reason})") from error
        self.dimensions = dimensions
        self.name = f"{PREFIX}{Path(name).name}@{_fingerprint(self._model)[:12]}"

    def key(self, text: str) -> str:
        """See `EmbedSettings.key`."""
        return EmbedSettings(self.name, self.dimensions).key(text)

    def vectors(self, texts: Sequence[str], batch_size: int = 32) -> np.ndarray:
        """float32 [n, t]."""
        return self._model.encode(
            list(texts),
            batch_size=batch_size,
            show_progress_bar=False,
            convert_to_numpy=True,
            normalize_embeddings=self.dimensions is not None,
        ).astype(np.float32)

    def count_cut(self, texts: Sequence[str]) -> int:
        """How many texts have more tokens than the model reads; 0 where it does not say how many those are."""
        most, tokenizer = getattr(self._model, "max_seq_length", None), self._model.tokenizer
        if most is None or not callable(tokenizer):
            return 0
        tokens = tokenizer(list(texts), add_special_tokens=True, truncation=False, verbose=False)["input_ids"]
        return sum(len(one) > most for one in tokens)


def embed_locally(
    texts: Iterable[str],
    model: LocalModel,
    store: Store,
    *,
    batch_size: int = 32,
    progress: Callable[[Embedded], None] | None = None,
) -> Embedded:
    """What `embed` does, without a service and at no cost.

    Raises:
        ProfileError: see `distinct_texts`.
    """
    embedded, wanted = distinct_texts(texts, model.key)
    stored = store.with_vectors(list(wanted))
    embedded.reused = embedded.done = len(stored)
    missing = [key for key in wanted if key not in stored]
    everything = list(wanted.values())
    for start in range(0, len(everything), _KEPT_AT_ONCE):
        embedded.cut += model.count_cut(everything[start : start + _KEPT_AT_ONCE])
    for start in range(0, len(missing), _KEPT_AT_ONCE):
        if progress is not None:
            progress(embedded)
        keys = missing[start : start + _KEPT_AT_ONCE]
        rows = model.vectors([wanted[key] for key in keys], batch_size)
        good = np.isfinite(rows).all(1) & rows.any(1)
        vectors = [(key, row) for key, row, fine in zip(keys, rows, good, strict=True) if fine]
        store.save_vectors(vectors, model=model.name, cost=0.0)
        embedded.done += len(vectors)
        for key, fine in zip(keys, good, strict=True):
            if not fine:
                embedded.failures[key] = "a vector that is all zeros or not finite"
    if progress is not None:
        progress(embedded)
    return embedded


def _fingerprint(model: Any) -> str:
    """Of all that shapes a vector."""
    state = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        state.update(name.encode())
        state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    modules = [[type(module).__name__, repr(_config(module))] for module in model]
    others = [getattr(model, name, None) for name in ("max_seq_length", "prompts", "default_prompt_name")]
    return digest([state.hexdigest(), modules, repr(others)])


def _config(module: Any) -> Any:
    """A module's settings, pooling among them; not all modules have any."""
    return module.get_config_dict() if hasattr(module, "get_config_dict") else None
