"""Removal of credentials from URLs in everything that is written or shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# The lengths are bounded, because the time of a search grows with the square of them.
# With one slash: a path in place of a URL has lost the other.
_SCHEME = r"(\b(?:[A-Za-z][A-Za-z0-9+.-]{0,20}://|(?:https?|s3|gs|hf):/))"
# A user alone, or a user and a password that may have slashes; `host:8080/a@b` has neither.
_USER_INFO = re.compile(
    rf"{_SCHEME}(?:[^\s/:@]{{0,200}}:(?!\d+/)[^\s@]{{0,500}}@|[^\s/]{{0,500}}@)+"
)
# Signatures and tokens are in the query. Punctuation at its end belongs to the text around the URL,
# as does a quote that no letter follows.
_END = r"""(?=[.,:;)\]]{0,9}(?:[\s"<>]|'(?!\w)|$))"""
_QUERY = re.compile(rf"""({_SCHEME}[^\s'"<>?#]{{0,2000}})[?#][^\s"<>]*?{_END}""")
_ONE_URL = re.compile(rf"""({_SCHEME}(?:(?!: )[^?#])*)[?#].*""", re.DOTALL)
# Of a URL with blanks or quotes in its path, which only its parameters show.
_PARAMETERS = re.compile(rf"""[?&][\w.~%-]{{1,100}}=[^\s"<>]*?{_END}""")


def without_secrets(text: str) -> str:
    """Return text in which no URL has a user, a password, a query or a fragment.

    Args:
        text: A message with URLs in it. Of one URL alone `without_secrets_in` removes more
            reliably what follows a blank or a quote.

    Returns:
        The text; `https://me:key@host/a?sig=1` in it becomes `https://host/a`.
    """
    if ":/" not in text:
        return text
    for pattern, kept in ((_USER_INFO, r"\1"), (_QUERY, r"\1"), (_PARAMETERS, "")):
        text = pattern.sub(kept, text)
    return text


def without_secrets_in(value: Any) -> Any:  # noqa: ANN401 - anything that JSON or YAML can hold
    """Return plain values without credentials in any text, keys of mappings too.

    A text that begins as a URL, and has no colon with a blank before its query, is one URL to its
    end, with all blanks and quotes in it.
    """
    if isinstance(value, str):
        url = _ONE_URL.fullmatch(value)
        return without_secrets(url[1] if url else value)
    if isinstance(value, Mapping):
        return {without_secrets_in(key): without_secrets_in(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(without_secrets_in(part) for part in value)
    return value
