"""The options of `prorec-fast retrieve`."""

from __future__ import annotations

import argparse

from .profile_options import DOMAIN_HELP


def add_retrieve_options(parser: argparse.ArgumentParser, positive_int: type) -> None:
    """What is searched, and by whom it is re-ranked; the last argument is the parser's own check."""
    add = parser.add_argument
    add("--data", metavar="DIR", required=True, help="a data folder with profile vectors")
    add("--num-similar", type=positive_int, metavar="N", default=10, help="users to take items from (default: 10)")
    add(
        "--whiten", type=positive_int, metavar="N", help="whiten the vectors to this width first (default: as they are)"
    )
    add("--out", metavar="FILE.npz", help="where to write (default: enriched.npz in the data folder)")
    reranking = parser.add_argument_group("re-ranking (without --rerank-model: the order of the profiles)")
    add = reranking.add_argument
    add("--rerank-model", metavar="M", help="have this chat model of the service choose among the candidates")
    add(
        "--num-candidates",
        type=positive_int,
        metavar="N",
        default=3,
        help="offered for each new interaction that a user may get (default: 3)",
    )
    add(
        "--max-items", type=positive_int, metavar="N", default=10, help="told of a user without a profile (default: 10)"
    )
    add("--domain", metavar="NAME", default="generic", help=DOMAIN_HELP)
    add("--prompts", metavar="DIR", help="a folder with a user_rerank.txt of your own")
    add("--retry-failed", action="store_true", help="ask again, and pay again, where no answer was valid")
