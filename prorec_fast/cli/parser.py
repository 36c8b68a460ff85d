"""The command line's grammar; imports nothing of the package, so that --help is fast."""

from __future__ import annotations

import argparse
import math
import sys
from typing import NoReturn

from .bench_options import add_bench_options
from .import_options import add_import_options
from .profile_options import add_profile_options
from .retrieve_options import add_retrieve_options
from .service_options import add_chat_options, add_service_options

MODELS = ("cvga", "gccf", "l_diffrec", "lightgcn", "mf", "mult_vae", "simgcl")
FRAMEWORKS = ("none", "promax", "proex", "both")
PRESETS = ("released", "paper")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _positive_int(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"want a positive integer, got {text!r}")
    return value


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"want an integer of at least 0, got {text!r}")
    return value


def _number(text: str, *, above_zero: bool) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 < value < math.inf or (value == 0 and not above_zero)):
        bound = "above 0" if above_zero else "of at least 0"
        raise argparse.ArgumentTypeError(f"want a finite number {bound}, got {text!r}")
    return value


def _positive(text: str) -> float:
    return _number(text, above_zero=True)


def _weight(text: str) -> float:
    return _number(text, above_zero=False)


def make_parser() -> argparse.ArgumentParser:
    """The parser of `prorec-fast` and its commands. Options that a preset fills in default to None."""
    parser = _Parser(
        prog="prorec-fast", description="Train and check recommenders that learn from LLM-written profiles."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command", parser_class=_Parser)
    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    as_json = _Parser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print JSON on standard output, and nothing else there")

    train = commands.add_parser(
        "train",
        parents=[common, as_json],
        help="train a model, with ProMax or ProEx and without, and compare",
        description="Train a base model, the same under ProMax or ProEx, or several of these, and print test metrics.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, width=min(120, _columns())),
    )
    _add_train(train)

    evaluate = commands.add_parser(
        "evaluate",
        parents=[common, as_json],
        help="test the weights in a run folder again",
        description="Recompute a run's test metrics and compare them with the stored ones (exit code 1: they differ).",
    )
    evaluate.add_argument("run", metavar="RUN", help="a run folder, or a folder of run folders")
    evaluate.add_argument("--data", metavar="DIR", help="where the data is now, if it has moved")
    evaluate.add_argument("--device", metavar="D", help="cpu, cuda, ...; default: cuda where there is one")

    recommend = commands.add_parser(
        "recommend",
        parents=[common],
        help="the best new items of each user, from a run folder",
        description="Rank the items that a user does not have yet, in any split, with a run's best weights.",
    )
    recommend.add_argument("run", metavar="RUN", help="a run folder")
    recommend.add_argument("--users", nargs="+", metavar="ID", help="own ids of users (default: all)")
    recommend.add_argument("--count", "-k", type=_positive_int, metavar="N", default=10, help="items (default: 10)")
    recommend.add_argument("--out", metavar="FILE", help="where to write (default: standard output)")
    recommend.add_argument("--json", action="store_true", help="one JSON object a user and line, not tab-separated")
    recommend.add_argument("--data", metavar="DIR", help="where the data is now, if it has moved")
    recommend.add_argument("--device", metavar="D", help="cpu, cuda, ...; default: cuda where there is one")

    data = commands.add_parser(
        "data",
        parents=[common, as_json],
        help="describe a data set",
        description="Check and describe a data set; `prorec-fast data import` makes one from files of your own.",
    )
    data.add_argument("data", nargs="?", metavar="DIR", help="a folder, or a built-in name (default: the built-in set)")

    importing = commands.add_parser(
        "data import",
        parents=[common, as_json],
        help="make a data set from files of your own",
        description="Make a data folder from interactions, and texts where there are some, in CSV, TSV, JSON lines "
        "(each plain or .gz) or Parquet, and report what became of every row.",
    )
    add_import_options(importing, _positive_int, _count)

    profile = commands.add_parser(
        "profile",
        parents=[common, as_json],
        help="have a language model write profiles",
        description="Have a language model write profiles of items and users from training interactions and reviews.",
    )
    add_profile_options(profile, _positive_int, _count)
    add_chat_options(profile, _weight, _positive_int, _count)
    add_service_options(profile, _positive, _positive_int, _count)

    retrieve = commands.add_parser(
        "retrieve",
        parents=[common, as_json],
        help="add items of similar users to the training interactions",
        description="Add to the training interactions of users with few the best items of users with similar profiles, "
        "re-ranked by a language model or not (ProMax).",
    )
    add_retrieve_options(retrieve, _positive_int)
    add_chat_options(retrieve, _weight, _positive_int, _count)
    add_service_options(retrieve, _positive, _positive_int, _count)

    commands.add_parser(
        "info",
        parents=[common],
        help="what is installed, and what each operation runs on",
        description="Show devices, built kernels and versions.",
    )

    doctor = commands.add_parser(
        "doctor",
        parents=[common, as_json],
        help="check that every kernel computes on this machine what it should",
        description="Show what `info` shows, and check every kernel's values and gradients against float64 (exit code "
        "1: one is off).",
    )
    doctor.add_argument("--device", metavar="D", help="cpu, cuda, ...; default: the CPU and every CUDA device")

    bench = commands.add_parser(
        "bench",
        parents=[common, as_json],
        help="time operations against PyTorch and other libraries",
        description="Time operations, ours against eager PyTorch, torch.compile and other libraries, after each has "
        "been compared with the definition in float64.",
    )
    add_bench_options(bench, _positive_int, _positive)
    return parser


def _columns() -> int:
    import shutil

    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 120


def _add_train(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", metavar="DIR", help="a folder, or a built-in name (default: the built-in synthetic set)")
    add("--model", choices=MODELS, help="the base model (default: lightgcn)")
    add(
        "--framework",
        choices=FRAMEWORKS,
        nargs="+",
        metavar="F",
        help="what to train and compare: none (the base alone), promax, proex, both (none and promax), or several of "
        "these (default: both; none and proex for models that generate)",
    )
    add("--preset", choices=PRESETS, help="constants of the authors' code or of the paper (default: released)")
    add("--epochs", type=_positive_int, metavar="N", help="train at most so many epochs (default: 1000)")
    add(
        "--patience",
        type=_positive_int,
        metavar="N",
        help="stop after so many evaluations without a better validation recall@20 (default: 20)",
    )
    add("--eval-every", type=_positive_int, metavar="N", help="epochs from one evaluation to the next (default: 3)")
    add(
        "--batch-size",
        type=_positive_int,
        metavar="N",
        help="interactions a step (default: 4096; 512 for the built-in set), or users (1024; 128)",
    )
    add(
        "--dim",
        type=_positive_int,
        metavar="N",
        help="width of the embeddings or the latent vectors (default: the model's)",
    )
    add(
        "--layers",
        type=_positive_int,
        metavar="N",
        help="rounds of graph convolution, for lightgcn, simgcl and gccf (default: 3)",
    )
    add("--lr", type=_positive, metavar="X", help="Adam's learning rate (default: 0.001)")
    add("--init-scale", type=_positive, metavar="X", help="factor on the initial embeddings (default: 1)")
    add("--contrast-weight", type=_weight, metavar="X", help="of simgcl's noisy views (default: 0.2)")
    add("--seed", "--seeds", dest="seeds", type=_count, nargs="+", metavar="N", help="one seed or several (default: 0)")
    add("--device", metavar="D", help="cpu, cuda, ...; default: cuda where there is one")
    add(
        "--cuda-graph",
        action=argparse.BooleanOptionalAction,
        help="replay training steps as CUDA graphs, on a CUDA device (default: yes)",
    )
    promax = parser.add_argument_group("ProMax")
    promax.add_argument(
        "--sdr-weight",
        type=_weight,
        metavar="X",
        help="weight of the supervised reshaping (default: 0.5; 1.5 for amazon_book)",
    )
    promax.add_argument(
        "--s2dr-weight",
        type=_weight,
        metavar="X",
        help="weight of the self-supervised reshaping (default: 0.1; 0.05 for amazon_book)",
    )
    promax.add_argument(
        "--temperature",
        type=_positive,
        metavar="X",
        help="of the student and the contrast, in ProEx too (default: 0.2)",
    )
    promax.add_argument(
        "--teacher-temperature", type=_positive, metavar="X", help="of the profiles' distribution (default: 0.2)"
    )
    promax.add_argument(
        "--whitening", choices=("separate", "joint"), help="one PCA per side, or one for both (default: separate)"
    )
    promax.add_argument(
        "--warmup-epochs", type=_count, metavar="N", help="epochs without s2dr, while the norms grow (default: 0)"
    )
    proex = parser.add_argument_group("ProEx")
    proex.add_argument(
        "--num-profiles", type=_positive_int, metavar="K", help="profiles of every user and item (default: 4)"
    )
    proex.add_argument(
        "--num-environments", type=_positive_int, metavar="E", help="mixtures of them a step (default: 4; 3 for yelp)"
    )
    proex.add_argument(
        "--alpha", type=_positive, metavar="X", help="of the mixtures' distribution, at least 0.01 (default: 0.1)"
    )
    proex.add_argument(
        "--variance-weight", type=_weight, metavar="X", help="weight of the variance over environments (default: 10)"
    )
    proex.add_argument(
        "--align-weight", type=_weight, metavar="X", help="weight of the alignment (default: 0; generative models: 0.5)"
    )
    proex.add_argument(
        "--regularization-weight", type=_weight, metavar="X", help="of what keeps profiles apart (default: 0.4)"
    )
    proex.add_argument(
        "--regularization",
        choices=("uniformity", "contrast"),
        help="within a batch, or within a node's profiles (default: uniformity)",
    )
    proex.add_argument(
        "--mixing", action=argparse.BooleanOptionalAction, help="environments, or the profiles' mean (default: yes)"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--out", metavar="DIR", help="the run folder (default: a new one under ./runs)")
    output.add_argument("--resume", action="store_true", help="continue the run in --out, with its own settings")
