"""Links, devices, unknown types, and entries that replace each other."""

from tests.containerd.differential.cases.table import LOWER, NO, OK, both, chain
from tests.containerd.differential.tarbytes import (
    base256,
    block,
    char,
    directory,
    entry,
    fifo,
    file,
    global_header,
    hardlink,
    opaque,
    symlink,
    tar,
    whiteout,
)

MAKERS = {
    "file": file("q", b"new"),
    "directory": directory("q", 0o711),
    "full-directory": directory("q", 0o711) + file("q/below"),
    "symlink": symlink("q", "elsewhere"),
    "link-to-directory": symlink("q", "r"),
    "hardlink": hardlink("q", "first"),
    "char": char("q"),
    "fifo": fifo("q"),
}
DEVICES = {
    "null": (1, 3),
    "zero": (0, 0),
    "minor-256": (1, 256),
    "minor-large": (1, 0xFFFFF),
    "minor-larger": (1, 0x100000),
    "major-4095": (4095, 1),
    "major-4096": (4096, 1),
    "major-large": (0xFFFFFFFF, 1),
    "both-large": (0xFFFFFFFF, 0xFFFFFFFF),
}
TARGETS = [
    "r/n", "/r/n", "./r/n", "r/../r/n", "../r/n", "../../r/n", "r//n", "k/n", "/k/n", "k/../r/n", "up/r/n",
    "abs/n", "r/k2/n", "loop/n",
]  # fmt: skip
MISSING_TARGETS = {"loop/n"}
LINKED = (
    directory("r"), file("r/n"), symlink("k", "r"), symlink("up", "../.."), symlink("abs", "/r"),
    symlink("r/k2", "../r"), symlink("loop", "loop"),
)  # fmt: skip
PATHS_OVER_LINKS = {
    "relative": (symlink("k", "r"), "k/x"),
    "absolute": (symlink("k", "/r"), "k/x"),
    "dot": (symlink("k", "."), "k/x"),
    "slash": (symlink("k", "/"), "k/x"),
    "above-root": (symlink("k", "../../../r"), "k/x"),
    "above-root-absolute": (symlink("k", "/../../r"), "k/x"),
    "chain": (symlink("k", "k2") + symlink("k2", "k3") + symlink("k3", "r"), "k/x"),
    "below-root": (directory("r") + symlink("r/k", "../s"), "r/k/x"),
    "below-root-lexical": (directory("r") + symlink("r/k", "a/../t"), "r/k/x"),
    "in-root-physical": (directory("r/in") + symlink("a", "r/in") + symlink("k", "a/../t"), "k/x"),
    "below-root-through-link": (
        directory("r/in") + directory("p") + symlink("p/a", "../r/in") + symlink("p/k", "a/../t"),
        "p/k/x",
    ),
    "dangling": (symlink("k", "nowhere/at/all"), "k/x"),
    "trailing-slash": (symlink("k", "r/"), "k/x"),
    "double-slash": (symlink("k", "r//s"), "k/x"),
    "twice": (symlink("k", "r") + directory("r") + symlink("r/k", "../q"), "k/k/x"),
    "dot-dot-after": (directory("r/s") + symlink("k", "r/s"), "k/../x"),
    "empty-middle": (symlink("k", "./r/./s"), "k/x/y"),
    "self-dot": (symlink("k", "./././"), "k/k/k/x"),
    "above-self": (directory("r") + symlink("r/k", ".."), "r/k/r/k/x"),
}
LOOPS = {
    "self": symlink("k", "k"),
    "two": symlink("k", "m") + symlink("m", "k"),
    "growing": symlink("k", "k/x"),
    "up-and-down": directory("r") + symlink("k", "r/k") + symlink("r/k", "../k"),
}


def long_chain(count: int) -> bytes:
    links = [symlink(f"k{number}", f"k{number + 1}") for number in range(count)]
    return tar(*links, file("k0/x"))


