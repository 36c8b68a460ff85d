"""Text on its way into a prompt or out of an answer: cleaned, cut, compared, put into JSON."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping

# Control characters, halves of surrogate pairs (no UTF-8 holds them), and marks that nobody sees: soft hyphens,
# zero-width spaces, direction overrides, tag characters. Persian and emoji need the joiners U+200C and U+200D.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ud800-\udfff"
    "\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_TAG = re.compile(r"</?[A-Za-z][^<>]{0,80}>")
_TURN = re.compile(r"\[(/?[A-Z_]{2,})\]")


def clean(text: str) -> str:
    """`text` as one line of visible characters, without HTML.

    Bracketed words in capitals get round brackets: some servers' chat templates take [INST] inside a message for the
    end of it.
    """
    text = _TAG.sub(" ", _INVISIBLE.sub("", html.unescape(text)))
    return " ".join(_TURN.sub(r"(\1)", text).split())


def cut(text: str, limit: int) -> str:
    """`text` in at most `limit` characters, ended by "..." at a word's end where something was left out."""
    if len(text) <= limit:
        return text
    head = text[: max(limit - 3, 0)]
    if not text[len(head)].isspace():
        word_end = head.rfind(" ")
        if word_end >= len(head) // 2:  # otherwise it is a script without spaces, or one very long word
            head = head[:word_end]
    return (head.rstrip() + "...")[:limit]


def to_json(value: Mapping[str, object]) -> str:
    """`value` as JSON without < and >, of which chat templates make their markers (<|im_start|>, <start_of_turn>).

    Raises:
        ValueError: a number in it is not finite.
    """
    plain = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return plain.replace("<", "\\u003c").replace(">", "\\u003e")


def overlap(first: str, second: str) -> float:
    """Share of common words, 0 to 1 (Jaccard), whatever their case, order and punctuation."""
    one, other = (set(re.findall(r"\w+", text.casefold())) for text in (first, second))
    return len(one & other) / max(len(one | other), 1)
