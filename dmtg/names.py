"""Names that come from data, models and configurations: as parts of paths, and on a terminal."""

from __future__ import annotations

import re
import unicodedata

MAX_LENGTH = 100  # bytes, as file systems count, of a name that becomes part of a path
FILE_NAME_RULE = (
    f"1 to {MAX_LENGTH} letters, digits, spaces and _ . , + ( ) -, of which the first is a letter, "
    f"a digit or _, and at most {MAX_LENGTH} bytes in UTF-8"
)
MAX_TEXT = 500  # characters of a name that is only shown, such as that of a class
_PUNCTUATION = frozenset("_ .,+()-")
# Control characters (category Cc), embeddings, overrides and isolates of the direction, and lone
# surrogates, which UTF-8 cannot encode. Joiners and special spaces belong to ordinary text.
_NOT_TEXT = re.compile("[\0-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def is_file_name(name: str) -> bool:
    """Return whether a name follows `FILE_NAME_RULE`, so that it stays in the folder it is used in.

    Such a name has no slash, no control character and is neither `.` nor `..`.
    """
    if not name or not (name[0] == "_" or _is_letter(name[0])) or len(name) > MAX_LENGTH:
        return False
    allowed = all(c in _PUNCTUATION or _is_letter(c) for c in name)
    return allowed and len(name.encode()) <= MAX_LENGTH


def _is_letter(character: str) -> bool:
    """Return whether a character is a letter, a digit, or a mark on one, in any script."""
    return unicodedata.category(character)[0] in "LMN"


def check_file_name(what: str, name: str) -> str:
    """Return a name that becomes part of a path.

    Args:
        what: What is called so, for the message.
        name: The name.

    Raises:
        ValueError: It breaks `FILE_NAME_RULE`.
    """
    if not is_file_name(name):
        raise ValueError(f"{what} is {shortened(repr(name))}, must be {FILE_NAME_RULE}")
    return name


def is_text(text: str) -> bool:
    """Return whether `check_text` accepts a text."""
    return len(text) <= MAX_TEXT and not _NOT_TEXT.search(text)


def check_text(what: str, text: str) -> str:
    """Return a name that is shown, but is no part of a path.

    Args:
        what: What is called so, for the message.
        text: The name.

    Raises:
        ValueError: It is longer than `MAX_TEXT`, or has characters that control a terminal or the
            direction of text, or lone surrogates.
    """
    if not is_text(text):
        raise ValueError(
            f"{what} is {shortened(repr(text))}, must be at most {MAX_TEXT} characters that are "
            "text: no control characters, changes of direction or lone surrogates"
        )
    return text


def to_file_name(key: str) -> str:
    """Return a file name for a key that may have any characters, such as `building/point 3`.

    Each character that `FILE_NAME_RULE` does not allow becomes `_`, so different keys can get equal
    names. A key of more than `MAX_LENGTH` bytes keeps its end, where keys usually differ.
    """
    kept = _PUNCTUATION - {" "}
    name = "".join(c if c in kept or _is_letter(c) else "_" for c in key)
    name = name.encode()[-MAX_LENGTH:].decode(errors="ignore")
    return name if is_file_name(name) else f"_{name[1:]}"


def printable(text: str) -> str:
    """Return text in which characters that a terminal would obey or hide are escaped.

    Line breaks and tabs stay.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text
    )


def one_line(text: str, length: int = 80) -> str:
    """Return text that may have any characters, such as a sample's key, as one short line."""
    return shortened(" ".join(printable(text).split()), length)


def shortened(text: str, length: int = 80) -> str:
    """Return at most `length` characters of a text; dots show that some are left out."""
    return text if len(text) <= length else f"{text[: length - 3]}..."
