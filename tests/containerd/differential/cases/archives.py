"""How a tar begins, ends and is put together: end marks, checksums, number fields, PAX records, sparse files."""

from tests.containerd.differential.cases.table import NO, OK, Case, Expected, both, chain, plain
from tests.containerd.differential.layers import OCI_TAR, Layer
from tests.containerd.differential.tarbytes import (
    BLOCK,
    GNU,
    USTAR,
    V7,
    base256,
    directory,
    entry,
    file,
    global_header,
    gnu_link,
    gnu_name,
    padded,
    pax_header,
    record,
    symlink,
    tar,
)

ZEROS = bytes(BLOCK)
FULL = file("n", b"x" * BLOCK)
RECORDS = {
    # name: (content of the extended header, outcome)
    "length-short": (b"5 a=b\n", NO),
    "length-long": (b"9 path=p\n", OK),
    "length-longer-than-all": (b"99 path=p\n", NO),
    "length-zero": (b"0 path=p\n", NO),
    "length-negative": (b"-9 path=p\n", NO),
    "length-word": (b"x path=p\n", NO),
    "length-huge": (b"99999999999999999999 path=p\n", NO),
    "length-plus": (b"+11 path=p\n", OK),
    "length-zeros": (b"011 path=p\n", OK),
    "no-length": (b"path=p\n", NO),
    "no-blank": (b"9path=pp\n", NO),
    "no-newline": (b"9 path=p ", NO),
    "no-equals": (b"9 path:p\n", NO),
    "no-key": (b"5 =p\n", NO),
    "key-blank": (b"6 = =\n", NO),
    "only-newline": (b"3 \n", NO),
    "empty": (b"", OK),
    "two-blanks": (b"11  path=p\n", OK),
    "trailing-nul": (b"9 path=p\n\0", NO),
    "garbage-after": (b"9 path=p\nx", NO),
    "unknown-key": (record("org.example", "x"), OK),
    "unknown-key-nul": (record("org\0example", "x"), NO),
    "unknown-value-nul": (record("org.example", "a\0b"), OK),
    "upper-case-key": (record("PATH", "p"), OK),
    "key-with-blank": (record("a b", "p"), OK),
    "size-zero": (record("size", "0"), NO),
    "size-word": (record("size", "x"), NO),
    "size-negative": (record("size", "-1"), NO),
    "size-empty": (record("size", ""), OK),
    "size-huge": (record("size", "9223372036854775807"), NO),
    "size-plus": (record("size", "+4"), OK),
    "comment": (record("comment", "x" * 5000), OK),
    "thousand-records": (b"".join(record(f"k{number}", "v") for number in range(1000)), OK),
}


def sparse(data: bytes, records: dict[str, str], *, size: int | None = None) -> bytes:
    return entry("GNUSparseFile.0/n", "0", data, pax=records, size=size)


V10 = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "sparse"}
V01 = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "sparse"}


