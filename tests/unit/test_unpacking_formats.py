"""The formats a layer is made of, read in any pieces: tar headers, PAX records, names, zstd frames, streams."""

import io
import itertools
import random
import tarfile
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from isal import igzip

from imageprepull.unpacking.archive import Archive
from imageprepull.unpacking.frames import FrameWalker
from imageprepull.unpacking.headers import parse_header
from imageprepull.unpacking.inflate import open_inflater
from imageprepull.unpacking.jobs import Limits, Refused
from imageprepull.unpacking.numbers import bound_time, parse_decimal, parse_numeric, parse_octal, parse_time
from imageprepull.unpacking.pace import Pace
from imageprepull.unpacking.paths import clean, join
from imageprepull.unpacking.pax import parse_records
from imageprepull.unpacking.stream import Stream


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges) if start < end]


def source(parts: list[bytes]) -> Callable[[], bytes]:
    remaining = list(parts)
    return lambda: remaining.pop(0) if remaining else b""


def read_all(chunk: Callable[[], bytes]) -> bytes:
    found = []
    while part := chunk():
        found.append(part)
    return b"".join(found)


CUTS = st.lists(st.integers(0, 1 << 20), max_size=12)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"0000644\0", 0o644),
        (b"  644 \0\0", 0o644),
        (b"\0\0\0\0\0\0\0\0", 0),
        (b"        ", 0),
        (b"644\x00junk", 0o644),
        (b"\x80\x00\x00\x00\x00\x00\x00\x01", 1),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff", -1),
        (b"\xff\xff\xff\xff\xff\xff\xff\xfe", -2),
        (b"\x80" + bytes(3) + b"\x7f" + b"\xff" * 7, (1 << 63) - 1),
    ],
)
def test_numbers_of_headers(field: bytes, value: int) -> None:
    assert parse_numeric(field) == value


@pytest.mark.parametrize(
    "field", [b"0000648\0", b"+000644\0", b"0o00644\0", b"12_3", b"-1", b"\x80" + b"\xff" * 11]
)
def test_what_is_no_number_is_refused(field: bytes) -> None:
    with pytest.raises(ValueError, match=r"not an octal|too large|invalid literal"):
        parse_numeric(field)


@given(st.integers(0, (1 << 64) - 1))
def test_octal_numbers_wrap_as_in_go(value: int) -> None:
    expected = value if value < 1 << 63 else value - (1 << 64)
    assert parse_octal(f"{value:o}".encode()) == expected


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        (b"1", 1_000_000_000),
        (b"1.5", 1_500_000_000),
        (b"1.1234567899", 1_123_456_789),
        (b"5.", 5_000_000_000),
        (b"-1.25", -1_250_000_000),
        (b"-0.5", -500_000_000),
        (b"+7", 7_000_000_000),
    ],
)
def test_pax_times(text: bytes, nanoseconds: int) -> None:
    assert parse_time(text) == nanoseconds


@pytest.mark.parametrize("text", [b"", b".5", b"1.x", b" 1", b"1_0", b"9223372036854775808"])
def test_what_is_no_time_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a|too large"):
        parse_time(text)


def test_times_beyond_what_the_kernel_takes_become_1970() -> None:
    assert [bound_time(value) for value in (-1, 0, (1 << 63) - 1, 1 << 63)] == [0, 0, (1 << 63) - 1, 0]


@pytest.mark.parametrize("text", [b"", b"1 ", b"0x1", b"1" * 5000])
def test_decimals_are_strict(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a number|too large"):
        parse_decimal(text)


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        (b"", b"."),
        (b"//a", b"/a"),
        (b"a//b/", b"a/b"),
        (b"../a", b"../a"),
        (b"/../a", b"/a"),
        (b"a/../..", b".."),
    ],
)
def test_names_are_cleaned_as_go_does(name: bytes, cleaned: bytes) -> None:
    assert clean(name) == cleaned


def test_joining() -> None:
    assert [join(b"", b""), join(b"", b"a/"), join(b"a", b""), join(b"/", b"../b")] == [
        b"",
        b"a",
        b"a",
        b"/b",
    ]


@given(st.dictionaries(st.binary(min_size=1, max_size=9), st.binary(max_size=90), max_size=5))
def test_pax_records_come_back(records: dict[bytes, bytes]) -> None:
    records = {
        key: value
        for key, value in records.items()
        if b"=" not in key
        and b"\0" not in key
        and not key.startswith(b"GNU.sparse")
        # As Go's archive/tar has it; hypothesis knows these names from our own source.
        and not (key in (b"path", b"linkpath", b"uname", b"gname") and b"\0" in value)
    }
    data = b""
    for key, value in records.items():
        length = len(key) + len(value) + 3
        while len(str(length)) + len(key) + len(value) + 3 != length:
            length = len(str(length)) + len(key) + len(value) + 3
        data += b"%d %b=%b\n" % (length, key, value)
    assert parse_records(data) == records


