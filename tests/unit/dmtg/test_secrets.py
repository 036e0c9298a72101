"""Credentials are removed from URLs, and nothing else is changed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmtg.secrets import without_secrets, without_secrets_in


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:key@host/a/b", "https://host/a/b"),
        ("https://host/a?X-Amz-Signature=abc&x=1", "https://host/a"),
        ("s3://bucket/shards", "s3://bucket/shards"),
        ("hf://datasets/me/rooms@main/a", "hf://datasets/me/rooms@main/a"),
        ("https://me:p@ss'\"w:ord@host:8080/a#key", "https://host:8080/a"),
        ("'https://host/a?sig=1': missing", "'https://host/a': missing"),
        ("https://host/a?sig=1: failed 3 times, https://b?x", "https://host/a: failed 3 times, https://b"),
        ("read (see https://me@host/a?b=1).", "read (see https://host/a)."),
        ("https://host/a-{000..099}.tar?sig=a{b}", "https://host/a-{000..099}.tar"),
        ("mail me@host, is it so?", "mail me@host, is it so?"),
        ("https:/me:key@host/a?b=1", "https:/host/a"),  # of a URL that was taken for a path
        ("https://host/my data/?sig=key", "https://host/my data/"),
        ("https://host/it's here/?sig=key: missing", "https://host/it's here/: missing"),
        ("https://host/a?sig=a'key, again", "https://host/a, again"),
        ("s3://id:ke/y@bucket/x", "s3://bucket/x"),
        ("http://host:8080/a@b/c", "http://host:8080/a@b/c"),
        ("node01:/export@noon/a?b", "node01:/export@noon/a?b"),
    ],
)  # fmt: skip
def test_only_credentials_are_removed(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


@given(
    secret=st.text(st.characters(categories=["L", "N"]), min_size=8, max_size=20),
    before=st.text(max_size=20),
    after=st.text(max_size=20),
)
def test_no_secret_is_left_in_any_text(secret: str, before: str, after: str) -> None:
    url = f"https://me:{secret}@example.org/shards/a.tar?token={secret}&x={secret}"
    shown = without_secrets(f"{before} {url} {after}")
    assert secret not in shown.replace(before, "").replace(after, "")
    assert "https://example.org/shards/a.tar" in shown


def test_only_the_texts_of_a_tree_are_changed() -> None:
    tree = {
        "shards": "https://me:key@host/a?sig=1",
        "steps": 3,
        "names": ["a", "s3://me@bucket"],
        "pair": ("https://h?x=1", None),
        "options": {"https://me@host": 0.5},
        "blanks": "https://host/my data/?a key",
        "message": "https://host/a: is it there? yes",
    }
    assert without_secrets_in(tree) == {
        "shards": "https://host/a",
        "steps": 3,
        "names": ["a", "s3://bucket"],
        "pair": ("https://h", None),
        "options": {"https://host": 0.5},
        "blanks": "https://host/my data/",
        "message": "https://host/a: is it there? yes",
    }
    assert tree["shards"] == "https://me:key@host/a?sig=1"