def map10(*numbers: int) -> bytes:
    return padded(b"".join(b"%d\n" % number for number in (len(numbers) // 2, *numbers)))


def v10(size: int, *numbers: int, data: bytes = b"", **more: str) -> bytes:
    return sparse(map10(*numbers) + data, V10 | {"GNU.sparse.realsize": str(size)} | more)


def v01(size: int, text: str, data: bytes = b"", count: int | None = None) -> bytes:
    blocks = str(len(text.split(",")) // 2 if text and count is None else count or 0)
    return sparse(
        data, V01 | {"GNU.sparse.size": str(size), "GNU.sparse.numblocks": blocks, "GNU.sparse.map": text}
    )


def v00(*pairs: tuple[str, str], size: int, data: bytes = b"") -> bytes:
    records = [("GNU.sparse.size", str(size)), ("GNU.sparse.numblocks", str(len(pairs) // 2)), *pairs]
    return entry("sparse", "0", data, pax=records)


OFFSET, BYTES = "GNU.sparse.offset", "GNU.sparse.numbytes"

CASES: list[Case] = [
    *both("end-usual", tar(file("n"))),
    *both("end-missing", tar(file("n"), end=b"")),
    *both("end-one-block", tar(file("n"), end=ZEROS)),
    *both("end-one-block-then-entry", tar(file("n"), ZEROS, file("m")), NO),
    *both("end-then-entry-ignored", tar(file("n"), ZEROS * 2, file("m"))),
    *both("end-then-garbage-ignored", tar(file("n"), end=ZEROS * 2 + b"garbage" * 100)),
    *both("end-then-short-garbage", tar(file("n"), end=ZEROS * 2 + b"g")),
    *both("end-padded-to-10k", tar(file("n"), end=bytes(10_240))),
    *both("end-padded-long", tar(file("n"), end=bytes(300_000))),
    *both("end-padding-missing", tar(file("n", b"x", pad=False), end=b"")),
    *both("end-padding-short", tar(file("n", b"x", pad=False), end=bytes(100))),
    *both("end-data-short", tar(file("n", b"x" * 600)[:1200], end=b"")),
    *both("end-data-short-in-block", tar(file("n", b"x" * 600)[:900], end=b""), NO),
    *both("end-data-missing", tar(file("n", b"", size=600), end=b""), NO),
    *both("end-data-missing-of-skipped", tar(directory("d"), entry(".wh.x", data=b"", size=600), end=b""), NO),
    *both("end-header-short", tar(file("n", b""), file("m", b"")[:300], end=b""), NO),
    *both("end-header-one-byte", tar(file("n", b""), b"m", end=b""), NO),
    *both("end-second-zero-block-short", tar(file("n", b""), ZEROS, bytes(100), end=b""), NO),
    *both("end-special-short", tar(file("n"), pax_header({"path": "p"})[:515], end=b""), NO),
    *both("empty", b""),
    *both("empty-end-only", tar()),
    *both("empty-one-block", ZEROS),
    *both("empty-one-byte", b"\0", NO),
    *both("empty-garbage", b"not a tar at all", NO),
    *both("garbage-block", b"\x01" * BLOCK, NO),
    *both("text-block", b"a" * 1024, NO),
    *both("checksum-wrong", tar(entry("n", fields={"checksum": b"000001\0 "})), NO),
    *both("checksum-empty", tar(entry("n", fields={"checksum": bytes(8)})), NO),
    *both("checksum-word", tar(entry("n", fields={"checksum": b"checksum"})), NO),
    *both("checksum-signed", tar(entry(b"n\xff\xfe", signed=True))),
    *both("checksum-unsigned", tar(entry(b"n\xff\xfe"))),
    *both("checksum-blank-first", tar(entry("n")[:148] + b" " + entry("n")[149:])),
    *both("magic-ustar-blank", tar(entry("n", magic=b"ustar  \0"))),
    *both("magic-ustar-other-version", tar(entry("n", magic=b"ustar\x0011"))),
    *both("magic-v7", tar(entry("n", magic=V7))),
    *both("magic-garbage", tar(entry("n", magic=b"garbage!"))),
    *both("size-base256", tar(entry("n", data=b"data", fields={"size": base256(4, 12)}))),
    *both("size-octal-without-nul", tar(entry("n", data=b"data", fields={"size": b"000000000004"}))),
    *both("size-blank-end", tar(entry("n", data=b"data", fields={"size": b"00000000004 "}))),
    *both("size-blanks", tar(entry("n", data=b"", fields={"size": b"            "}))),
    *both("size-words", tar(entry("n", data=b"", fields={"size": b"4 4\0        "})), NO),
    *both("size-base256-negative", tar(entry("n", data=b"", fields={"size": base256(-4, 12)})), NO),
    *both("size-base256-huge", tar(entry("n", data=b"", fields={"size": b"\x80" + b"\xff" * 11})), NO),
    *both("size-huge", tar(entry("n", data=b"x", size=1 << 62)), NO),
    *both("uid-base256", tar(entry("n", fields={"uid": base256(70_000_000, 8)}))),
    *both("uid-base256-all-ones", tar(entry("n", fields={"uid": b"\xff" * 8}))),
    *both("uid-garbage", tar(entry("n", fields={"uid": b"notanum\0"})), NO),
    *both("uid-minus", tar(entry("n", fields={"uid": b"-000001\0"})), NO),
    *both("uid-prefix-0o", tar(entry("n", fields={"uid": b"0o00017\0"})), NO),
    *both("uid-underscore", tar(entry("n", fields={"uid": b"00_0017\0"})), NO),
    *both("mtime-garbage", tar(entry("n", fields={"mtime": b"garbage\0"})), NO),
    *both("mtime-empty", tar(entry("n", fields={"mtime": bytes(12)}))),
    *both("mtime-tab", tar(entry("n", fields={"mtime": b"\t1\0"})), NO),
    *both("major-garbage-on-file", tar(entry("n", fields={"major": b"garbage\0"})), NO),
    *both("major-garbage-on-v7-ignored", tar(entry("n", magic=V7, fields={"major": b"garbage\0"}))),
    *both("major-empty", tar(entry("n", fields={"major": bytes(8), "minor": bytes(8)}))),
    *both("gnu-ctime-garbage", tar(entry("n", magic=GNU, fields={"gnu_ctime": b"garbage\0"}))),
    *both("gnu-ctime-garbage-with-atime", tar(entry("n", magic=GNU, fields={
        "gnu_atime": b"13734553400\0", "gnu_ctime": b"garbage\0"}))),
    *both("star-ctime-garbage", tar(entry("n", magic=USTAR, fields={
        "star_trailer": b"tar\0", "star_ctime": b"garbage\0"})), NO),
    *(case for name, (content, outcome) in RECORDS.items()
      for case in both(f"pax-{name}", tar(pax_header(content) + file("n"), file("m")), outcome)),
    *both("pax-size-larger", tar(entry("n", data=b"x" * 1000, size=0, pax={"size": "1000"}))),
    *both("pax-size-smaller", tar(entry("n", data=b"x" * 100, size=5000, pax={"size": "100"}), file("m"))),
    *both("pax-size-on-directory", tar(directory("n", pax={"size": "5000"}), file("m"))),
    *both("pax-header-for-itself", tar(pax_header({"size": "0"}) + pax_header({"path": "p"}) + file("n"))),
    *both("pax-header-1-mib", tar(pax_header(record("comment", "x" * ((1 << 20) - 19))) + file("n"))),
    *both("pax-header-over-1-mib", tar(pax_header(record("comment", "x" * (1 << 20))) + file("n")), NO),
    *both("pax-header-size-lies", tar(entry("x", "x", b"", size=1 << 40), file("n")), NO),
    *both("pax-header-negative-size", tar(entry("x", "x", b"", fields={"size": base256(-1, 12)}), file("n")), NO),
    *both("gnu-name-over-1-mib", tar(gnu_name("p" * (1 << 20)) + file("n")), NO),
    *both("gnu-link-over-1-mib", tar(gnu_link("p" * (1 << 20)) + symlink("n", "t")), NO),
    *both("global-header-over-1-mib", tar(global_header(record("comment", "x" * (1 << 20))), file("n")), NO),
    *both("pax-in-gnu-entry", tar(entry("n", magic=GNU, pax={"path": "p", "mtime": "1400000000.5"}))),
    *both("pax-in-v7-entry", tar(entry("n", magic=V7, pax={"path": "p"}))),
    *both("pax-header-v7-magic", tar(entry("x", "x", record("path", "p"), magic=V7), file("n"))),
    *both("long-name-then-pax-then-long-link", tar(
        gnu_name("p"), pax_header({"linkpath": "a"}), gnu_link("b"), symlink("n", "c"))),
    *both("sparse-1.0", tar(v10(4096, 0, 512, 2048, 512, data=b"a" * 512 + b"b" * 512), file("m"))),
    *both("sparse-1.0-hole-at-end", tar(v10(9000, 0, 512, 9000, 0, data=b"a" * 512))),
    *both("sparse-1.0-hole-only", tar(v10(100_000, 100_000, 0))),
    *both("sparse-1.0-empty-map", tar(v10(3000))),
    *both("sparse-1.0-empty-file", tar(v10(0))),
    *both("sparse-1.0-odd-parts", tar(v10(2000, 7, 100, 500, 300, data=b"a" * 100 + b"b" * 300))),
    *both("sparse-1.0-many-parts", tar(v10(300_000, *[n for i in range(200) for n in (i * 1000, 3)], data=b"abc" * 200))),
    *both("sparse-1.0-overlap", tar(v10(4096, 0, 512, 100, 512, data=b"a" * 1024)), NO),
    *both("sparse-1.0-beyond", tar(v10(600, 0, 512, 512, 512, data=b"a" * 1024)), NO),
    *both("sparse-1.0-backwards", tar(v10(4096, 2048, 512, 0, 512, data=b"a" * 1024)), NO),
    *both("sparse-1.0-data-short", tar(v10(4096, 0, 512, 2048, 512, data=b"a" * 512)), NO),
    *both("sparse-1.0-data-long", tar(v10(4096, 0, 512, data=b"a" * 1024)), NO),
    *both("sparse-1.0-map-cut", tar(sparse(padded(b"2\n0\n512\n"), V10 | {"GNU.sparse.realsize": "4096"})), NO),
    *both("sparse-1.0-map-word", tar(sparse(padded(b"1\nx\n512\n") + b"a" * 512, V10 | {"GNU.sparse.realsize": "512"})), NO),
    *both("sparse-1.0-map-negative", tar(v10(4096, -1, 512, data=b"a" * 512)), NO),
    *both("sparse-1.0-count-huge", tar(sparse(padded(b"99999999999\n"), V10 | {"GNU.sparse.realsize": "9"})), NO),
    *both("sparse-1.0-count-negative", tar(sparse(padded(b"-1\n"), V10 | {"GNU.sparse.realsize": "9"})), NO),
    *both("sparse-1.0-no-name", tar(sparse(map10(0, 4) + b"data", {
        "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "4"}))),
    *both("sparse-1.0-no-size", tar(sparse(map10(0, 4) + b"data", V10))),
    *both("sparse-1.0-size-word", tar(sparse(map10(0, 4) + b"data", V10 | {"GNU.sparse.realsize": "x"})), NO),
    *both("sparse-1.0-negative-size", tar(v10(-1)), NO),
    *both("sparse-1.0-on-directory", tar(directory("n", pax=V10 | {"GNU.sparse.realsize": "0"})), NO),
    *both("sparse-1.0-with-attributes", tar(sparse(map10(0, 4) + b"data", V10 | {
        "GNU.sparse.realsize": "9000", "mtime": "1400000000.25", "uid": "7", "SCHILY.xattr.user.a": "1"}))),
    *both("sparse-1.0-in-skipped-entry", tar(sparse(map10(0, 4) + b"data", V10 | {
        "GNU.sparse.name": ".wh.gone", "GNU.sparse.realsize": "9000"}), file("m"))),
    *both("sparse-0.1", tar(v01(4096, "0,512,2048,512", b"a" * 512 + b"b" * 512), file("m"))),
    *both("sparse-0.1-empty-map", tar(v01(3000, ""))),
    *both("sparse-0.1-odd-map", tar(v01(4096, "0,512,2048", b"a" * 512, 2)), NO),
    *both("sparse-0.1-count-wrong", tar(v01(4096, "0,512", b"a" * 512, 2)), NO),
    *both("sparse-0.1-overlap", tar(v01(4096, "0,512,1,512", b"a" * 1024)), NO),
    *both("sparse-0.1-words", tar(v01(4096, "a,b", b"a" * 512)), NO),
    *both("sparse-0.1-without-version", tar(entry("n", data=b"a" * 512, pax={
        "GNU.sparse.size": "4096", "GNU.sparse.numblocks": "1", "GNU.sparse.map": "0,512"}))),
    *both("sparse-0.0", tar(v00((OFFSET, "0"), (BYTES, "512"), (OFFSET, "2048"), (BYTES, "512"),
                                size=4096, data=b"a" * 1024), file("m"))),
    *both("sparse-0.0-order", tar(v00((BYTES, "512"), (OFFSET, "0"), size=4096, data=b"a" * 512)), NO),
    *both("sparse-0.0-comma", tar(v00((OFFSET, "0,1"), (BYTES, "512"), size=4096, data=b"a" * 512)), NO),
    *both("sparse-unknown-version", tar(entry("n", data=b"data", pax={
        "GNU.sparse.major": "2", "GNU.sparse.minor": "0"}))),
    *both("sparse-major-only", tar(entry("n", data=b"data", pax={"GNU.sparse.major": "1"}))),
    *both("sparse-old-gnu", tar(entry("n", "S", b"a" * 512, magic=GNU, fields={
        "gnu_sparse": b"00000000000\x0000000001000\0", "gnu_real_size": b"00000001000\0"})), NO),
    *both("sparse-old-gnu-type-in-ustar", tar(entry("n", "S", b"a" * 512)), NO),
    chain("plain-oci-type-takes-a-tar", Layer(tar(file("n")), OCI_TAR)),
    chain("unpacked-names-over-a-limit", tar(file("x/../" * 1000 + "n")), expected=Expected.LIMITED),
    chain("many-small-files", tar(*(file(f"d{number % 7}/n{number}", b"%d" % number) for number in range(2000)))),
    chain("upper-many-small-files", plain(tar(directory("d1", 0o700, uid=5))),
          tar(*(file(f"d{number % 7}/n{number}", b"%d" % number) for number in range(500)))),
]  # fmt: skip
