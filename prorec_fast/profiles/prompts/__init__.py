"""System prompts: text files, one a side and step, with the words of a domain put in.

{user}, {item} and the like stand for a domain's words (vocabulary.json), {rules} for rules.txt, which says that
material is no instruction, and {length} for the length that answers are checked for. Any of the files can be
replaced by one of the same name in a folder of the user's own.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from prorec_fast.profiles.answers import PROFILE_LENGTH
from prorec_fast.profiles.errors import ProfileError
from prorec_fast.profiles.requests import digest

SIDES = ("item", "user")
STEPS = ("original", "aspects", "preferences", "new")
VOCABULARY, RULES = "vocabulary.json", "rules.txt"

_PROFILES = tuple((side, step) for side in SIDES for step in STEPS)
_FILES = {f"{side}_{step}.txt": (side, step) for side, step in (*_PROFILES, ("user", "rerank"))}
_REQUIRED = {name: ("rules", "length") if name.endswith(("original.txt", "new.txt")) else ("rules",) for name in _FILES}
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Prompts:
    """The system prompt of each step, ready to be sent: `prompts["item", "original"]`.

    Beside those of the profiles' steps there is `prompts["user", "rerank"]`.

    Attributes:
        domain: whose words are in them.
        texts: by (side, step).
    """

    domain: str
    texts: Mapping[tuple[str, str], str]

    def __getitem__(self, step: tuple[str, str]) -> str:
        return self.texts[step]

    @property
    def hash(self) -> str:
        """Hex digest of all texts that profiles are written with."""
        return digest([self[step] for step in _PROFILES])

    @classmethod
    def load(cls, domain: str = "generic", folder: str | os.PathLike[str] | None = None) -> Prompts:
        """The prompts of a domain: the package's, but for the files that `folder` has.

        Its vocabulary.json adds domains to the package's or replaces them.

        Raises:
            ProfileError: an unknown domain; no such folder; a file in it that no prompt is read from, cannot be read,
                has an unknown placeholder or lacks one that it must have.
        """
        sources = {name: _packaged(name) for name in (*_FILES, RULES)}
        vocabulary = json.loads(_packaged(VOCABULARY))
        required = frozenset(vocabulary["generic"])
        own = {} if folder is None else _read_folder(Path(folder))
        vocabulary |= _own_vocabulary(own, required)
        sources |= own
        if domain not in vocabulary:
            raise ProfileError(f"domain: want one of {', '.join(sorted(vocabulary))}, got {domain!r}")

        words = {**vocabulary[domain], "length": PROFILE_LENGTH}
        words["rules"] = _filled(sources[RULES], words, RULES)
        return cls(domain, {step: _filled(sources[name], words, name) for name, step in _FILES.items()})


def _packaged(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _read_folder(folder: Path) -> dict[str, str]:
    if not folder.is_dir():
        raise ProfileError(f"{folder}: no such folder of prompts")
    own = {}
    known = (*_FILES, RULES, VOCABULARY)
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.name not in known:
            raise ProfileError(f"{path}: no prompt is read from this file; the names are {', '.join(known)}")
        try:
            own[path.name] = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ProfileError(f"{path}: cannot be read as UTF-8 text ({error})") from error
        if not own[path.name].strip():
            raise ProfileError(f"{path}: is empty")
    return own


def _own_vocabulary(own: dict[str, str], required: frozenset[str]) -> dict[str, dict[str, str]]:
    """The domains of a user's vocabulary.json, taken out of `own`."""
    try:
        domains = json.loads(own.pop(VOCABULARY, "{}"))
    except ValueError as error:
        raise ProfileError(f"{VOCABULARY}: is no JSON ({error})") from error
    words_of = domains.items() if isinstance(domains, dict) else [("the whole", None)]
    for domain, words in words_of:
        if (
            not isinstance(words, dict)
            or words.keys() != required
            or not all(isinstance(w, str) for w in words.values())
        ):
            raise ProfileError(f"{VOCABULARY}: {domain}: want an object of the words {', '.join(sorted(required))}")
    return domains


def _filled(template: str, words: Mapping[str, str], name: str) -> str:
    """`template` with its placeholders replaced, once: braces in what they stand for are left alone."""
    used = set(_PLACEHOLDER.findall(template))
    unknown, missing = sorted(used - words.keys()), sorted(set(_REQUIRED.get(name, ())) - used)
    if unknown:
        raise ProfileError(f"{name}: unknown placeholder {{{unknown[0]}}}; there are {', '.join(sorted(words))}")
    if missing:
        raise ProfileError(f"{name}: the placeholder {{{missing[0]}}} is missing")
    return _PLACEHOLDER.sub(lambda found: words[found[1]], template).strip()
