"""Named sets of constants for a whole run: the authors' released code, and the paper."""

from __future__ import annotations

from dataclasses import dataclass

from .proex import ProEx
from .promax import ProMax


@dataclass(frozen=True)
class Preset:
    """Everything a run needs beside data and seed.

    Attributes:
        combine: how LightGCN's layers become one representation.
        batch_size, user_batch_size: of models that train on interactions, and of those that train on users.
        patience: evaluations without a better validation recall@20 before training stops.
        eval_every: epochs from one evaluation to the next.
    """

    name: str
    promax: ProMax
    proex: ProEx
    combine: str
    lr: float = 1e-3
    batch_size: int = 4096
    user_batch_size: int = 1024
    epochs: int = 1000
    eval_every: int = 3
    patience: int = 20

    def batch_size_for(self, trains_on: str) -> int:
        """Of a model that trains on "interactions" or on "users"."""
        return self.batch_size if trains_on == "interactions" else self.user_batch_size


RELEASED = Preset(name="released", promax=ProMax(), proex=ProEx(), combine="sum")
# The weights of ProEx's alignment and regularization are our choice: the paper searches them on every data set.
PAPER = Preset(
    name="paper",
    promax=ProMax(weight_range=(0.0, 1.0), sdr_eps=0.0, contrast_eps=0.0),
    proex=ProEx(
        variance_weight=1.0, align_weight=0.1, regularization_weight=0.1, regularization="contrast", contrast_eps=0.0
    ),
    combine="mean",
)
PRESETS = {preset.name: preset for preset in (RELEASED, PAPER)}

# what the authors tuned for single data sets; every other set has the defaults
PUBLISHED_SETTINGS = {
    "promax": {"amazon_book": {"sdr_weight": 1.5, "s2dr_weight": 0.05}},
    "proex": {"yelp": {"num_environments": 3}},
}


def get_preset(name: str) -> Preset:
    """The preset called `name`.

    Raises:
        ValueError: no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"preset: want one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]
