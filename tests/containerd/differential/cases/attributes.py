"""Owner, mode, times and extended attributes."""

import struct

from tests.containerd.differential.cases.table import LOWER, NO, OK, Expected, both, chain
from tests.containerd.differential.tarbytes import (
    GNU,
    USTAR,
    V7,
    base256,
    block,
    char,
    directory,
    entry,
    fifo,
    file,
    hardlink,
    symlink,
    tar,
)

MODES = [0, 0o1, 0o777, 0o1777, 0o2755, 0o4755, 0o6711, 0o7777, 0o100644, 0o40755, 0o170644, 0o2000644]
OWNERS = [0, 1, 1000, 0o7777777, 0o10000000, (1 << 31) - 1, 1 << 31, (1 << 32) - 2, (1 << 32) - 1, 1 << 32]
OWNERS += [(1 << 32) + 5, -1, -2, -(1 << 31), (1 << 62) + 1]
TIMES = {
    "zero": 0,
    "one": 1,
    "minus-one": -1,
    "before-1901": -3_000_000_000,
    "2038": (1 << 31) - 1,
    "2038-and-one": 1 << 31,
    "2106": 1 << 32,
    "2261": 9_200_000_000,
    "2262": 9_223_372_036,
    "2262-and-one": 9_223_372_037,
    "2446": 15_032_385_535,
    "far": 1 << 40,
    "farther": 1 << 55,
    "farthest": (1 << 63) - 1,
    "nearest": -(1 << 63),
}
PAX_TIMES = {
    "fraction": "1500000000.123456789",
    "fraction-short": "1500000000.5",
    "fraction-long": "1500000000.1234567899999",
    "fraction-tiny": "1500000000.0000000001",
    "fraction-empty": "1500000000.",
    "fraction-only": ".5",
    "negative": "-1",
    "negative-fraction": "-1.5",
    "negative-zero": "-0",
    "negative-zero-fraction": "-0.5",
    "zero": "0",
    "plus": "+1500000000",
    "leading-zeros": "0001500000000",
    "blank": " 1500000000",
    "word": "now",
    "exponent": "1e9",
    "hex": "0x10",
    "comma": "1500000000,5",
    "two-points": "1500000000.5.5",
    "fraction-letter": "1500000000.5x",
    "fraction-letter-late": "1500000000.123456789x",
    "underscore": "1_500",
    "2262": "9223372036.854775807",
    "2262-and-more": "9223372036.854775808",
    "huge": "9223372036854775807",
    "too-huge": "9223372036854775808",
    "digits": "1" * 60,
    "minus": "-",
    "arabic-digits": "\u0661\u0662",
}
REFUSED_TIMES = {
    "fraction-only", "blank", "word", "exponent", "hex", "comma", "two-points", "fraction-letter",
    "fraction-letter-late", "underscore", "too-huge", "digits", "minus", "arabic-digits",
}  # fmt: skip


