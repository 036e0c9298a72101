"""The HTTP client that fsspec uses here: a body is read only up to the length that was asked for.

fsspec reads the whole body of an answer, however long, and decompresses it: a server could fill
the memory. This client decompresses nothing. It asks for bodies that are not compressed and refuses
others by name; a Content-Encoding that it does not know, such as the `aws-chunked` that S3 repeats
from an upload, is ignored, because the bytes are compared with the manifest as they come. The
body of a request for a range is read up to the length of the range, that of another request up to
`MAX_BODY_BYTES`. The timeouts and retries of `remote` apply as before.
"""

from __future__ import annotations

import re
from typing import Any

import aiohttp

from data_pipelines.errors import DataError, SourceError
from data_pipelines.shards.manifest import MAX_MANIFEST_BYTES

MAX_BODY_BYTES = MAX_MANIFEST_BYTES  # of an answer to a request without a range
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")
_COMPRESSED = {"gzip", "x-gzip", "deflate", "br", "zstd", "compress", "x-compress"}
_PARTIAL_CONTENT = 206
_NO_ACCESS, _NOT_FOUND = (401, 403), 404


async def bounded_client(**options: Any) -> aiohttp.ClientSession:  # noqa: ANN401
    """Return a client whose answers are bounded; the option `get_client` of fsspec.

    Args:
        options: `client_kwargs` of the user's configuration of fsspec.
    """
    headers = {**(options.pop("headers", None) or {}), "Accept-Encoding": "identity"}
    fixed = {"auto_decompress": False, "response_class": _BoundedResponse}
    return aiohttp.ClientSession(headers=headers, **{**options, **fixed})


class _BoundedResponse(aiohttp.ClientResponse):
    """An answer with a bounded body.

    Raises:
        DataError: The file is missing, or the body is compressed or longer than asked for.
        SourceError: The server refuses access.

    After both no further attempt is made, because it would end in the same way.
    """

    async def start(self, connection: Any) -> aiohttp.ClientResponse:  # noqa: ANN401
        """Receive the headers."""
        await super().start(connection)
        if self.status in _NO_ACCESS:
            raise SourceError(f"{self.url}: the server refuses access: {self.status} {self.reason}")
        if self.status == _NOT_FOUND:
            raise DataError(f"{self.url}: missing")
        named = ",".join(self.headers.getall("Content-Encoding", ())).lower()
        encodings = [name.strip() for name in named.split(",")]
        if self.ok and not _COMPRESSED.isdisjoint(encodings):
            raise DataError(
                f"{self.url}: the server sent Content-Encoding {named!r}, allowed is identity"
            )
        return self

    async def read(self) -> bytes:
        """Return the body; of an error, whose status tells all, nothing."""
        if not self.ok:
            self.close()
            return b""
        asked = _RANGE.fullmatch(self.request_info.headers.get("Range", ""))
        limit = int(asked[2]) - int(asked[1]) + 1 if asked else MAX_BODY_BYTES
        body = bytearray()
        if (self.content_length or 0) <= limit:
            async for part in self.content.iter_any():
                body += part
                if len(body) > limit:
                    break
            else:
                return bytes(body)
        self.close()
        if asked and self.status != _PARTIAL_CONTENT:
            raise DataError(f"{self.url}: the server does not give ranges of bytes, it sent all")
        raise DataError(
            f"{self.url}: the server sent more than {limit} bytes, "
            + ("which were asked for" if asked else "which are allowed")
        )
