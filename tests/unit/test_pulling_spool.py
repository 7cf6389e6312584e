"""The spool file: what it believes after a restart, what it hashes, what stays on disk."""

from __future__ import annotations

import errno
import json
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageprepull.oci.descriptor import OCI_LAYER, Descriptor
from imageprepull.oci.digests import sha256_digest
from imageprepull.pulling.private_folder import private_folder
from imageprepull.pulling.sidecars import (
    change_owners,
    data_path,
    digests_of,
    read_sidecar,
    remove_all_but,
    sidecar_path,
)
from imageprepull.pulling.spool import SpoolFile

BODY = bytes(range(256)) * 40
BLOB = Descriptor(OCI_LAYER + "+gzip", sha256_digest(BODY), len(BODY))
NEVER = 1 << 60


def opened(folder: Path, boot: str = "boot-1", descriptor: Descriptor = BLOB) -> SpoolFile:
    file = SpoolFile(folder, descriptor, boot_id=boot, owner="lease-1")
    file.open()
    return file


def test_a_blob_written_in_order_matches_its_digest(tmp_path: Path) -> None:
    file = opened(tmp_path)
    for offset in range(0, len(BODY), 1000):
        assert not file.matches()
        file.write(
            offset, [BODY[offset : offset + 300], BODY[offset + 300 : offset + 1000]], note_every=NEVER
        )
    assert file.matches()
    assert file.path.read_bytes() == BODY
    file.close(keep=False)
    assert list(tmp_path.iterdir()) == []


@given(st.randoms(use_true_random=False))
def test_a_blob_written_in_any_order_matches_too(tmp_path_factory: object, chance: random.Random) -> None:
    folder = tmp_path_factory.mktemp("spool")  # type: ignore[attr-defined]
    file = opened(folder)
    pieces = list(range(0, len(BODY), 1024))
    chance.shuffle(pieces)
    for offset in pieces:
        file.write(offset, [BODY[offset : offset + 1024]], note_every=NEVER)
    assert file.matches()
    file.close(keep=False)


def test_wrong_bytes_do_not_match_and_a_reset_forgets_them(tmp_path: Path) -> None:
    file = opened(tmp_path)
    file.write(0, [b"x" * len(BODY)], note_every=1)
    assert file.held.complete
    assert not file.matches()
    file.reset()
    assert file.held.held == 0
    file.write(0, [BODY], note_every=len(BODY))
    assert file.matches()
    found = read_sidecar(sidecar_path(tmp_path, BLOB.digest))
    assert found is not None
    assert found.ranges == [(0, len(BODY))], "noted as often as before"
    file.close(keep=False)


def test_many_small_pieces_are_written_as_well(tmp_path: Path) -> None:
    file = opened(tmp_path)
    file.write(0, [BODY[at : at + 1] for at in range(3000)], note_every=NEVER)
    file.write(3000, [BODY[3000:]], note_every=NEVER)
    assert file.matches()
    file.close(keep=False)


def test_connections_write_at_once_while_the_hash_follows(tmp_path: Path) -> None:
    body = random.Random(7).randbytes(4_000_000)
    file = opened(tmp_path, descriptor=Descriptor(BLOB.media_type, sha256_digest(body), len(body)))
    part = len(body) // 8

    def write(connection: int) -> None:
        for at in range(connection * part, (connection + 1) * part, 20_000):
            end = min(at + 20_000, (connection + 1) * part)
            file.write(at, [body[at:end]], note_every=100_000)

    def follow() -> None:
        while not file.held.complete:
            file.hash_on(50_000)

    with ThreadPoolExecutor(9) as threads:
        following = threads.submit(follow)
        list(threads.map(write, range(8)))
        following.result()
    assert file.matches()
    assert file.path.read_bytes() == body
    file.close(keep=False)


def test_bytes_that_are_held_stay_whatever_comes_again(tmp_path: Path) -> None:
    file = opened(tmp_path)
    file.write(1000, [BODY[1000:2000]], note_every=NEVER)
    file.write(0, [BODY[:1000], b"x" * 1000, BODY[2000:]], note_every=NEVER)
    assert file.matches()
    assert file.path.read_bytes() == BODY
    file.close(keep=False)


