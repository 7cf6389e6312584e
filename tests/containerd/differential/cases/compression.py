"""Compressed forms of one small layer, whole and broken."""

import gzip
import zlib

import zstandard

from tests.containerd.differential.cases.table import NO, OK, Case, Expected, chain
from tests.containerd.differential.layers import (
    DOCKER_GZIP,
    DOCKER_TAR,
    DOCKER_ZSTD,
    OCI_GZIP,
    OCI_TAR,
    OCI_ZSTD,
    Layer,
    gzipped,
    skippable,
    zstd,
)
from tests.containerd.differential.tarbytes import directory, file, tar

TAR = tar(directory("d", 0o711), file("d/n", b"content" * 300), file("m"))
HALF = len(TAR) // 2
GZIP, ZSTD = gzipped(TAR), zstd(TAR)


def gzip_header(flags: int, extra: bytes) -> bytes:
    """A member with optional header fields."""
    return gzip_header_of(TAR, flags, extra)


def gzip_header_of(data: bytes, flags: int, extra: bytes) -> bytes:
    deflated = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = deflated.compress(data) + deflated.flush()
    trailer = zlib.crc32(data).to_bytes(4, "little") + (len(data) & 0xFFFFFFFF).to_bytes(4, "little")
    head = b"\x1f\x8b\x08" + bytes([flags]) + bytes(4) + b"\0\xff" + extra
    if flags & 2:
        head += (zlib.crc32(head) & 0xFFFF).to_bytes(2, "little")
    return head + body + trailer


def zstd_stream(data: bytes) -> bytes:
    """Without the content's size in the header."""
    return zstandard.ZstdCompressor(write_content_size=False).compress(data)


def window(log: int) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(
        window_log=log, compression_level=1, write_content_size=False
    )
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return compressor.compress(TAR) + compressor.flush()


def damaged(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]


