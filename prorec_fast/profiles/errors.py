"""What can go wrong while profiles are written. Every message is one line that says what to do."""

from __future__ import annotations

from collections.abc import Sequence


class ProfileError(ValueError):
    """Something that the user can mend."""


class Malformed(ProfileError):
    """A chain's answers were never what was asked for.

    Attributes:
        reasons: what was wrong with each of them, in order.
    """

    def __init__(self, reasons: Sequence[str]) -> None:
        self.reasons = list(reasons)
        super().__init__(f"no valid answer in {len(self.reasons)} attempts; the last one: {self.reasons[-1]}")


class NothingToSay(ProfileError):
    """A user or item of which the data say nothing that a profile could be written from."""


class Rejected(ProfileError):
    """The service will never answer this request (its length, its content), though it may answer others."""


class Unanswered(ProfileError):
    """A request got no answer after all retries; another run may get one."""


class ServiceRefused(ProfileError):
    """The service answers nobody: no such key or model, no quota, not reachable. The run stops."""


class BudgetReached(ProfileError):
    """The next request might cost more than is left. The run stops."""

    def __init__(self, cost: float, budget: float) -> None:
        super().__init__(f"the next request may cost ${cost:.4f}, more than is left of ${budget:g}")


class InOpenBatch(ProfileError):
    """A batch at the service is going to bring the answer, so it is not to be paid for again. The run stops."""
