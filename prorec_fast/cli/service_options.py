"""The options of every command that asks a language model, and what they come to."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prorec_fast.profiles import ChatSettings, ServiceSettings

STORE = "answers.sqlite"
CHAT_OPTIONS = ("temperature", "sampling_seed", "transport", "prompts", "retry_failed", "forget_batches")
_TRANSPORT = "online"  # unless another is given


def add_service_options(parser: argparse.ArgumentParser, positive: type, positive_int: type, count: type) -> None:
    """How the service is reached, and what may be paid; the last arguments are the parser's own checks."""
    group = parser.add_argument_group("the service (any that speaks OpenAI's API)")
    add = group.add_argument
    add("--base-url", metavar="URL", help="of the service, with its version (default: $OPENAI_BASE_URL, else OpenAI's)")
    add(
        "--key-variable",
        metavar="NAME",
        default="OPENAI_API_KEY",
        help="the environment variable that has the key (default: OPENAI_API_KEY); a key is taken from nowhere else",
    )
    add("--concurrency", type=positive_int, metavar="N", default=16, help="requests under way at once (default: 16)")
    add("--timeout", type=positive, metavar="S", default=120.0, help="seconds for one attempt (default: 120)")
    add("--retries", type=count, metavar="N", default=5, help="after 429, 5xx and lost connections (default: 5)")
    add(
        "--transport",
        choices=("online", "batch"),
        default=_TRANSPORT,
        help="batch: answers (not vectors) through the Batch API, at half the price, within a day (default: online)",
    )
    add("--poll", type=positive, metavar="S", default=30.0, help="seconds between looks at a batch (default: 30)")
    add(
        "--forget-batches",
        action="store_true",
        help="give up what open batches may still bring: their requests are asked, and paid for, again",
    )
    money = parser.add_argument_group("money")
    add = money.add_argument
    add("--dry-run", action="store_true", help="count requests, tokens and dollars, and send nothing")
    add("--budget", type=positive, metavar="X", help="dollars for all that the store ever pays for; then stop")
    add("--prices", metavar="FILE", help='JSON, dollars a million tokens: {"chat": {"model": [prompt, completion]}}')
    add("--store", metavar="FILE", help=f"where answers are kept (default: {STORE} in the data folder)")


def add_chat_options(parser: argparse.ArgumentParser, weight: type, positive_int: type, count: type) -> None:
    """What the model is asked with."""
    group = parser.add_argument_group("the model's answers")
    add = group.add_argument
    add("--temperature", type=weight, metavar="X", help="of its sampling (default: the service's own)")
    add(
        "--max-tokens",
        type=positive_int,
        metavar="N",
        default=4096,
        help="the longest answer, thoughts included (default: 4096)",
    )
    add("--sampling-seed", type=count, metavar="N", help="of its sampling, where the service has one")
    add(
        "--answer-format",
        choices=("schema", "json"),
        default="schema",
        help="json: for servers that know no JSON schemas (default: schema)",
    )
    add("--attempts", type=positive_int, metavar="N", default=3, help="at a valid answer (default: 3)")


def require_effect(arguments: argparse.Namespace, names: Iterable[str], needed: str) -> None:
    """Refuses options that were given without `needed`, which is what they are for."""
    if getattr(arguments, needed) is None:
        for name in names:
            value = getattr(arguments, name)
            if value is not None and value is not False and value != _TRANSPORT:
                raise ValueError(f"--{name.replace('_', '-')}: has no effect without --{needed.replace('_', '-')}")


def chat_settings(arguments: argparse.Namespace, model: str) -> ChatSettings:
    from prorec_fast.profiles import ChatSettings

    return ChatSettings(
        model=model,
        temperature=arguments.temperature,
        max_tokens=arguments.max_tokens,
        seed=arguments.sampling_seed,
        answer_format=arguments.answer_format,
    )


def service_settings(arguments: argparse.Namespace) -> ServiceSettings:
    from prorec_fast.profiles import ServiceSettings

    return ServiceSettings(
        base_url=arguments.base_url,
        key_variable=arguments.key_variable,
        timeout=arguments.timeout,
        retries=arguments.retries,
        concurrency=arguments.concurrency,
    )


def store_path(arguments: argparse.Namespace, folder: Path) -> Path:
    return folder / STORE if arguments.store is None else Path(arguments.store)


def forget_batches(arguments: argparse.Namespace, store: Path) -> None:
    """What --forget-batches asks for."""
    if arguments.forget_batches:
        from prorec_fast.profiles import Store

        with Store(store) as opened:
            opened.forget_batches()
