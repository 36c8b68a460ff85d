"""`prorec-fast data` and `prorec-fast info`."""

from __future__ import annotations

import argparse
import json


def run_data(arguments: argparse.Namespace) -> int:
    """Load a data set, which checks it, and describe it."""
    from prorec_fast.data import load

    facts = load(*([] if arguments.data is None else [arguments.data])).describe()
    if arguments.json:
        print(json.dumps(facts, indent=1))
        return 0
    width = max(map(len, facts))
    for name, value in facts.items():
        shown = "-" if value is None else f"{value:.5f}" if isinstance(value, float) else value
        print(f"{name.replace('_', ' '):{width}}  {shown}")
    return 0


def run_info(arguments: argparse.Namespace) -> int:
    """Show what `prorec_fast.show_backends` knows."""
    import prorec_fast

    prorec_fast.show_backends()
    return 0
