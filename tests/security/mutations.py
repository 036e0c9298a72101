"""Strategies that mutate bytes, trees of values, and files of known structure."""

from __future__ import annotations

import copy
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

# A mutated value, and what was changed.
Mutant = tuple[Any, str]
Draw = Callable[[SearchStrategy[Any]], Any]

# Texts that no tree of values can hold; `to_text` puts them in the place of their names.
RAW = {
    "@deep list@": "[" * 20_000 + "]" * 20_000,
    "@deep object@": '{"a":' * 20_000 + "1" + "}" * 20_000,
    "@huge integer@": "9" * 5_000,
    "@large integer@": "9" * 400,
    "@huge exponent@": "1e999",
    "@wide list@": "[" + ",".join("1" * 20_000) + "]",
    "@surrogate@": '"\\ud800"',
}
NUMBERS = (
    0, -1, 1, 2, 3, 7, 8, 64, 100, 127, 128, 255, 256, 4096, 65535, 2**16, 2**24, 2**31 - 1, 2**31,
    2**32 - 1, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**9,
)  # fmt: skip
FLOATS = (0.5, -0.0, -0.9, 2.9, 1e30, 1e39, 1e308, 5e-324, float("nan"), float("inf"), -1e308)
NAMES = (
    "", ".", "..", "a", "../../outside", "/nowhere/outside", "a/b", "a\\b", "~", "$HOME", "-rf",
    "a\0b", "\x1b[31mred", "a\nb", "$x^2$", "%s{0}", "\u202egnp", "\u00e9", "CON", "a" * 300,
    "overview", "__init__", "x" * 20_000, "http://user:password@host/?token=1", "pipe:true",
)  # fmt: skip
OTHERS = (None, True, False, [], {}, [[]], [1], [None], ["a"], {"a": 1}, {"": {}}, *RAW)
VALUES = st.one_of(*map(st.sampled_from, (NUMBERS, FLOATS, NAMES, OTHERS)))


_MAX_TEXT = 2**20  # characters that a repeated part may come to


@st.composite
def edited(draw: Draw, data: bytes, most: int = 3) -> Mutant:
    """Bytes with up to `most` edits: flip, set, cut, insert, duplicate, swap, number."""
    notes = []
    for _ in range(draw(st.integers(1, most))):
        data, note = draw(_edit(data))
        notes.append(note)
    return data, "; ".join(notes)


@st.composite
def _edit(draw: Draw, data: bytes) -> Mutant:
    kind = draw(st.sampled_from(("flip", "set", "cut", "insert", "twice", "swap", "number", "end")))
    size = len(data)
    at = draw(st.integers(0, max(0, size - 1)))
    length = draw(st.one_of(st.integers(1, 8), st.integers(1, max(1, size))))
    part = data[at : at + length]
    if kind == "flip" and data:
        bit = draw(st.integers(0, 7))
        changed = data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
    elif kind == "set" and data:
        changed = data[:at] + bytes([draw(st.integers(0, 255))]) * len(part) + data[at + length :]
    elif kind == "cut":
        changed = data[:at] + data[at + length :]
    elif kind == "insert":
        changed = data[:at] + draw(st.binary(min_size=1, max_size=16)) + data[at:]
    elif kind == "twice":
        changed = data[:at] + part + data[at:]
    elif kind == "swap":
        other = draw(st.integers(0, max(0, size - 1)))
        low, high = sorted((at, other))
        high = max(high, low + length)
        middle = data[low + length : high]
        changed = data[:low] + data[high : high + length] + middle + data[low : low + length]
        changed += data[high + length :]
    elif kind == "number":
        code = draw(st.sampled_from(("<B", "<H", ">H", "<I", ">I", "<Q", ">Q", "<f")))
        number = struct.pack(code, _fitting(code, draw(st.sampled_from(NUMBERS))))
        changed = data[:at] + number + data[at + len(number) :]
    else:
        changed = data[:at]
    return changed, f"{kind} at {at} of {size}, length {length}"


def _fitting(code: str, number: int) -> float:
    return float(number) if code == "<f" else number & (1 << 8 * struct.calcsize(code)) - 1


@st.composite
def changed_tree(draw: Draw, tree: Any, most: int = 2) -> Mutant:
    """A tree of values with up to `most` changes of a value, a key, or an item."""
    tree, notes = copy.deepcopy(tree), []
    for _ in range(draw(st.integers(1, most))):
        places = _places(tree)
        if not places:
            break
        holder, key, path = draw(st.sampled_from(places))
        notes.append(f"{path}: {draw(_change(holder, key, places))}")
    return tree, "; ".join(notes)


