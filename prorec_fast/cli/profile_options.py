"""The options of `prorec-fast profile`."""

from __future__ import annotations

import argparse

DOMAIN_HELP = (
    "whose words the prompts use: generic, books, places, games, films, or one of your own vocabulary.json "
    "(default: generic)"
)


def add_profile_options(parser: argparse.ArgumentParser, positive_int: type, count: type) -> None:
    """What is written, and of whom; the last arguments are the parser's own checks."""
    add = parser.add_argument
    add("--data", metavar="DIR", required=True, help="a data folder with texts, as `prorec-fast data import` makes it")
    add("--model", metavar="M", help="write profiles with this chat model of the service")
    add("--embed-model", metavar="M", help="embed the profiles with this model of the service, or local:NAME")
    add("--report", action="store_true", help="say how different the embedded profiles are from one another")
    writing = parser.add_argument_group("writing")
    add = writing.add_argument
    add("--num-profiles", type=positive_int, metavar="K", default=4, help="of every user and item (default: 4)")
    add("--sides", choices=("items", "users"), nargs="+", help="whose (default: items, then users)")
    add("--domain", metavar="NAME", default="generic", help=DOMAIN_HELP)
    add("--prompts", metavar="DIR", help="prompt files of your own, in place of those of the same name")
    add("--max-reviews", type=count, metavar="N", default=10, help="in an item's prompt (default: 10)")
    add("--max-items", type=positive_int, metavar="N", default=20, help="in a user's prompt (default: 20)")
    add("--retry-failed", action="store_true", help="ask again, and pay again, where no answer was valid")
    embedding = parser.add_argument_group("embedding")
    add = embedding.add_argument
    add("--vectors", metavar="NAME", default="llm", help="of profiles_NAME.safetensors (default: llm)")
    add("--dimensions", type=positive_int, metavar="N", help="of the vectors, where the model can shorten them")
    add("--max-chars", type=positive_int, metavar="N", default=16000, help="of a text, cut there (default: 16000)")
    add("--whiten", type=positive_int, metavar="N", help="whiten the vectors to this width (default: as they are)")
    add("--device", metavar="D", help="of a local model")
    reporting = parser.add_argument_group("reporting")
    add = reporting.add_argument
    add("--plot", metavar="FILE", help="draw the report, as PNG")
    add("--threshold", type=float, metavar="X", default=0.95, help="cosine of near-duplicates (default: 0.95)")
