"""A layer in words, for the reader of a failed test: one line per header, as far as it can be followed."""

from __future__ import annotations

import gzip
import zlib

import zstandard

from tests.containerd.differential.layers import Layer
from tests.containerd.differential.tarbytes import BLOCK, FIELDS, GNU, USTAR, V7

_MAGICS = {USTAR: "ustar", GNU: "gnu", V7: "v7"}


def listing(layer: Layer) -> str:
    """The entries of a layer."""
    try:
        content = unpacked(layer.blob)
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        return f"{layer.media_type}: {error}: {layer.blob[:200]!r}"
    lines = [f"{layer.media_type}, {len(content)} bytes:"]
    position = 0
    while position < len(content):
        block = content[position : position + BLOCK]
        position += BLOCK
        if not block.strip(b"\0"):
            lines.append(f"  {len(block)} zeros")
            continue
        try:
            line, size = _entry(block)
        except ValueError as error:
            lines.append(f"  not a header ({error}): {block[:60]!r}")
            break
        if block[156:157] in b"xgLK":
            line += f": {content[position : position + size]!r}"
        lines.append(line)
        position += -(-size // BLOCK) * BLOCK
    return "\n".join(lines)


def unpacked(blob: bytes) -> bytes:
    """The tar in a blob of any compression."""
    if blob.startswith(b"\x1f\x8b"):
        return gzip.decompress(blob)
    if blob[1:4] in (b"\xb5\x2f\xfd", b"\x2a\x4d\x18"):
        reader = zstandard.ZstdDecompressor(max_window_size=1 << 29).stream_reader(
            blob, read_across_frames=True
        )
        return reader.read()
    return blob


def _entry(block: bytes) -> tuple[str, int]:
    def text(name: str) -> bytes:
        start, width = FIELDS[name]
        return block[start : start + width].partition(b"\0")[0]

    def value(name: str) -> int:
        start, width = FIELDS[name]
        raw = block[start : start + width]
        if raw[0] & 0x80:
            return int.from_bytes(raw, "big", signed=True) & ((1 << (8 * width - 1)) - 1)
        return int(raw.strip(b" \0") or b"0", 8)

    kind = block[156:157]
    size = value("size") if kind not in b"123456" else 0
    line = f"  {kind!r} {text('name')!r} {value('mode'):o} {value('uid')}:{value('gid')} at {value('mtime')}"
    line += f" -> {text('linkname')!r}" if text("linkname") else ""
    line += f" device {value('major')}:{value('minor')}" if kind in b"34" and kind else ""
    line += f" {_MAGICS.get(block[257:265], '')} {size} bytes"
    return line, size