CASES = [
    *(
        case
        for first, one in MAKERS.items()
        for second, two in MAKERS.items()
        for case in both(
            f"replace-{first}-by-{second}",
            tar(file("first"), directory("r"), one, two),
            # The time of a listed directory is set through what took its place.
            NO if "directory" in first and first != "link-to-directory" and second == "symlink" else OK,
        )
    ),
    *(
        case
        for name, device in DEVICES.items()
        for case in both(f"device-{name}", tar(char("n", *device), block("m", *device)))
    ),
    *both("device-negative", tar(entry("n", "3", fields={"major": base256(-1, 8)})), NO, v1_6=OK),
    *both("device-over-u32", tar(entry("n", "3", fields={"minor": base256(1 << 32, 8)})), NO, v1_6=OK),
    *both("device-v7", tar(entry("n", "3", magic=bytes(8)))),
    *both("device-with-size", tar(entry("n", "3", size=5000), file("m"))),
    *both("fifo-with-size", tar(fifo("n", size=5000), file("m"))),
    *both("directory-with-size", tar(directory("n", size=5000), file("m"))),
    *both("symlink-with-size", tar(symlink("n", "t", size=5000), file("m"))),
    *both("hardlink-with-size", tar(file("n"), hardlink("l", "n", size=5000), file("m"))),
    *both("directory-with-negative-size", tar(directory("n", fields={"size": base256(-1, 12)}), file("m"))),
    *both("file-with-negative-size", tar(file("n", b"", fields={"size": base256(-1, 12)}), file("m")), NO),
    *both("contiguous-type", tar(entry("n", "7", b"x")), NO),
    *both("volume-label", tar(entry("label", "V")), NO),
    *both("multi-volume", tar(entry("n", "M", b"x")), NO),
    *both("dump-directory", tar(entry("n", "D")), NO),
    *both("solaris-extended", tar(entry("n", "X", b"x")), NO),
    *both("solaris-acl", tar(entry("n", "A", b"x")), NO),
    *both("unknown-type", tar(entry("n", "Q", b"x"), file("m")), NO),
    *both("unknown-type-replaces-first", tar(directory("n"), file("n/m"), entry("n", "Q")), NO),
    *both("type-high-bit", tar(entry("n", b"\xff")), NO),
    *both("nul-type", tar(entry("n", "\0", b"data"))),
    *both("nul-type-v7", tar(entry("n", "\0", b"data", magic=bytes(8)))),
    *both("global-header", tar(global_header({"comment": "made by git"}), file("n"))),
    *both("global-header-records-not-applied", tar(global_header({"uid": "7", "mtime": "1"}), file("n"))),
    *both("global-header-path", tar(global_header({"path": "gone"}), file("n"))),
    *both("global-header-removes", tar(directory("d"), file("d/n"), global_header({"path": "d/n"}), file("m"))),
    *both("global-header-removes-directory", tar(file("x/n"), global_header({"path": "x"}), file("m"))),
    *both("global-header-makes-parents", tar(global_header({"path": "d/sub/x/y"}), file("n"))),
    *both("global-header-name-in-header", tar(file("x"), global_header(name="x"))),
    *both("global-header-whiteout", tar(global_header({"path": ".wh.gone"}, name="h"), file("n"))),
    *both("global-header-of-directory-below", tar(global_header({"path": "d"}), file("d/n"))),
    *both("global-header-named-as-directory-below", tar(global_header({"a": "b"}, name="d/sub"), file("d/sub/n"))),
    *both("global-header-of-directory-then-deeper", tar(global_header({"path": "d"}), file("d/sub/n"), file("d/m"))),
    *both("global-header-after-implicit", tar(file("d/n"), global_header({"path": "d"}), file("d/m"))),
    *both("global-header-of-directory-then-opaque",
          tar(global_header({"path": "x"}), file("x/n"), opaque("x"), file("x/m"))),
    *both("global-header-of-root", tar(file("n"), global_header({"path": "/"}))),
    *both("global-header-after-pax", tar(entry("n", pax={"uid": "7"}), global_header({"uid": "9"}), file("m"))),
    *both("global-header-bad-records", tar(global_header(b"broken"), file("n")), NO),
    *both("global-header-bad-value", tar(global_header({"uid": "root", "path": "p"}), file("n"))),
    *both("hardlink", tar(file("n", mode=0o600, uid=5), hardlink("l", "n", mode=0o640, uid=6, mtime=1_400_000_000))),
    *both("hardlink-twice", tar(file("n"), hardlink("l", "n"), hardlink("m", "l"))),
    *both("hardlink-before-target", tar(hardlink("l", "n"), file("n")), NO),
    *both("hardlink-to-missing", tar(hardlink("l", "nothing")), NO),
    *both("hardlink-to-lower", tar(hardlink("l", "f")), NO),
    *both("hardlink-to-directory", tar(directory("r"), hardlink("l", "r")), NO),
    *both("hardlink-to-root", tar(hardlink("l", "/")), NO),
    *both("hardlink-to-empty", tar(hardlink("l", "")), NO),
    *both("hardlink-to-dot", tar(hardlink("l", ".")), NO),
    *both("hardlink-to-symlink", tar(symlink("n", "target", uid=3), hardlink("l", "n", uid=4, mode=0o600))),
    *both("hardlink-to-fifo", tar(fifo("n", mode=0o600), hardlink("l", "n", mode=0o640))),
    *both("hardlink-to-char", tar(char("n", mode=0o600), hardlink("l", "n", mode=0o640))),
    *both("hardlink-to-whiteout-device", tar(whiteout("n"), hardlink("l", "n")), NO, OK),
    *both("hardlink-to-itself", tar(file("n"), hardlink("n", "n")), NO),
    *both("hardlink-implicit-parent", tar(file("n"), hardlink("x/y/l", "n"))),
    *both("hardlink-then-file-replaced", tar(file("n"), hardlink("l", "n"), file("n", b"other"))),
    *both("hardlink-then-link-replaced", tar(file("n"), hardlink("l", "n"), file("l", b"other"))),
    *both("hardlink-to-hidden-lower", tar(directory("d"), hardlink("d/l", "d/old")), NO),
    *both("hardlink-target-with-slash", tar(file("n"), hardlink("l", "n/"))),
    *both("hardlink-target-is-dot-dot", tar(file("n"), hardlink("l", "..")), NO),
    *both("hardlink-target-through-file", tar(file("n"), hardlink("l", "n/x")), NO),
    *(
        case
        for target in TARGETS
        for case in both(
            f"hardlink-target-{target}",
            tar(*LINKED, hardlink("l", target)),
            NO if target in MISSING_TARGETS else OK,
        )
    ),
    *both("hardlink-final-component-not-followed", tar(file("n"), symlink("k", "n"), hardlink("l", "k"))),
    *both("hardlink-outside", tar(hardlink("l", "../../../../../../etc/passwd")), NO),
    *both("symlink-outside", tar(symlink("l", "../../../../../../etc"), file("l/n"))),
    *both("symlink-empty-target", tar(symlink("l", "")), NO),
    *both("symlink-to-itself", tar(symlink("l", "l"))),
    *both("symlink-not-utf8", tar(symlink("l", b"\xff\xfe"))),
    *both("symlink-long-target", tar(symlink("l", "t" * 4095))),
    *both("symlink-too-long-target", tar(symlink("l", "t" * 4096)), NO),
    *both("symlink-owner-and-time", tar(symlink("l", "t", uid=7, gid=8, pax={"mtime": "1400000000.5"}))),
    *both("symlink-final-component-replaced", tar(directory("r"), symlink("k", "r"), file("k"))),
    *both("symlink-replaced-by-directory", tar(directory("r"), symlink("k", "r"), directory("k"), file("k/n"))),
    *(
        case
        for name, (links, path) in PATHS_OVER_LINKS.items()
        for case in both(f"over-link-{name}", tar(links, file(path)))
    ),
    *(
        case
        for name, (links, path) in PATHS_OVER_LINKS.items()
        # The time is set by the whole name, whose links the walk reads as they are: elsewhere than its parent was.
        for case in both(
            f"over-link-directory-{name}",
            tar(links, directory(path, 0o700, mtime=1_000_000_000)),
            NO if name == "in-root-physical" else OK,
        )
    ),
    *(
        case
        for name, links in LOOPS.items()
        for case in both(f"loop-{name}", tar(links, file("k/x")), NO)
    ),
    *both("links-254", long_chain(254)),
    *both("links-255", long_chain(255)),
    *both("links-256", long_chain(256), NO),
    *both("links-257", long_chain(257), NO),
    *both("link-changes-between", tar(
        directory("a"), directory("b"), symlink("k", "a"), file("k/n"), symlink("k", "b"), file("k/n"))),
    *both("link-directory-changes-after-listing", tar(
        directory("a"), directory("b"), symlink("k", "a"), directory("k/n", mtime=1_000_000_000), symlink("k", "b"),
        directory("b/n", mtime=1_400_000_000))),
    *both("link-removed-after-listing", tar(
        directory("a"), symlink("k", "a"), directory("k/n", mtime=1_000_000_000), file("k")), NO),
    *both("same-file-twice", tar(file("n", b"one", mode=0o600), file("n", b"three", mode=0o644))),
    *both("same-directory-twice", tar(directory("n", 0o700, uid=3), file("n/m"), directory("n", 0o711, uid=4))),
    *both("empty-file", tar(file("n", b""))),
    *both("large-file", tar(file("n", bytes(range(256)) * 12_000))),
    *both("block-sized-files", tar(*(file(f"n{size}", b"x" * size) for size in (511, 512, 513, 1023, 1024)))),
    chain("replace-lower-file", LOWER, tar(file("f", b"new", mode=0o600))),
    chain("replace-lower-directory-by-file", LOWER, tar(file("d"))),
    chain("replace-lower-file-by-directory", LOWER, tar(directory("f"))),
    chain("same-layer-twice", LOWER, LOWER),
    chain("same-layer-thrice", LOWER, LOWER, LOWER),
]  # fmt: skip
