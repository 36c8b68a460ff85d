"""The built-in data set: made from a seed, so that training can be tried with no download.

Generative story: every user and item has a distribution over a few latent facets; a user's interactions are drawn
without replacement with weight popularity * exp(sharpness * affinity), their number is heavy-tailed, item popularity
follows a power law. Profiles are noisy linear images of the facets in one space, as text embeddings of described
tastes would be: informative, incomplete, and never derived from the held-out interactions.

The default sizes are those of a sparse set of many niches: most users have fewer than ten training interactions, there
are more facets than embedding dimensions, and ranking by the profiles alone does worse than a trained LightGCN.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["SyntheticConfig", "make_synthetic"]


@dataclass(frozen=True)
class SyntheticConfig:
    """Sizes and strengths of the built-in set; `seed` fixes every draw.

    Attributes:
        num_facets, facet_concentration: of the symmetric Dirichlet that tastes are drawn from.
        profile_width: below num_facets, so a profile cannot hold a taste exactly.
        profile_noise: length of a profile's noise, in units of its signal's.
    """

    num_users: int = 1600
    num_items: int = 1200
    num_facets: int = 200
    facet_concentration: float = 0.01
    profile_width: int = 96
    min_degree: int = 6
    max_degree: int = 160
    degree_exponent: float = 2.2
    popularity_exponent: float = 0.4
    sharpness: float = 10.0
    profile_noise: float = 1.3
    seed: int = 20260426


def _degrees(config: SyntheticConfig, rng: np.random.Generator) -> np.ndarray:
    """[num_users]: a truncated Pareto between the smallest and the largest degree."""
    power = 1.0 - config.degree_exponent
    low, high = config.min_degree**power, (config.max_degree + 1) ** power
    return (low + rng.random(config.num_users) * (high - low)) ** (1.0 / power)


def _facets(count: int, config: SyntheticConfig, rng: np.random.Generator) -> np.ndarray:
    """[count, num_facets], unit rows: a few facets dominate each row."""
    weights = rng.dirichlet(np.full(config.num_facets, config.facet_concentration), size=count)
    return weights / np.linalg.norm(weights, axis=1, keepdims=True)


def _profiles(facets: np.ndarray, projection: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    """float32 unit rows [n, t]: the facets' image plus noise of `noise` times its length."""
    image = facets @ projection
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    image += rng.standard_normal(image.shape) * (noise / np.sqrt(image.shape[1]))
    return (image / np.linalg.norm(image, axis=1, keepdims=True)).astype(np.float32)


def _rows(lists: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    indptr = np.zeros(len(lists) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in lists], out=indptr[1:])
    return indptr, np.concatenate([np.sort(row) for row in lists]).astype(np.int32)


def make_synthetic(config: SyntheticConfig | None = None) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The two archives of the npz layout, as dictionaries: (interactions, profiles).

    Each user's interactions are split 3:1:1 at random into train, valid and test.
    """
    config = config or SyntheticConfig()
    rng = np.random.default_rng(config.seed)
    users = _facets(config.num_users, config, rng)
    items = _facets(config.num_items, config, rng)
    popularity = np.arange(1, config.num_items + 1, dtype=np.float64) ** -config.popularity_exponent
    log_popularity = rng.permutation(np.log(popularity))
    degrees = np.minimum(_degrees(config, rng).astype(np.int64), config.num_items // 2)

    splits: dict[str, list[np.ndarray]] = {"train": [], "valid": [], "test": []}
    for user, degree in zip(users, degrees, strict=True):
        # the largest perturbed log weights are a weighted sample without replacement (Gumbel top-k)
        keys = config.sharpness * (items @ user) + log_popularity + rng.gumbel(size=config.num_items)
        chosen = rng.permutation(np.argpartition(keys, -degree)[-degree:])
        held_out = max(1, degree // 5)
        splits["test"].append(chosen[:held_out])
        splits["valid"].append(chosen[held_out : 2 * held_out])
        splits["train"].append(chosen[2 * held_out :])

    interactions = {"shape": np.array([config.num_users, config.num_items], dtype=np.int64)}
    for split, lists in splits.items():
        interactions[f"{split}_indptr"], interactions[f"{split}_indices"] = _rows(lists)
    projection = rng.standard_normal((config.num_facets, config.profile_width))
    profiles = {
        "users": _profiles(users, projection, config.profile_noise, rng),
        "items": _profiles(items, projection, config.profile_noise, rng),
    }
    return interactions, profiles
