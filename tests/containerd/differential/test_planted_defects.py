"""The comparison sees what it is there for: each planted defect turns it red, and the tree without one is green."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.containerd.differential.cases.table import plain
from tests.containerd.differential.comparison import compare
from tests.containerd.differential.layers import Chain, Layer
from tests.containerd.differential.ours import Ours
from tests.containerd.differential.reference import Reference
from tests.containerd.differential.tarbytes import (
    char,
    directory,
    file,
    hardlink,
    opaque,
    symlink,
    tar,
    whiteout,
)

CHAIN: Chain = tuple(
    plain(layer)
    for layer in (
        tar(directory("implicit", 0o750, uid=3, gid=4, xattrs={"user.a": "1"}), file("gone"), file("hidden/n")),
        tar(
            directory("d", 0o711, uid=5, mtime=1_000_000_000),
            file("d/file", b"content", mode=0o4755, uid=7, gid=8, pax={"mtime": "1400000000.123456789"},
                 xattrs={"user.key": "value"}),
            hardlink("d/link", "d/file", mode=0o4755, uid=7, gid=8),
            symlink("sym", "d/file", uid=9),
            file("implicit/n"),
            whiteout("gone"),
            opaque("hidden"),
            file("hidden/m"),
            char("dev", 5, 6),
        ),
    )
)  # fmt: skip


def wrong_mtime(tree: Path) -> None:
    found = (tree / "d/file").stat()
    os.utime(tree / "d/file", ns=(found.st_atime_ns, found.st_mtime_ns + 1))


def wrong_atime(tree: Path) -> None:
    found = (tree / "d/file").stat()
    os.utime(tree / "d/file", ns=(found.st_atime_ns + 1, found.st_mtime_ns))


def directory_mtime_is_now(tree: Path) -> None:
    os.utime(tree / "d")


def now_mtime_is_not_now(tree: Path) -> None:
    os.utime(tree / "implicit", (1, 1))


def symlink_mtime(tree: Path) -> None:
    os.utime(tree / "sym", (1, 1), follow_symlinks=False)


def lost_xattr(tree: Path) -> None:
    os.removexattr(tree / "d/file", "user.key")


def wrong_xattr(tree: Path) -> None:
    os.setxattr(tree / "d/file", "user.key", b"Value")


def one_xattr_more(tree: Path) -> None:
    os.setxattr(tree / "d", "trusted.extra", b"")


def inherited_xattr_lost(tree: Path) -> None:
    os.removexattr(tree / "implicit", "user.a")


def hard_link_became_a_copy(tree: Path) -> None:
    shutil.copy2(tree / "d/file", tree / "copy")
    os.chown(tree / "copy", 7, 8)
    (tree / "copy").chmod(0o4755)
    (tree / "copy").rename(tree / "d/link")


def hard_link_is_missing(tree: Path) -> None:
    (tree / "d/link").unlink()
    repair_time(tree / "d")


def hard_link_from_outside(tree: Path) -> None:
    (tree.parent / "outside").hardlink_to(tree / "d/file")


def implicit_directory_with_defaults(tree: Path) -> None:
    os.chown(tree / "implicit", 0, 0)
    (tree / "implicit").chmod(0o755)


def implicit_directory_with_default_mode(tree: Path) -> None:
    (tree / "implicit").chmod(0o755)


def whiteout_is_a_plain_file(tree: Path) -> None:
    (tree / "gone").unlink()
    (tree / "gone").touch(0o000)


def whiteout_is_another_device(tree: Path) -> None:
    (tree / "gone").unlink()
    os.mknod(tree / "gone", stat.S_IFCHR, os.makedev(0, 1))


def whiteout_is_missing(tree: Path) -> None:
    (tree / "gone").unlink()


def wrong_owner(tree: Path) -> None:
    os.chown(tree / "d", 6, -1)


def wrong_group(tree: Path) -> None:
    os.chown(tree / "sym", -1, 6, follow_symlinks=False)


def setuid_lost(tree: Path) -> None:
    (tree / "d/file").chmod(0o755)


def opaque_lost(tree: Path) -> None:
    os.removexattr(tree / "hidden", "trusted.overlay.opaque")


def content_changed(tree: Path) -> None:
    before = (tree / "d/file").stat()
    (tree / "d/file").write_bytes(b"Content")
    (tree / "d/file").chmod(0o4755)
    os.utime(tree / "d/file", ns=(before.st_atime_ns, before.st_mtime_ns))


def content_longer(tree: Path) -> None:
    before = (tree / "d/file").stat()
    os.truncate(tree / "d/file", 8)
    (tree / "d/file").chmod(0o4755)
    os.utime(tree / "d/file", ns=(before.st_atime_ns, before.st_mtime_ns))


def link_leads_elsewhere(tree: Path) -> None:
    (tree / "sym").unlink()
    (tree / "sym").symlink_to("d/filf")
    os.chown(tree / "sym", 9, 0, follow_symlinks=False)
    os.utime(tree / "sym", (1_500_000_000,) * 2, follow_symlinks=False)


def entry_behind_the_end_mark(tree: Path) -> None:
    (tree / "behind").write_bytes(b"hidden")


def empty_directory_more(tree: Path) -> None:
    (tree / "d/more").mkdir()
    repair_time(tree / "d")


def wrong_device(tree: Path) -> None:
    (tree / "dev").unlink()
    os.mknod(tree / "dev", stat.S_IFCHR | 0o644, os.makedev(6, 5))
    os.utime(tree / "dev", (1_500_000_000,) * 2)


def fifo_for_device(tree: Path) -> None:
    (tree / "dev").unlink()
    os.mkfifo(tree / "dev", 0o644)
    os.utime(tree / "dev", (1_500_000_000,) * 2)


def root_mode(tree: Path) -> None:
    tree.chmod(0o700)


def root_owner(tree: Path) -> None:
    os.chown(tree, 1, 1)


def root_xattr(tree: Path) -> None:
    os.setxattr(tree, "trusted.overlay.opaque", b"y")


def root_time(tree: Path) -> None:
    os.utime(tree, (1_500_000_000,) * 2)


def repair_time(directory: Path) -> None:
    os.utime(directory, (1_000_000_000,) * 2)


DEFECTS = [
    wrong_mtime, wrong_atime, directory_mtime_is_now, now_mtime_is_not_now, symlink_mtime, lost_xattr, wrong_xattr,
    one_xattr_more, inherited_xattr_lost, hard_link_became_a_copy, hard_link_is_missing, hard_link_from_outside,
    implicit_directory_with_defaults, implicit_directory_with_default_mode, whiteout_is_a_plain_file,
    whiteout_is_another_device, whiteout_is_missing, wrong_owner, wrong_group, setuid_lost, opaque_lost,
    content_changed, content_longer, link_leads_elsewhere, entry_behind_the_end_mark, empty_directory_more,
    wrong_device, fifo_for_device, root_mode, root_owner, root_xattr, root_time,
]  # fmt: skip


def test_without_a_defect_there_is_no_difference(theirs: Reference, mine: Ours) -> None:
    ours = mine.apply(CHAIN)
    assert [outcome.accepted for outcome in ours] == [True, True]
    for outcomes in theirs.apply(CHAIN).values():
        assert compare(ours, outcomes) == []


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_a_planted_defect_is_found(defect: Callable[[Path], None], theirs: Reference, mine: Ours) -> None:
    ours = mine.apply(CHAIN, damage=defect)
    for outcomes in theirs.apply(CHAIN).values():
        assert compare(ours, outcomes) != []


LAYER = plain(tar(file("n")))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (plain(tar(file("n"), file("m"))), LAYER),
        (plain(tar(file("n"), end=bytes(10240))), LAYER),
        (plain(tar(file("n"), end=bytes(512)) + file("m")), LAYER),
        (LAYER, plain(tar(file("n"), end=bytes(512)) + file("m"))),
    ],
    ids=["other-tree", "other-tar-same-tree", "only-ours-refuses", "only-containerd-refuses"],
)
def test_another_layer_is_told_apart(one: Layer, other: Layer, theirs: Reference, mine: Ours) -> None:
    here = mine.apply((one,))
    for outcomes in theirs.apply((other,)).values():
        assert compare(here, outcomes) != []
