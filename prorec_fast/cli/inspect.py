"""`prorec-fast data` and `prorec-fast info`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prorec_fast.data import Dataset


def run_data(arguments: argparse.Namespace) -> int:
    """Load a data set and its texts, which checks them, and describe them."""
    from prorec_fast.data import load

    data = load(*([] if arguments.data is None else [arguments.data]))
    facts = data.describe() | _texts(data)
    if arguments.json:
        print(json.dumps(facts, indent=1))
        return 0
    width = max(map(len, facts))
    for name, value in facts.items():
        shown = "-" if value is None else f"{value:.5f}" if isinstance(value, float) else value
        print(f"{name.replace('_', ' '):{width}}  {shown}")
    return 0


def _texts(data: Dataset) -> dict[str, object]:
    """How much is written in the data folder; nothing where there are no texts."""
    from prorec_fast.data import load_texts

    if not Path(data.source).is_dir():
        return {}
    texts = load_texts(data.source, data.num_users, data.num_items)
    facts = {
        "users_with_text": sum(bool(node.title or node.text or node.attributes) for node in texts.users.values()),
        "items_with_text": sum(bool(node.title or node.text or node.attributes) for node in texts.items.values()),
        "reviews": len(texts.reviews),
    }
    return facts if any(facts.values()) else {}


def run_info(arguments: argparse.Namespace) -> int:
    """Show what `prorec_fast.show_backends` knows."""
    import prorec_fast

    prorec_fast.show_backends()
    return 0