GZIPS = {
    "usual": (GZIP, OK),
    "stored": (gzipped(TAR, 0), OK),
    "best": (gzipped(TAR, 9), OK),
    "two-members": (gzipped(TAR[:HALF]) + gzipped(TAR[HALF:]), OK),
    "members-inside-block": (gzipped(TAR[:100]) + gzipped(TAR[100:777]) + gzipped(TAR[777:]), OK),
    "many-members": (b"".join(gzipped(TAR[at : at + 64]) for at in range(0, len(TAR), 64)), OK),
    "empty-member-first": (gzipped(b"") + GZIP, OK),
    "empty-member-between": (gzipped(TAR[:HALF]) + gzipped(b"") + gzipped(TAR[HALF:]), OK),
    "empty-member-last": (GZIP + gzipped(b""), OK),
    "empty": (gzipped(b""), OK),
    "second-tar-in-member": (GZIP + gzipped(tar(file("hidden"))), OK),
    "trailing-zeros": (GZIP + bytes(512), NO),
    "trailing-zero": (GZIP + b"\0", NO),
    "trailing-garbage": (GZIP + b"garbage", NO),
    "trailing-garbage-long": (GZIP + b"garbage" * 100, NO),
    "trailing-magic": (GZIP + b"\x1f\x8b", NO),
    "trailing-zstd": (GZIP + ZSTD, NO),
    "trailer-missing": (GZIP[:-8], NO),
    "trailer-cut": (GZIP[:-3], NO),
    "cut-in-the-middle": (GZIP[: len(GZIP) // 2], NO),
    "cut-in-header": (GZIP[:9], NO),
    "cut-after-magic": (GZIP[:3], NO),
    "cut-second-member": (gzipped(TAR[:HALF]) + gzipped(TAR[HALF:])[:-4], NO),
    "crc-wrong": (damaged(GZIP, len(GZIP) - 8), NO),
    "length-wrong": (damaged(GZIP, len(GZIP) - 1), NO),
    "damaged": (damaged(GZIP, len(GZIP) // 2), NO),
    "method-wrong": (damaged(GZIP, 2), NO),
    "header-name": (gzip_header(8, b"layer.tar\0"), OK),
    "header-comment": (gzip_header(16, b"comment\0"), OK),
    "header-extra": (gzip_header(4, b"\x06\0AB\x02\0xy"), OK),
    "header-extra-empty": (gzip_header(4, b"\0\0"), OK),
    "header-crc": (gzip_header(2, b""), OK),
    "header-crc-wrong": (damaged(gzip_header(2, b""), 10), NO),
    "header-everything": (gzip_header(4 | 8 | 16 | 2, b"\x02\0xyname\0comment\0"), OK),
    "header-text-flag": (gzip_header(1, b""), OK),
    "header-name-unended": (b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * 600, NO),
    "header-name-511": (gzip_header(8, b"n" * 511 + b"\0"), OK),
    "header-name-512": (gzip_header(8, b"n" * 512 + b"\0"), NO),
    "header-comment-long": (gzip_header(16, b"n" * 600 + b"\0"), NO),
    "header-name-of-second-member": (gzipped(TAR[:HALF]) + gzip_header_of(TAR[HALF:], 8, b"m\0"), OK),
    "header-name-long": (gzip_header(8, b"n" * 600 + b"\0"), NO),
    "header-mtime": (gzip.compress(TAR, mtime=1_500_000_000), OK),
    "inside-gzip": (gzipped(GZIP), NO),
    "large-padding": (gzipped(TAR + bytes(2_000_000)), OK),
}
ZSTDS = {
    "usual": (ZSTD, OK),
    "no-content-size": (zstd_stream(TAR), OK),
    "checksum": (zstd(TAR, write_checksum=True), OK),
    "checksum-wrong": (damaged(zstd(TAR, write_checksum=True), len(zstd(TAR, write_checksum=True)) - 1), NO),
    "two-frames": (zstd(TAR[:HALF]) + zstd(TAR[HALF:]), OK),
    "many-frames": (b"".join(zstd(TAR[at : at + 512]) for at in range(0, len(TAR), 512)), OK),
    "empty-frame-first": (zstd(b"") + ZSTD, OK),
    "empty-frame-last": (ZSTD + zstd(b""), OK),
    "empty": (zstd(b""), OK),
    "skippable-first": (skippable() + ZSTD, OK),
    "skippable-first-empty": (skippable(b"") + ZSTD, OK),
    "skippable-first-f": (skippable(nibble=15) + ZSTD, OK),
    "skippable-between": (zstd(TAR[:HALF]) + skippable(b"x" * 5000) + zstd(TAR[HALF:]), OK),
    "skippable-last": (ZSTD + skippable(b"toc" * 400), OK),
    "skippable-only": (skippable(), OK),
    "skippable-cut": (ZSTD + skippable(b"x" * 100)[:-10], NO),
    "trailing-garbage": (ZSTD + b"garbage", NO),
    "trailing-zeros": (ZSTD + bytes(512), NO),
    "trailing-one-byte": (ZSTD + b"\0", NO),
    "trailing-magic-cut": (ZSTD + b"\x28\xb5\x2f", NO),
    "trailing-gzip": (ZSTD + GZIP, NO),
    "second-tar-in-frame": (ZSTD + zstd(tar(file("hidden"))), OK),
    "cut": (ZSTD[:-5], NO),
    "cut-in-header": (ZSTD[:5], NO),
    "cut-after-magic": (ZSTD[:4], NO),
    "cut-in-magic": (ZSTD[:3], NO),
    "cut-second-frame": ((zstd(TAR[:HALF]) + zstd(TAR[HALF:]))[:-5], NO),
    "damaged": (damaged(zstd(TAR, write_checksum=True), len(ZSTD) // 2), NO),
    "window-8-mib": (window(23), OK),
    "window-32-mib": (window(25), OK),
    "window-128-mib": (window(27), Expected.HANDED_ON),
    "window-512-mib": (window(29), Expected.HANDED_ON),
    "window-1-gib": (window(30), Expected.HANDED_ON_REFUSED),
    "dictionary-id": (
        zstandard.ZstdCompressor(dict_data=zstandard.ZstdCompressionDict(TAR)).compress(TAR),
        NO,
    ),
    "inside-gzip": (gzipped(ZSTD), NO),
    "large-padding": (zstd(TAR + bytes(2_000_000)), OK),
}
TYPES = {
    "oci-gzip-holds-plain": (TAR, OCI_GZIP, OK),
    "oci-gzip-holds-zstd": (ZSTD, OCI_GZIP, OK),
    "oci-zstd-holds-gzip": (GZIP, OCI_ZSTD, OK),
    "oci-zstd-holds-plain": (TAR, OCI_ZSTD, OK),
    "oci-tar-holds-plain": (TAR, OCI_TAR, OK),
    "oci-tar-holds-gzip": (GZIP, OCI_TAR, NO),
    "oci-tar-holds-zstd": (ZSTD, OCI_TAR, NO),
    "docker-tar-holds-plain": (TAR, DOCKER_TAR, OK),
    "docker-tar-holds-gzip": (GZIP, DOCKER_TAR, OK),
    "docker-tar-holds-zstd": (ZSTD, DOCKER_TAR, OK),
    "docker-gzip-holds-gzip": (GZIP, DOCKER_GZIP, OK),
    "docker-gzip-holds-plain": (TAR, DOCKER_GZIP, OK),
    "xz-is-no-tar": (b"\xfd7zXZ\0" + bytes(600), OCI_GZIP, NO),
    "bzip2-is-no-tar": (b"BZh9" + bytes(600), OCI_GZIP, NO),
}

CASES: list[Case] = [
    *(
        chain(f"gzip-{name}", Layer(blob, OCI_GZIP), expected=expected)
        for name, (blob, expected) in GZIPS.items()
    ),
    *(
        chain(f"zstd-{name}", Layer(blob, OCI_ZSTD), expected=expected)
        for name, (blob, expected) in ZSTDS.items()
    ),
    *(
        chain(f"type-{name}", Layer(blob, kind), expected=expected)
        for name, (blob, kind, expected) in TYPES.items()
    ),
    chain("gzip-flags-reserved", Layer(gzip_header(0xE0, b""), OCI_GZIP), v2_4=NO),
    # 1.6 has no processor for this type: one of the known differences between the versions.
    chain("type-docker-zstd", Layer(ZSTD, DOCKER_ZSTD), v1_6=NO),
]
