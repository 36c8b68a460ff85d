"""`prorec-fast`: exit code 0 done, 1 a check failed, 2 bad use or input, 130 interrupted.

Nothing heavy is imported before the command is known, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from .parser import make_parser

__all__ = ["main"]

_COMMANDS = {
    "train": "train",
    "evaluate": "evaluate",
    "recommend": "recommend",
    "profile": "profile",
    "retrieve": "retrieve",
    "data": "inspect",
    "data import": "import_data",
    "info": "inspect",
    "doctor": "doctor",
    "bench": "bench",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; `argv` without the program's name, from the command line when None. Returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:2] == ["data", "import"]:  # a command of two words, since `data` takes a folder
        words[:2] = ["data import"]
    arguments = make_parser().parse_args(words, argparse.Namespace(words=words[1:]))
    try:
        module = importlib.import_module(f"prorec_fast.cli.{_COMMANDS[arguments.command]}")
        code = getattr(module, f"run_{arguments.command.replace(' ', '_')}")(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as interrupt:
        hint = f"; {interrupt.args[0]}" if interrupt.args else ""
        print(f"prorec-fast: interrupted{hint}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader of our output went away; what is still buffered must not raise again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except Exception as error:
        if arguments.debug:
            traceback.print_exc()
        print(f"prorec-fast: error: {_one_line(error)}", file=sys.stderr)
        return 2


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    if isinstance(error, ImportError):
        from prorec_fast.backends import missing_extra

        if (hint := missing_extra(error)) is not None:
            return hint
    # errors of these kinds are written for the user; others are surprises, for which the kind and the place matter
    if isinstance(error, (ValueError, OSError)) or type(error).__name__ == "TrainingError":
        return text
    return f"{type(error).__name__}: {text or 'no message'} (--debug shows where)"