def acl(*entries: tuple[int, int, int]) -> bytes:
    """POSIX access list as the kernel stores it: tag, permissions, id."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *one) for one in entries)


ACL = acl((1, 6, 0xFFFFFFFF), (2, 7, 1000), (4, 4, 0xFFFFFFFF), (0x10, 7, 0xFFFFFFFF), (0x20, 4, 0xFFFFFFFF))
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
SPECIALS = {
    "directory": directory,
    "symlink": lambda name, **more: symlink(name, "target", **more),
    "char": char,
    "block": block,
    "fifo": fifo,
}


def acl_case(name: str, key: str, value: bytes) -> tuple[str, bytes]:
    return name, tar(file("n", xattrs={key: value}), directory("m", xattrs={key: value}))


XATTRS = {
    "user": ("user.key", b"value"),
    "user-empty": ("user.key", b""),
    "user-binary": ("user.key", b"\0\xff\n"),
    "user-not-utf8-key": ("user.k\udcff", b"v"),
    "user-equals-in-value": ("user.key", b"a=b"),
    "user-dots": ("user.a.b.c", b"v"),
    "trusted-skipped": ("trusted.key", b"v"),
    "trusted-opaque-skipped": ("trusted.overlay.opaque", b"y"),
    "trusted-redirect-skipped": ("trusted.overlay.redirect", b"/etc"),
    "selinux": ("security.selinux", b"system_u:object_r:container_file_t:s0\0"),
    "security-other": ("security.other", b"v"),
    "security-ima": ("security.ima", b"\x04\x02"),
}
REFUSED_XATTRS = {
    "user-without-name": ("user.", b"v"),
    "user-large": ("user.key", b"v" * 65537),
    "name-long": ("user." + "k" * 255, b"v"),
    "empty-name": ("", b"v"),
    "capability-broken": ("security.capability", b"broken"),
}
SKIPPED_XATTRS = {
    "no-namespace": ("key", b"v"),
    "unknown-namespace": ("other.key", b"v"),
    "system-unknown": ("system.other", b"v"),
    "user-dotless": ("user", b"v"),
    "acl-broken": ("system.posix_acl_access", b"broken"),
}

CASES = [
    *(
        case
        for mode in MODES
        for case in both(
            f"mode-{mode:o}",
            tar(
                file("n", mode=mode, uid=5, gid=6),
                file("root-owned", mode=mode),
                directory("d", mode, uid=5),
                directory("e", mode),
                fifo("p", mode=mode),
                char("c", mode=mode, uid=5),
            ),
        )
    ),
    *both("mode-of-symlink-ignored", tar(symlink("n", "t", fields={"mode": b"0000000\0"}))),
    *both("mode-negative", tar(file("n", fields={"mode": base256(-1, 8)}))),
    *both("mode-large", tar(file("n", fields={"mode": base256(1 << 40, 8)}))),
    *both("mode-not-octal", tar(file("n", fields={"mode": b"0000999\0"})), NO),
    *both("mode-blank", tar(file("n", fields={"mode": b"        "}))),
    *both("mode-padded-with-blanks", tar(file("n", fields={"mode": b"  644 \0 "}))),
    *both("mode-without-nul", tar(file("n", fields={"mode": b"00000644"}))),
    *both("mode-empty", tar(file("n", fields={"mode": bytes(8)}))),
    *both("mode-nul-inside", tar(file("n", fields={"mode": b"64\x004\0\0\0\0"})), OK),
    *both("mode-letter", tar(file("n", fields={"mode": b"00644a\0\0"})), NO),
    *(
        case
        for uid in OWNERS
        for case in both(f"owner-{uid}", tar(directory("d", uid=uid, gid=uid), file("d/n", uid=uid, gid=uid)))
    ),
    *(
        case
        for uid in (0, -1, 1000, 1 << 32)
        for case in both(f"owner-of-symlink-{uid}", tar(symlink("n", "t", uid=uid, gid=uid)))
    ),
    *both("owner-pax", tar(file("n", pax={"uid": "4000000000", "gid": "3000000000"}))),
    *both("owner-pax-beats-header", tar(file("n", uid=5, gid=6, pax={"uid": "7", "gid": "8"}))),
    *both("owner-pax-empty", tar(file("n", uid=5, gid=6, pax={"uid": "", "gid": ""}))),
    *both("owner-pax-negative", tar(file("n", pax={"uid": "-1", "gid": "-2"}))),
    *both("owner-pax-plus", tar(file("n", pax={"uid": "+7"}))),
    *both("owner-pax-zeros", tar(file("n", pax={"uid": "007"}))),
    *both("owner-pax-word", tar(file("n", pax={"uid": "root"})), NO),
    *both("owner-pax-fraction", tar(file("n", pax={"uid": "7.0"})), NO),
    *both("owner-pax-too-large", tar(file("n", pax={"uid": "9223372036854775808"})), NO),
    *both("owner-pax-large", tar(file("n", pax={"uid": "9223372036854775807"}))),
    *both("owner-names-unused", tar(file("n", fields={"uname": b"daemon", "gname": b"mail"}))),
    *both("owner-names-pax-unused", tar(file("n", pax={"uname": "daemon", "gname": "mail"}))),
    *both("owner-names-pax-nul", tar(file("n", pax={"uname": "a\0b"})), NO),
    *both("owner-unchanged-in-setgid", tar(directory("s", 0o2775, gid=77), file("s/n", gid=-1))),
    *both("group-in-setgid", tar(directory("s", 0o2775, gid=77), file("s/n"), directory("s/d"), file("s/d/m"))),
    *both("group-in-setgid-implicit", tar(directory("s", 0o2775, gid=77), file("s/d/e/m"))),
    *(
        case
        for name, value in TIMES.items()
        for case in both(
            f"time-{name}",
            tar(file("n", mtime=value), directory("d", mtime=value), symlink("l", "t", mtime=value)),
        )
    ),
    *(
        case
        for name, text in PAX_TIMES.items()
        for case in both(
            f"pax-mtime-{name}",
            tar(file("n", pax={"mtime": text}), directory("d", pax={"mtime": text})),
            NO if name in REFUSED_TIMES else OK,
        )
    ),
    *both("pax-atime", tar(file("n", pax={"atime": "1600000000.25"}), directory("d", pax={"atime": "1600000000"}))),
    *both("pax-atime-older-than-mtime", tar(file("n", pax={"atime": "1400000000"}))),
    *both("pax-atime-negative", tar(file("n", mtime=-5, pax={"atime": "-1"}))),
    *both("pax-atime-far", tar(file("n", pax={"atime": "9300000000"}))),
    *both("pax-atime-beyond-the-clock", tar(file("n", pax={"atime": "9223371974719179008"}))),
    *both("pax-atime-at-the-clocks-end", tar(file("n", pax={"atime": "9223371974719179007"}))),
    *both("pax-atime-beyond-the-clock-of-directory", tar(directory("n", pax={"atime": "9223372036854775807"}))),
    *both("pax-mtime-beyond-the-clock", tar(file("n", pax={"mtime": "9223371974719179008", "atime": "1600000000"}))),
    *both("pax-both-beyond-the-clock",
          tar(file("n", pax={"mtime": "9223371974719179008", "atime": "9223371974719179009"}))),
    *both("pax-atime-word", tar(file("n", pax={"atime": "word"})), NO),
    *both("pax-ctime", tar(file("n", pax={"ctime": "1600000000"}))),
    *both("pax-ctime-word", tar(file("n", pax={"ctime": "word"})), NO),
    *both("pax-creationtime-ignored", tar(file("n", pax={"LIBARCHIVE.creationtime": "word"}))),
    *both("gnu-atime", tar(entry("n", magic=GNU, fields={"gnu_atime": b"13734553400\0"}))),
    *both("gnu-ctime", tar(entry("n", magic=GNU, fields={"gnu_ctime": b"13734553400\0"}))),
    *both("gnu-atime-base256", tar(entry("n", magic=GNU, fields={"gnu_atime": base256(1_600_000_000, 12)}))),
    *both("gnu-atime-broken", tar(entry("n", magic=GNU, fields={"gnu_atime": b"xyz\0"}))),
    *both("gnu-atime-beaten-by-pax", tar(entry("n", magic=GNU, pax={"atime": "1650000000"},
                                                fields={"gnu_atime": b"13734553400\0"}))),
    *both("star-atime", tar(entry("n", magic=USTAR, fields={"star_trailer": b"tar\0",
                                                            "star_atime": b"13734553400\0"}))),
    *both("star-atime-broken", tar(entry("n", magic=USTAR, fields={"star_trailer": b"tar\0",
                                                                   "star_atime": b"9\0"})), NO),
    *both("v7-header", tar(entry("n", magic=V7, uid=5, mode=0o640))),
    *both("time-of-directory-set-last", tar(directory("d", mtime=1_000_000_000), file("d/n"), directory("d/e"))),
    *both("time-of-directory-listed-twice", tar(directory("d", mtime=1_000_000_000), file("d/n"),
                                                directory("d", mtime=1_400_000_000))),
    *both("time-of-directory-listed-after", tar(file("q/n"), directory("q", 0o700, mtime=1_000_000_000, uid=4))),
    *both("directory-then-file-takes-its-time", tar(directory("q", mtime=1_000_000_000), file("q"))),
    *both("directory-then-link-to-file", tar(file("n"), directory("q", mtime=1_000_000_000), symlink("q", "n"))),
    *both("directory-then-link-to-directory",
          tar(directory("m"), directory("q", mtime=1_000_000_000), symlink("q", "m"))),
    *both("directory-then-dangling-link", tar(directory("q"), symlink("q", "nowhere")), NO),
    *both("directory-then-link-to-root", tar(directory("q", mtime=1_000_000_000), symlink("q", "/"))),
    *both("directory-below-then-file", tar(directory("q/r"), file("q")), NO),
    *both("directory-then-fifo", tar(directory("q", mtime=1_000_000_000), fifo("q"))),
    *(
        case
        for name, (key, value) in (XATTRS | SKIPPED_XATTRS).items()
        for case in both(f"xattr-{name}", acl_case(name, key, value)[1])
    ),
    *(
        case
        for name, (key, value) in REFUSED_XATTRS.items()
        for case in both(f"xattr-{name}", tar(file("n", xattrs={key: value})), NO)
    ),
    *(
        case
        for kind, make in SPECIALS.items()
        for name, (key, value) in XATTRS.items()
        for case in both(f"xattr-{name}-on-{kind}", tar(make("n", xattrs={key: value})))
    ),
    *both("xattr-acl", tar(file("n", mode=0o640, xattrs={"system.posix_acl_access": ACL}))),
    *both("xattr-acl-mode-rewrites-mask", tar(file("n", mode=0o600, xattrs={"system.posix_acl_access": ACL}))),
    *both("xattr-acl-on-directory", tar(directory("d", 0o751, xattrs={"system.posix_acl_access": ACL}))),
    *both("xattr-acl-on-symlink", tar(symlink("n", "t", xattrs={"system.posix_acl_access": ACL}))),
    *both("xattr-default-acl-inherited", tar(
        directory("d", xattrs={"system.posix_acl_default": ACL}), file("d/n", mode=0o666), directory("d/e"),
        file("d/i/m"), symlink("d/l", "n"), fifo("d/p", mode=0o666))),
    *both("xattr-default-acl-on-file", tar(file("n", xattrs={"system.posix_acl_default": ACL})), NO),
    *both("xattr-default-acl-after-children", tar(file("d2/n"), directory("d2", xattrs={
        "system.posix_acl_default": ACL}), file("d2/m"))),
    *both("xattr-capability", tar(file("n", mode=0o755, xattrs={"security.capability": CAPABILITY}))),
    *both("xattr-capability-other-owner", tar(file("n", uid=5, xattrs={"security.capability": CAPABILITY}))),
    *both("xattr-capability-and-setuid",
          tar(file("n", mode=0o4755, uid=5, xattrs={"security.capability": CAPABILITY}))),
    *both("xattr-capability-lost-by-hardlink",
          tar(file("n", mode=0o755, xattrs={"security.capability": CAPABILITY}), hardlink("m", "n", mode=0o755))),
    *both("xattr-capability-on-hardlink",
          tar(file("n", mode=0o755), hardlink("m", "n", mode=0o755, xattrs={"security.capability": CAPABILITY}))),
    *both("xattr-several", tar(file("n", xattrs={"user.a": "1", "user.b": "2", "security.c": "3"}))),
    *both("xattr-same-key-twice", tar(file("n", pax=[("SCHILY.xattr.user.a", "1"), ("SCHILY.xattr.user.a", "2")]))),
    *both("xattr-libarchive-ignored", tar(file("n", pax={"LIBARCHIVE.xattr.user.a": "MQ"}))),
    *both("xattr-rht-ignored", tar(file("n", pax={"RHT.security.selinux": "x"}))),
    *both("xattr-key-nul", tar(file("n", pax={"SCHILY.xattr.user.a\0b": "1"})), NO),
    *both("xattr-merged-on-directories", tar(
        directory("q", xattrs={"user.a": "1"}), directory("q", xattrs={"user.b": "2"}))),
    *both("xattr-lost-on-replaced-file", tar(file("q", xattrs={"user.a": "1"}), file("q", xattrs={"user.b": "2"}))),
    *both("setuid-survives-owner", tar(file("n", mode=0o4755, uid=1000, gid=1000))),
    chain("xattr-default-acl-in-lower", tar(directory("d", xattrs={"system.posix_acl_default": ACL})),
          tar(file("d/n"), directory("d/e/f")), expected=Expected.HANDED_ON),
    chain("xattr-default-acl-in-lower-listed", tar(directory("d", xattrs={"system.posix_acl_default": ACL})),
          tar(directory("d"), file("d/n"))),
    chain("xattr-access-acl-in-lower", tar(directory("d", 0o770, xattrs={"system.posix_acl_access": ACL})),
          tar(file("d/n"))),
    chain("owner-unchanged-in-lower-setgid", LOWER, tar(file("s/n", gid=-1)), expected=Expected.HANDED_ON),
]  # fmt: skip
