"""The options of `prorec-fast data import`; each one's name is that of a field of `ImportSettings`, where it is one."""

from __future__ import annotations

import argparse


def add_import_options(parser: argparse.ArgumentParser, positive_int: type, count: type) -> None:
    """The last arguments are the parser's own checks."""
    add = parser.add_argument
    add("--interactions", metavar="FILE", required=True, help="a row for each time that a user met an item")
    add("--items", metavar="FILE", help="titles, descriptions and attributes of items, by id")
    add("--users", metavar="FILE", help="descriptions and attributes of users, by id")
    add("--reviews", metavar="FILE", help="user, item and text (default: the review column of the interactions)")
    add("--out", metavar="DIR", required=True, help="the data folder to make; it appears whole or not at all")
    add("--force", action="store_true", help="replace what an earlier import wrote to --out")

    columns = parser.add_argument_group(
        "columns",
        "By name; by number, counted from 1, where the file has no header. Those not named are found by their usual "
        "names; '-' leaves one out. Reviews may have the names of the interactions.",
    )
    add = columns.add_argument
    for role in ("user", "item"):
        add(f"--{role}-column", metavar="C", help=f"the {role}s' ids, kept exactly as they are")
    add("--rating-column", metavar="C", help="a number")
    add("--time-column", metavar="C", help="a number, or an ISO 8601 date or time")
    add("--review-column", metavar="C", help="a text")
    for role in ("user", "item"):
        add(
            f"--{role}-id-column", metavar="C", help=f"the ids in --{role}s (default: as in the interactions, or usual)"
        )
    add("--title-column", metavar="C", help="in --items")
    add("--text-column", metavar="C", help="the descriptions in --items and --users")
    add("--attributes", metavar="C", nargs="+", help="further columns of --items and --users to keep (default: none)")

    reading = parser.add_argument_group("reading")
    add = reading.add_argument
    add("--format", choices=("csv", "tsv", "jsonl", "parquet"), help="of the interactions (default: by their name)")
    add(
        "--delimiter",
        metavar="S",
        type=lambda text: text.replace("\\t", "\t"),  # as most shells leave it
        help="between the fields of the interactions (default: a comma, or a tab in TSV)",
    )
    add("--no-header", dest="header", action="store_false", default=None, help="the interactions start at once")
    add(
        "--no-quotes",
        dest="quotes",
        action="store_false",
        default=None,
        help='in CSV and TSV " is a character as any other, and a line is a row',
    )
    add(
        "--skip-malformed",
        action="store_true",
        default=None,
        help="leave out and count rows that cannot be read (default: refuse the file, naming the first)",
    )

    keeping = parser.add_argument_group("what is kept")
    add = keeping.add_argument
    add("--min-rating", type=float, metavar="X", help="leave out what is rated lower (default: keep all)")
    add(
        "--k-core",
        type=positive_int,
        metavar="K",
        help="keep users and items that have K interactions among those kept (default: 1)",
    )
    add(
        "--split",
        choices=("random", "time"),
        help="each user's interactions at random, or by time with the latest in test (default: random). A user's one "
        "interaction is for training; of 2, one is held out, in validation or test by chance (by time: in test); 3 are "
        "2 and 1; 4 are 2, 1 and 1",
    )
    add("--ratios", type=float, nargs=3, metavar="X", help="of training, validation and test (default: 3 1 1)")
    add("--seed", type=count, metavar="N", help="of the random split (default: 0)")