def test_who_reads_a_file_that_is_reset_goes_on_seeing_its_bytes(tmp_path: Path) -> None:
    file = opened(tmp_path)
    file.write(0, [b"x" * 100], note_every=1)
    reader = file.reader()
    file.reset()
    found = read_sidecar(sidecar_path(tmp_path, BLOB.digest))
    assert found is not None
    assert found.ranges == [], "no range map vouches for what is gone"
    file.write(0, [BODY], note_every=NEVER)
    assert os.pread(reader, 200, 0) == b"x" * 100
    os.close(reader)
    assert file.matches()
    file.close(keep=False)


def test_a_reset_takes_no_name_off_the_file_at_any_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who gives up finds the files with its name on the disk, whatever somebody else does to them meanwhile."""
    blob = left(tmp_path, BODY, "a", "b", "lease-1")
    file, real = opened(tmp_path, "now"), SpoolFile._open_file
    seen = []

    def opening(self: SpoolFile) -> tuple[int, int]:
        seen.append((digests_of(tmp_path, "b"), file.path.exists()))
        return real(self)

    monkeypatch.setattr(SpoolFile, "_open_file", opening)
    file.reset()
    assert seen == [([blob.digest], False)]
    assert owners_of(tmp_path, blob) == {"a", "b", "lease-1"}
    file.close(keep=False)


def test_a_reset_on_a_full_disk_vouches_for_nothing_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    file = opened(tmp_path)
    file.write(0, [b"x" * 100], note_every=1)
    monkeypatch.setattr(Path, "write_bytes", full)
    file.reset()
    assert list(tmp_path.iterdir()) == [file.path]
    file.write(0, [BODY], note_every=NEVER)
    assert file.matches()
    file.close(keep=False)


@pytest.mark.parametrize("opens", [0, 1])
def test_who_comes_for_a_file_whose_reset_failed_has_one_to_read_of_which_no_byte_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opens: int
) -> None:
    file, real = opened(tmp_path), os.open
    done: list[Path] = []

    def scarce(path: Path, flags: int, mode: int = 0o777) -> int:
        if len(done) == opens:
            raise OSError(errno.EMFILE, "Too many open files")
        done.append(path)
        return real(path, flags, mode)

    file.write(0, [b"x" * len(BODY)], note_every=1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", scarce)
        with pytest.raises(OSError, match="Too many"):
            file.reset()
    os.close(file.reader())
    assert (file.held.held, file.unhashed) == (0, 0)
    file.own("lease-2")
    file.close()
    again = opened(tmp_path)
    assert again.owners == {"lease-1", "lease-2"}
    assert again.held.held == 0
    again.write(0, [BODY], note_every=NEVER)
    assert again.matches()
    again.close(keep=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("life", ["crash", "fault"])
def test_wrong_bytes_that_a_reset_had_no_time_to_delete_are_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, life: str
) -> None:
    """The content store may have them under another name, and somebody there may be reading."""
    folder, store, wrong = tmp_path / "spool", tmp_path / "blob", b"x" * len(BODY)
    left(folder, BODY, "a")
    file, real = opened(folder, "now"), Path.unlink
    file.write(0, [wrong], note_every=1)
    store.hardlink_to(file.path)

    def failing(path: Path, missing_ok: bool = False) -> None:
        if path == file.path:
            raise OSError(errno.EIO, "Input/output error")
        real(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", failing)
        with pytest.raises(OSError, match="Input/output"):
            file.reset()
    assert (file.held.held, file.unhashed) == (0, 0)
    if life == "fault":
        file.close()
    before = store.read_bytes()
    again = opened(folder, "now")
    assert again.owners == {"a", "lease-1"}
    again.write(0, [BODY], note_every=NEVER)
    assert again.matches()
    assert store.read_bytes() == before
    again.close(keep=False)
    file.close(keep=False)
    assert list(folder.iterdir()) == []


def test_the_next_life_goes_on_from_the_bytes_held(tmp_path: Path) -> None:
    first = opened(tmp_path)
    first.write(0, [BODY[:4000]], note_every=NEVER)
    first.close(keep=True)
    second = opened(tmp_path)
    assert second.held.frontier == 4000
    second.write(4000, [BODY[4000:]], note_every=NEVER)
    assert second.matches()
    second.close(keep=False)


def test_a_process_that_died_loses_only_what_came_after_the_last_note(tmp_path: Path) -> None:
    first = opened(tmp_path)
    first.write(0, [BODY[:3000]], note_every=2000)
    first.write(3000, [BODY[3000:3500]], note_every=2000)
    second = opened(tmp_path)  # the first was never closed.
    assert second.held.ranges == [(0, 3000)]
    first.close(keep=False)
    second.close(keep=False)


def test_bytes_whose_ranges_cannot_be_noted_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk, without a range map, they would be nobody's: no next attempt's, and no clean-up's."""

    def full(path: Path, data: bytes) -> int:
        path.touch()  # a name needs no block.
        raise OSError(errno.ENOSPC, "No space left on device")

    file = opened(tmp_path)
    file.write(0, [BODY[:4000]], note_every=NEVER)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        file.close(keep=True)
    assert not file.opened
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", ["boot", "size", "garbage", "no data", "short data"])
def test_bytes_are_not_believed_when(tmp_path: Path, change: str) -> None:
    first = opened(tmp_path)
    first.write(0, [BODY[:4000]], note_every=NEVER)
    first.close(keep=True)
    descriptor, boot = BLOB, "boot-1"
    match change:
        case "boot":
            boot = "boot-2"
        case "size":
            descriptor = Descriptor(BLOB.media_type, BLOB.digest, BLOB.size + 1)
        case "garbage":
            sidecar_path(tmp_path, BLOB.digest).write_text('{"digest": 3')
        case "no data":
            data_path(tmp_path, BLOB.digest).unlink()
        case "short data":
            data_path(tmp_path, BLOB.digest).write_bytes(BODY[:10])
    second = opened(tmp_path, boot, descriptor)
    assert second.held.held == 0
    second.close(keep=False)