@pytest.mark.parametrize(
    "data",
    [
        b"5 a=b\n",
        b"8 a=bc\n",
        b"6 a=b",
        b"6 abc\n",
        b"x a=b\n",
        b"6  a=b\n",
        b"99 path=x\n",
        b"10 path=\0\n",
        b"14 linkpath=\0\n",
    ],
)
def test_broken_pax_records_are_refused(data: bytes) -> None:
    with pytest.raises(Refused):
        parse_records(data)


@pytest.mark.parametrize("flip", [0, 120, 150, 300])
def test_a_header_with_a_wrong_checksum_is_refused(flip: int) -> None:
    block = bytearray(tarfile.TarInfo("some/file").tobuf(tarfile.USTAR_FORMAT))
    block[flip] ^= 1
    with pytest.raises(Refused):
        parse_header(bytes(block))


@pytest.mark.parametrize("name", ["a", "é" * 20])
def test_checksums_of_ascii_and_other_headers(name: str) -> None:
    block = tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT)
    assert parse_header(block).name == name.encode()


def archive_of(names: list[str], contents: list[bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in zip(names, contents, strict=False):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.mtime = 1.5
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


@given(st.lists(st.binary(max_size=3000), min_size=1, max_size=5), CUTS)
def test_an_archive_reads_the_same_in_any_pieces(contents: list[bytes], cuts: list[int]) -> None:
    names = [f"{'long/' * 30}{number}" for number in range(len(contents))]
    tar = archive_of(names, contents)
    stream = Stream(source(pieces(tar, cuts)))
    archive = Archive(stream)
    found = []
    while (header := archive.next()) is not None:
        found.append((header.name.decode(), header.size, header.mtime))
    archive.drain()
    assert found == [
        (name, len(content), 1_500_000_000) for name, content in zip(names, contents, strict=True)
    ]


@given(st.lists(st.binary(max_size=2000), min_size=1, max_size=4), CUTS, st.booleans())
def test_all_zstd_frames_are_read_and_their_end_is_known(
    contents: list[bytes], cuts: list[int], skippable: bool
) -> None:
    frames = [zstandard.ZstdCompressor(write_checksum=skippable).compress(content) for content in contents]
    gap = b"\x50\x2a\x4d\x18" + (3).to_bytes(4, "little") + b"abc" if skippable else b""
    blob = gap.join(frames) + gap
    assert read_all(open_inflater(source(pieces(blob, cuts)), detect=True, limits=Limits())) == b"".join(
        contents
    )


@given(st.binary(min_size=1, max_size=2000), st.integers(1, 1 << 16))
def test_a_zstd_stream_cut_anywhere_is_refused(content: bytes, cut: int) -> None:
    blob = zstandard.ZstdCompressor(write_checksum=True).compress(content)
    short = blob[: max(8, cut % len(blob))]
    if len(short) == len(blob):
        return
    walker = FrameWalker(1 << 25)
    walker.feed(short)
    with pytest.raises(Refused):
        walker.finish()


def test_a_large_zstd_window_is_left_to_others() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    blob = compressor.compress(random.Random(1).randbytes(300_000)) + compressor.flush()
    with pytest.raises(Refused) as refused:
        FrameWalker(32 << 20).feed(blob)
    assert refused.value.refusal.reason == "Unsupported"
    assert not refused.value.refusal.final


@given(st.lists(st.binary(max_size=2000), min_size=1, max_size=4), CUTS)
def test_all_gzip_members_are_read(contents: list[bytes], cuts: list[int]) -> None:
    blob = b"".join(igzip.compress(content) for content in contents)
    assert read_all(open_inflater(source(pieces(blob, cuts)), detect=True, limits=Limits())) == b"".join(
        contents
    )


@pytest.mark.parametrize(
    "change", [lambda blob: blob[:-1], lambda blob: blob + b"x" * 20, lambda blob: blob + bytes(9)]
)
def test_gzip_that_is_cut_or_goes_on_is_refused(change: Callable[[bytes], bytes]) -> None:
    blob = change(igzip.compress(b"some content" * 100))
    with pytest.raises(Refused):
        read_all(open_inflater(source([blob]), detect=True, limits=Limits()))


def test_a_blob_of_the_plain_type_is_never_decompressed() -> None:
    blob = igzip.compress(b"x")
    assert read_all(open_inflater(source([blob]), detect=False, limits=Limits())) == blob


def test_a_polite_worker_waits_for_the_disk_now_and_then() -> None:
    synced: list[int] = []
    hurried = False
    pace = Pace(7, 100, lambda: hurried, synced.append)
    for _ in range(25):
        pace.wrote(10)
    assert synced == [7, 7]
    hurried = True
    for _ in range(25):
        pace.wrote(10)
    assert synced == [7, 7], "somebody waits"