@st.composite
def _change(draw: Draw, holder: Any, key: Any, places: Sequence[Any]) -> str:
    kinds = ("value", "value", "value", "drop", "copy", "wrap", "many", "key")
    kind = draw(st.sampled_from(kinds))
    old = holder[key]
    if kind == "drop":
        del holder[key]
    elif kind == "copy":
        other, at, path = draw(st.sampled_from(places))
        if at in other if isinstance(other, dict) else at < len(other):
            holder[key] = copy.deepcopy(other[at])
            kind += f" of {path}"
    elif kind == "wrap":
        holder[key] = draw(st.sampled_from(([old], {"a": old}, [old, copy.deepcopy(old)])))
    elif kind == "many":
        times = draw(st.sampled_from((2, 100, 3_000)))
        times = max(1, min(times, _MAX_TEXT // len(json.dumps(old))))
        if isinstance(holder, list):
            holder[key : key + 1] = [copy.deepcopy(old) for _ in range(times)]
        else:
            holder.update({f"{key}{n}": copy.deepcopy(old) for n in range(times)})
        kind += f" {times}"
    elif kind == "key" and isinstance(holder, dict):
        name = draw(st.sampled_from(NAMES))
        holder[name] = holder.pop(key)
        kind += f" {name!r:.30}"
    else:
        holder[key] = draw(VALUES)
        kind += f" {holder[key]!r:.40}"
    return kind


def _places(tree: Any, path: str = "") -> list[tuple[Any, Any, str]]:
    """Return holder, key and path of every value in a tree."""
    if isinstance(tree, dict):
        keys: list[Any] = list(tree)[:40]
    elif isinstance(tree, list):
        keys = list(range(len(tree)))[:20]
    else:
        return []
    places = []
    for key in keys:
        below = f"{path}.{key:.20}" if isinstance(key, str) else f"{path}.{key}"
        places += [(tree, key, below), *_places(tree[key], below)]
    return places


def to_text(tree: Any) -> str:
    """Return a tree as JSON, with the texts that only RAW holds."""
    text = json.dumps(tree)
    for name, raw in RAW.items():
        text = text.replace(json.dumps(name), raw)
    return text


def json_texts(text: bytes) -> SearchStrategy[Mutant]:
    """JSON with a changed tree, edited bytes, or a key that comes twice."""
    tree = json.loads(text)
    return st.one_of(
        changed_tree(tree).map(lambda mutant: (to_text(mutant[0]).encode(), mutant[1])),
        changed_tree(tree).map(lambda mutant: (_twice(tree, mutant[0]), f"twice {mutant[1]}")),
        edited(text),
    )


def _twice(tree: Any, other: Any) -> bytes:
    """Return an object in which the keys of both trees come, one after the other."""
    parts = [to_text(each)[1:-1] for each in (tree, other) if each and isinstance(each, dict)]
    return f"{{{','.join(parts)}}}".encode()


def split_safetensors(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header and the tensors' bytes."""
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def join_safetensors(header: Any, data: bytes) -> bytes:
    """Return a file with a header of this content."""
    text = to_text(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@st.composite
def safetensors_files(draw: Draw, file: bytes) -> Mutant:
    """A safetensors file with a changed header, other tensors, or edited bytes."""
    header, data = split_safetensors(file)
    kind = draw(st.sampled_from(("header", "dtype", "floats", "data", "file")))
    if kind == "file":
        return draw(edited(file))
    if kind == "header":
        header, note = draw(changed_tree(header))
    elif kind == "dtype":
        name = draw(st.sampled_from([name for name in header if name != "__metadata__"]))
        dtype = draw(st.sampled_from(("I32", "U32", "F16", "BF16", "F64", "I64", "U8", "BOOL")))
        header[name] = {**header[name], "dtype": dtype}
        note = f"{name} as {dtype}"
    elif kind == "floats":
        at = 4 * draw(st.integers(0, len(data) // 4 - 1))
        value = draw(st.sampled_from((float("nan"), float("inf"), 1e38)))
        count = draw(st.sampled_from((1, len(data) // 4)))
        data = (data[:at] + struct.pack("<f", value) * count)[: len(data)] + data[at + 4 * count :]
        note = f"{count} numbers from byte {at} are {value}"
    else:
        data, note = draw(edited(data))
    return join_safetensors(header, data), f"{kind}: {note}"


_CHUNK = struct.Struct(">I4s")


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG with its length and checksum."""
    return _CHUNK.pack(len(data), kind) + data + struct.pack(">I", zlib.crc32(kind + data))


@st.composite
def png_files(draw: Draw, file: bytes) -> Mutant:
    """A PNG with another size, depth or colour type in its header, and a checksum that fits."""
    width, height = (draw(st.sampled_from((0, 1, 7, 8, 13_000, 2**16, 2**31 - 1))) for _ in "wh")
    depth, colours = draw(st.sampled_from((1, 2, 8, 16))), draw(st.sampled_from((0, 2, 3, 4, 6)))
    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    extra = draw(st.sampled_from((b"", png_chunk(b"zTXt", _BOMB), png_chunk(b"iCCP", _BOMB))))
    note = f"PNG {width} x {height}, depth {depth}, type {colours}, {len(extra)} bytes beside it"
    return file[:8] + png_chunk(b"IHDR", header) + extra + file[33:], note


_BOMB = b"a\0\0" + zlib.compress(bytes(30 * 2**20))


@st.composite
def jpeg_files(draw: Draw, file: bytes) -> Mutant:
    """A JPEG with another size in its frame header."""
    at = max(file.find(b"\xff\xc0"), file.find(b"\xff\xc2")) + 5
    height, width = (draw(st.sampled_from((0, 1, 8, 13_000, 2**16 - 1))) for _ in "hw")
    size = struct.pack(">HH", height, width)
    return file[:at] + size + file[at + 4 :], f"JPEG {width} x {height}"


@st.composite
def planes_files(draw: Draw, file: bytes) -> Mutant:
    """Label planes with other entries in their header, and a checksum that fits."""
    values = list(struct.unpack_from("<4sBBBBII", file))
    at = draw(st.integers(1, 6))
    number = draw(st.sampled_from((0, 1, 2, 3, 4, 8, 255, 8192, 2**31)))
    values[at] = number & 0xFF if at < 5 else number
    header, payload = struct.pack("<4sBBBBII", *values), file[20:]
    checksum = struct.pack("<I", zlib.crc32(payload, zlib.crc32(header)))
    return header + checksum + payload, f"planes {values[1:]}"


_FOREIGN = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n",
    b"GIF89a\x08\x00\x08\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff;",
    b"%PDF-1.4\n%%EOF",
    b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93.",
    b"import os\n",
    b"",
)


def member_contents(name: str, data: bytes) -> SearchStrategy[Mutant]:
    """Content of a member of a sample: a mutated picture, record or class id."""
    foreign = st.sampled_from([(other, f"content {other[:12]!r}") for other in _FOREIGN])
    by_suffix: dict[str, Callable[[bytes], SearchStrategy[Mutant]]] = {
        "png": png_files, "jpg": jpeg_files, "planes": planes_files, "json": json_texts,
    }  # fmt: skip
    suffix = name.rpartition(".")[2]
    own = [by_suffix[suffix](data)] if suffix in by_suffix else []
    return st.one_of(*own, *own, edited(data), foreign)


_BLOCK = 512
_MEMBER_NAMES = (
    "/nowhere/usercustomize.py", "../../outside.rgb.jpg", "s0/../../x.rgb.jpg", "a/b.rgb.jpg", "x",
    ".rgb.jpg", "x.", f"{'a' * 300}.rgb.jpg", "s0\x1b[31m.rgb.jpg", "s0.RGB.JPG", " .rgb.jpg",
    "s0.__fault__", "s0.__key__", "s0.__url__", "s0.__damage__", "s0.py", "s9.py", "s0.pickle",
    "s0.pyd", "s0\n.rgb.jpg", "..rgb.jpg", "\udcff.rgb.jpg", "s1.rgb.jpg", "s0.rgb.png",
)  # fmt: skip
_KINDS = b"\x0001234567gxLKSVNXA"


def tar_bytes(members: Sequence[tuple[str, bytes]], form: int = tarfile.GNU_FORMAT) -> bytes:
    """Return a tar of these members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@st.composite
def tar_files(draw: Draw, members: Sequence[tuple[str, bytes]]) -> Mutant:
    """A tar with other members, other headers whose checksums fit, or edited bytes."""
    kind = draw(st.sampled_from(("content", "content", "name", "order", "header", "bytes", "end")))
    changed, at = list(members), draw(st.integers(0, len(members) - 1))
    name, data = members[at]
    if kind == "content":
        data, note = draw(member_contents(name, data))
        changed[at] = name, data
        return tar_bytes(changed), f"{name}: {note}"
    if kind == "name":
        other = draw(st.sampled_from(_MEMBER_NAMES))
        changed[at] = other, data
        form = draw(st.sampled_from((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)))
        return tar_bytes(changed, form), f"{name} is called {other!r:.60}"
    if kind == "order":
        other = draw(st.integers(0, len(members)))
        moved = changed[at] if draw(st.booleans()) else changed.pop(at)
        changed.insert(other, moved)
        return tar_bytes(changed), f"{name} at {other}, {len(changed)} members"
    whole = tar_bytes(members)
    if kind == "header":
        return draw(_headers(whole))
    if kind == "end":
        length = draw(st.sampled_from((0, 512, 1024, 1500)))
        return whole.rstrip(b"\0") + bytes(length), f"{length} bytes after the last member"
    return draw(edited(whole))


@st.composite
def _headers(draw: Draw, whole: bytes) -> Mutant:
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        starts = [member.offset for member in tar.getmembers()]
    start = draw(st.sampled_from(starts))
    header = bytearray(whole[start : start + _BLOCK])
    what = draw(st.sampled_from(("kind", "size", "bytes")))
    if what == "kind":
        header[156] = draw(st.sampled_from(_KINDS))
        note = f"kind {header[156:157]!r}"
    elif what == "size":
        text = draw(
            st.sampled_from(
                (b"-0000000001", b"77777777777", b"0", b"\x80" + bytes(10) + b"\x09", b"\xff" * 12)
            )
        )
        header[124:136] = text[:12].ljust(12, b"\0")
        note = f"size {text!r}"
    else:
        header, note = bytearray(draw(edited(bytes(header), 1))[0][:_BLOCK]), "bytes"
        header = header.ljust(_BLOCK, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    changed = whole[:start] + bytes(header) + whole[start + _BLOCK :]
    return changed, f"header at {start}: {note}"
