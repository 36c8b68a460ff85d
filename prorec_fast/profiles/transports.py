"""The ways to ask: one request at a time each, or the Batch API."""

from __future__ import annotations

from collections.abc import Iterable

from .running import run_to_end
from .session import Node, Session, Start

TRANSPORTS = ("online", "batch")


def run_chains(chains: Iterable[tuple[Node, Start]], session: Session, *, poll: float) -> None:
    """Walk every chain to its end, by the Batch API where the session is for it.

    Args:
        poll: seconds between looks at a batch.

    Raises:
        ServiceRefused, BudgetReached: as described there.
        KeyboardInterrupt: interrupted; what was under way is kept.
    """
    if session.batch:
        from . import batch

        run_to_end(lambda: batch.run(chains, session, poll=poll), session)
    else:
        from . import online

        run_to_end(lambda: online.run(chains, session), session)
