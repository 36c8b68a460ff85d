"""`prorec-fast data import`."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from prorec_fast.data import ImportSettings, import_interactions

if TYPE_CHECKING:
    from prorec_fast.data.importing.tabular import Table

Line = tuple[str, int, str]
_EVERY = 1_000_000


def run_data_import(arguments: argparse.Namespace) -> int:
    """Import, and print what became of every row."""
    given = {option.name: getattr(arguments, option.name) for option in fields(ImportSettings)}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    settings = ImportSettings(**{name: value for name, value in given.items() if value is not None})
    progress = _RowProgress()
    try:
        report = import_interactions(
            arguments.interactions,
            arguments.out,
            items=arguments.items,
            users=arguments.users,
            reviews=arguments.reviews,
            settings=settings,
            force=arguments.force,
            on_rows=progress,
        )
    finally:
        progress.close()
    if arguments.json:
        print(json.dumps({**report, "out": arguments.out}, indent=1))
    else:
        print(format_report(report))
        print(f"written to {arguments.out}")
    return 0


class _RowProgress:
    """Rows read of each table: a bar on a terminal, a line every million elsewhere."""

    def __init__(self) -> None:
        self.table: Table | None = None
        self.rows = 0
        self.bar: Any = None

    def __call__(self, table: Table, count: int) -> None:
        if table is not self.table:
            self.close()
            self.table, self.rows = table, 0
            if sys.stderr.isatty():
                from tqdm import tqdm

                self.bar = tqdm(desc=str(table.path), unit=" rows", unit_scale=True, file=sys.stderr)
        before, self.rows = self.rows, self.rows + count
        if self.bar is not None:
            self.bar.update(count)
        elif self.rows // _EVERY > before // _EVERY:
            print(f"{table.path}: {self.rows:,} rows read", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def format_report(report: dict[str, Any]) -> str:
    """What `import_interactions` reports, a line for each count."""
    lines = [*_of_interactions(report), *_of_texts(report, "user"), *_of_texts(report, "item"), *_of_reviews(report)]
    labels = max(len(label) for label, _, _ in lines)
    numbers = max(len(f"{number:,}") for _, number, _ in lines)
    return "\n".join(f"{label:{labels}}  {number:>{numbers},}  {note}".rstrip() for label, number, note in lines)


def _read(facts: dict[str, Any], what: str) -> list[Line]:
    columns = ", ".join(
        f"{role}={name if isinstance(name, str) else '+'.join(name)}" for role, name in facts["columns"].items()
    )
    more = facts["malformed"] - len(facts["first_malformed"])
    malformed = "; ".join([*facts["first_malformed"], *([f"and {more:,} more"] if more > 0 else [])])
    lines = [(what, facts["rows"], f"rows of {facts['file']} ({columns})")]
    if facts["over_several_lines"]:
        lines.append(("  over several lines", facts["over_several_lines"], f"the longest at {facts['longest']}"))
    return [*lines, ("- malformed", facts["malformed"], malformed)]


def _of_interactions(report: dict[str, Any]) -> list[Line]:
    settings, facts, kept, splits = (report[name] for name in ("settings", "interactions", "kept", "splits"))
    lines = _read(facts, "interactions")
    if settings["min_rating"] is not None:
        lines.append((f"- rated below {settings['min_rating']:g}", facts["below_rating"], ""))
    lines.append(("- repeated", facts["duplicates"], "of one user and item one row stays"))
    if settings["k_core"] > 1:
        outside = facts["outside_core"]
        note = f"among them all of {outside['users']:,} users and {outside['items']:,} items"
        lines.append((f"- outside the {settings['k_core']}-core", outside["interactions"], note))
    lines.append(("= kept", kept["interactions"], f"of {kept['users']:,} users and {kept['items']:,} items"))
    lines.append(("  train", splits["train"], f"{splits['items_without_train']:,} items have none"))
    for name in ("valid", "test"):
        lines.append((f"  {name}", splits[name], f"{splits[f'users_without_{name}']:,} users have none"))
    return lines


def _of_texts(report: dict[str, Any], role: str) -> list[Line]:
    facts = report[f"{role}s"]
    if facts is None:
        return []
    return [
        *_read(facts, f"{role} texts"),
        ("- without interactions", facts["without_interactions"], ""),
        ("- repeated", facts["repeated"], "of one id the first row stays"),
        ("= with text", facts["with_text"], f"{facts['without_text']:,} {role}s have none"),
    ]


def _of_reviews(report: dict[str, Any]) -> list[Line]:
    facts = report["reviews"]
    if facts is None:
        return []
    if "file" in facts:
        lines = [*_read(facts, "reviews"), ("- without text", facts["empty"], "")]
    else:
        found = facts["without_interaction"] + facts["duplicates"] + facts["kept"]
        lines = [("reviews", found, "in the rows that are well formed and rated well enough")]
    return [
        *lines,
        ("- without interaction", facts["without_interaction"], "of pairs of user and item that are not kept"),
        ("- repeated", facts["duplicates"], "of one user and item the latest stays"),
        ("= reviews kept", facts["kept"], ""),
    ]
