"""Removal of credentials from URLs in everything that is written or shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# With one slash: a path in place of a URL has lost the other.
_SCHEME = r"(\b(?:[A-Za-z][A-Za-z0-9+.-]*://|(?:https?|s3|gs|hf):/))"
_USER_INFO = re.compile(rf"{_SCHEME}[^\s/]*@")
# Signatures and tokens are in the query. Punctuation at its end belongs to the text around the URL.
_QUERY = re.compile(rf"""({_SCHEME}[^\s'"<>?#]*)[?#][^\s'"<>]*?(?=[.,:;)\]]*(?:[\s'"<>]|$))""")


def without_secrets(text: str) -> str:
    """Return text in which no URL has a user, a password, a query or a fragment.

    Args:
        text: A URL, or a message with URLs in it.

    Returns:
        The text; `https://me:key@host/a?sig=1` in it becomes `https://host/a`.
    """
    if ":/" not in text:
        return text
    return _QUERY.sub(r"\1", _USER_INFO.sub(r"\1", text))


def without_secrets_in(value: Any) -> Any:  # noqa: ANN401 - anything that JSON or YAML can hold
    """Return plain values with `without_secrets` applied to every text, keys of mappings too."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, Mapping):
        return {without_secrets_in(key): without_secrets_in(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(without_secrets_in(part) for part in value)
    return value
