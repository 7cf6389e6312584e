"""Tar archives byte by byte: what Python's tarfile refuses to write, and what nobody should.

`entry` makes a header block with its data, any field of which may be replaced by raw bytes; the functions below it
are the usual kinds. Everything returns bytes, and an archive is their sum: `tar(directory("d"), file("d/f", b"x"))`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

BLOCK = 512
MTIME = 1_500_000_000
"""Seconds: what entries have that are not about time; never near the present, which comparison knows as "now"."""

USTAR = b"ustar\x0000"
GNU = b"ustar  \x00"
V7 = bytes(8)
END = bytes(2 * BLOCK)

Text = str | bytes
Records = Mapping[str, Text] | Iterable[tuple[Text, Text]]

# Where the fields of a header are: offset and width.
FIELDS = {
    "name": (0, 100),
    "mode": (100, 8),
    "uid": (108, 8),
    "gid": (116, 8),
    "size": (124, 12),
    "mtime": (136, 12),
    "checksum": (148, 8),
    "type": (156, 1),
    "linkname": (157, 100),
    "magic": (257, 8),
    "uname": (265, 32),
    "gname": (297, 32),
    "major": (329, 8),
    "minor": (337, 8),
    "prefix": (345, 155),
    "gnu_atime": (345, 12),
    "gnu_ctime": (357, 12),
    "gnu_sparse": (386, 96),
    "gnu_extended": (482, 1),
    "gnu_real_size": (483, 12),
    "star_atime": (476, 12),
    "star_ctime": (488, 12),
    "star_trailer": (508, 4),
}


def raw(text: Text) -> bytes:
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text


def number(value: int, width: int) -> bytes:
    """Octal with a NUL where it fits, GNU's base-256 where not."""
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    return base256(value, width)


def base256(value: int, width: int) -> bytes:
    data = bytearray(value.to_bytes(width, "big", signed=True))
    data[0] = (data[0] & 0x7F) | 0x80
    return bytes(data)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def header(fields: Mapping[str, bytes], *, signed: bool = False) -> bytes:
    """A block of these fields; its checksum is right unless it is one of them."""
    block = bytearray(BLOCK)
    for name, value in fields.items():
        start, width = FIELDS[name]
        if len(value) > width:
            raise ValueError(f"{name} has {width} bytes, not {len(value)}")
        block[start : start + len(value)] = value
    if "checksum" not in fields:
        block[148:156] = b" " * 8
        total = sum(byte - 256 if signed and byte > 127 else byte for byte in block)
        block[148:156] = b"%06o\0 " % total
    return bytes(block)


def entry(
    name: Text,
    kind: Text = "0",
    data: bytes = b"",
    *,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: int = MTIME,
    size: int | None = None,
    link: Text = "",
    device: tuple[int, int] = (0, 0),
    magic: bytes = USTAR,
    pax: Records = (),
    xattrs: Mapping[str, Text] | None = None,
    fields: Mapping[str, bytes] | None = None,
    signed: bool = False,
    pad: bool = True,
) -> bytes:
    """One entry. `size` says something else than the length of `data`; `fields` replaces what it names.

    `pax` and `xattrs` go into an extended header before it. Names too long for the header get one, too.
    """
    records = [(raw(key), raw(value)) for key, value in (pax.items() if isinstance(pax, Mapping) else pax)]
    records += [(b"SCHILY.xattr." + raw(key), raw(value)) for key, value in (xattrs or {}).items()]
    name, link = raw(name), raw(link)
    if len(name) > 100:
        records.append((b"path", name))
    if len(link) > 100:
        records.append((b"linkpath", link))
    values = {
        "name": name[:100],
        "mode": number(mode, 8),
        "uid": number(uid, 8),
        "gid": number(gid, 8),
        "size": number(len(data) if size is None else size, 12),
        "mtime": number(mtime, 12),
        "type": raw(kind),
        "linkname": link[:100],
        "magic": magic,
    }
    if magic != V7:
        values |= {"major": number(device[0], 8), "minor": number(device[1], 8)}
    block = header(values | dict(fields or {}), signed=signed)
    before = pax_header(records) if records else b""
    return before + block + (padded(data) if pad else data)


def record(key: Text, value: Text) -> bytes:
    """A PAX record with its length in front, which counts itself."""
    body = b" " + raw(key) + b"=" + raw(value) + b"\n"
    length = len(body) + 1
    while length != len(body) + len(str(length)):
        length = len(body) + len(str(length))
    return str(length).encode() + body


def pax_header(records: Records | bytes, *, kind: Text = "x", name: Text = "PaxHeaders/x") -> bytes:
    """An extended header of these records, or of these bytes whatever they are."""
    if isinstance(records, bytes):
        content = records
    else:
        pairs = records.items() if isinstance(records, Mapping) else records
        content = b"".join(record(key, value) for key, value in pairs)
    return entry(name, kind, content)


def global_header(records: Records | bytes = (), *, name: Text = "pax_global_header") -> bytes:
    return pax_header(records, kind="g", name=name)


def gnu_name(name: Text, *, kind: Text = "L") -> bytes:
    return entry("././@LongLink", kind, raw(name) + b"\0", magic=GNU)


def gnu_link(name: Text) -> bytes:
    return gnu_name(name, kind="K")


def file(name: Text, data: bytes = b"data", **more: object) -> bytes:
    return entry(name, "0", data, **more)  # type: ignore[arg-type]


def directory(name: Text, mode: int = 0o755, **more: object) -> bytes:
    return entry(name, "5", mode=mode, **more)  # type: ignore[arg-type]


def symlink(name: Text, target: Text, **more: object) -> bytes:
    return entry(name, "2", link=target, mode=0o777, **more)  # type: ignore[arg-type]


def hardlink(name: Text, target: Text, **more: object) -> bytes:
    return entry(name, "1", link=target, **more)  # type: ignore[arg-type]


def char(name: Text, major: int = 1, minor: int = 3, **more: object) -> bytes:
    return entry(name, "3", device=(major, minor), **more)  # type: ignore[arg-type]


def block(name: Text, major: int = 7, minor: int = 0, **more: object) -> bytes:
    return entry(name, "4", device=(major, minor), **more)  # type: ignore[arg-type]


def fifo(name: Text, **more: object) -> bytes:
    return entry(name, "6", **more)  # type: ignore[arg-type]


def whiteout(path: str, **more: object) -> bytes:
    """What removes `path` of the layers below."""
    head, slash, base = path.rpartition("/")
    return entry(f"{head}{slash}.wh.{base}", "0", **more)  # type: ignore[arg-type]


def opaque(path: str = "") -> bytes:
    """What hides all that the layers below have in a directory."""
    return entry(f"{path}/.wh..wh..opq" if path else ".wh..wh..opq")


def tar(*entries: bytes, end: bytes = END) -> bytes:
    return b"".join(entries) + end