def test_a_map_whose_file_is_gone_vouches_for_nothing_in_the_next_one(tmp_path: Path) -> None:
    """Also if the process dies before it has noted anything."""
    blob = left(tmp_path, BODY, "a")
    data_path(tmp_path, blob.digest).unlink()
    first = opened(tmp_path, "now")
    first.write(9000, [BODY[9000:]], note_every=NEVER)
    second = opened(tmp_path, "now")  # the first was never closed.
    assert second.held.held == 0
    first.close(keep=False)
    second.close(keep=False)


def left(folder: Path, body: bytes, *owners: str, boot: str = "now") -> Descriptor:
    """Half of a blob, as an attempt of each owner leaves it."""
    descriptor = Descriptor(BLOB.media_type, sha256_digest(body), len(body))
    for owner in owners:
        file = SpoolFile(folder, descriptor, boot_id=boot, owner=owner)
        file.open()
        file.write(0, [body[: len(body) // 2]], note_every=NEVER)
        file.close()
    return descriptor


def owners_of(folder: Path, blob: Descriptor) -> set[str]:
    found = read_sidecar(sidecar_path(folder, blob.digest))
    return found.all_owners if found is not None else set()


def test_a_start_keeps_what_wanted_images_of_this_boot_will_come_for(tmp_path: Path) -> None:
    kept = left(tmp_path, b"kept" * 100, "wanted")
    left(tmp_path, b"of an image that is not wanted" * 100, "gone")
    left(tmp_path, b"of another boot" * 100, "wanted", boot="before")
    (tmp_path / "sha256-unnoted").write_bytes(b"1")
    (tmp_path / "somebody-else").write_bytes(b"2")
    removed = remove_all_but(tmp_path, {"wanted"}, "now")
    name = data_path(tmp_path, kept.digest).name
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, f"{name}.json", "somebody-else"]
    assert "sha256-unnoted" in removed


@pytest.mark.parametrize(
    ("wanted", "stay"), [({"a"}, {"a"}), ({"b"}, {"b"}), ({"c"}, set()), (None, {"a", "b"})]
)
def test_a_blob_of_two_images_stays_for_the_one_that_is_wanted(
    tmp_path: Path, wanted: set[str] | None, stay: set[str]
) -> None:
    blob = left(tmp_path, BODY, "a", "b")
    remove_all_but(tmp_path, wanted, "now")
    assert owners_of(tmp_path, blob) == stay
    assert data_path(tmp_path, blob.digest).exists() is bool(stay)
    remove_all_but(tmp_path, (), "now")
    assert list(tmp_path.iterdir()) == []


def test_an_image_that_is_given_up_takes_only_what_nobody_else_comes_for(tmp_path: Path) -> None:
    shared, own = left(tmp_path, BODY, "a", "b"), left(tmp_path, b"mine" * 100, "a")
    for digest in digests_of(tmp_path, "a"):
        change_owners(tmp_path, digest, drop={"a"})
    assert not data_path(tmp_path, own.digest).exists()
    file = SpoolFile(tmp_path, shared, boot_id="now", owner="b")
    file.open()
    assert file.held.ranges == [(0, len(BODY) // 2)]
    file.close(keep=False)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_does_not_take_the_bytes_that_others_come_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = left(tmp_path, BODY, "a", "b")

    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    change_owners(tmp_path, blob.digest, drop={"a"})
    assert owners_of(tmp_path, blob) == {"a", "b"}, "the next start takes the name off"
    file = SpoolFile(tmp_path, blob, boot_id="now", owner="a")
    file.open()
    file.disown("a")
    with pytest.raises(OSError, match="No space"):
        file.close(served={"a"})
    assert not file.opened
    assert list(tmp_path.iterdir()) == [], "what cannot be noted is not kept for anybody"


def test_the_sidecar_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    blob = left(tmp_path, BODY, "a")
    text = {
        "digest": blob.digest,
        "size": blob.size,
        "boot_id": "now",
        "lease": "lease-1",
        "ranges": [[0, 4000]],
    }
    sidecar_path(tmp_path, blob.digest).write_text(json.dumps(text))
    assert remove_all_but(tmp_path, {"lease-1"}, "now") == []
    file = opened(tmp_path, "now")
    assert file.held.ranges == [(0, 4000)]
    assert file.owners == {"lease-1"}
    file.close(keep=False)


def test_who_takes_part_later_owns_what_is_there(tmp_path: Path) -> None:
    """And whoever died right after that finds it."""
    file = opened(tmp_path)
    file.write(0, [BODY], note_every=NEVER)
    file.own("lease-2")
    assert owners_of(tmp_path, BLOB) == {"lease-1", "lease-2"}
    file.disown("lease-1")
    assert owners_of(tmp_path, BLOB) == {"lease-2"}
    file.disown("lease-2")
    assert [path.name for path in tmp_path.iterdir()] == [file.path.name], "nobody will come for it"
    file.close()
    file.own("lease-3")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", ["own", "disown"])
def test_who_comes_or_goes_while_it_is_opened_does_not_cost_what_was_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Also if everybody dies right then."""
    blob = left(tmp_path, BODY, "a", "c")
    file, real = SpoolFile(tmp_path, blob, boot_id="now", owner="b"), SpoolFile._open_file
    thread = Thread(target=getattr(file, change), args=("c",))

    def opening(self: SpoolFile) -> tuple[int, int]:
        opened = real(self)
        thread.start()
        thread.join(0.1)
        return opened

    monkeypatch.setattr(SpoolFile, "_open_file", opening)
    file.open()
    thread.join()
    found = read_sidecar(sidecar_path(tmp_path, blob.digest))
    assert found is not None
    assert found.ranges == file.held.ranges == [(0, len(BODY) // 2)]
    assert found.all_owners == file.owners == {"a", "b"} | ({"c"} if change == "own" else set())
    file.close(keep=False)


def test_who_gives_up_before_the_file_is_open_owns_nothing(tmp_path: Path) -> None:
    left(tmp_path, BODY, "lease-2", boot="boot-1")
    file = SpoolFile(tmp_path, BLOB, boot_id="boot-1", owner="lease-1")
    file.disown("lease-2")
    file.open()
    assert file.owners == {"lease-1"}
    file.close(keep=False)


def test_a_private_folder_goes_with_its_block_and_takes_dead_ones_along(tmp_path: Path) -> None:
    base = tmp_path / "spools"
    with private_folder(base) as living:
        dead = base / "123-dead"
        dead.mkdir()
        (dead / "lock").touch()
        (dead / "sha256-1").write_bytes(b"left over")
        with private_folder(base) as mine:
            assert living.is_dir()
            assert mine.is_dir()
            assert not dead.exists()
        assert not mine.exists()
    assert not base.exists()
