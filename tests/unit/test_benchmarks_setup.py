"""What the benchmark decides before it measures: files and layers, configurations, commands, fitness."""

from __future__ import annotations

import tarfile
import tomllib
from pathlib import Path

import pytest

from benchmarks.accounting import Process, role
from benchmarks.contenders import Contender, custom
from benchmarks.corpus import APP_FILE, HUGE, Found, app_layers, choose, divide, small_layers, walk
from benchmarks.daemon import RANGE_BYTES, Setup
from benchmarks.disk import own_blkio_group
from benchmarks.images import Image
from benchmarks.layers import write_layers
from benchmarks.limits import Limits
from benchmarks.machine import CpuClock, tmpfs_in_use
from tests.testbed.daemon import CRI_IMAGES, ContainerdDaemon
from tests.testbed.images import Compression


def files(*sizes: int) -> list[Found]:
    return [Found(Path(f"/{number}"), size) for number, size in enumerate(sizes)]


def test_the_walk_is_sorted_and_knows_links(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two").write_bytes(b"22")
    (tmp_path / "b" / "one").symlink_to("two")
    (tmp_path / "a").write_bytes(b"1")
    names = [str(found.path.relative_to(tmp_path)) for found in walk([tmp_path])]
    assert names == ["a", "b/one", "b/two"]


def test_files_are_chosen_until_both_marks_are_reached() -> None:
    assert len(choose(files(*[10] * 9), files=3, size=20)) == 3
    assert len(choose(files(*[10] * 9), files=3, size=50)) == 5
    assert len(choose(files(*[10] * 9), files=30, size=50)) == 9


def test_huge_files_do_not_fill_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.corpus.HUGE_TOTAL", 2 * HUGE + 2)
    chosen = choose(files(HUGE + 1, HUGE + 1, HUGE + 1, 5), files=10, size=1)
    assert [one.size for one in chosen] == [HUGE + 1, HUGE + 1, 5]


def test_layers_follow_their_shares_and_lose_nothing() -> None:
    chosen = files(*[1] * 100)
    layers = divide(chosen, (0.1, 0.6, 0.3))
    assert [len(layer) for layer in layers] == [10, 60, 30]
    assert [one for layer in layers for one in layer] == chosen


def test_an_apps_layers_reach_their_sizes_without_large_files() -> None:
    chosen = [Found(Path(str(number)), 10 if number % 4 else APP_FILE + 1) for number in range(40)]
    layers = app_layers(chosen, sizes=(35, 10, 10))
    assert [sum(one.size for one in layer) for layer in layers] == [40, 10, 10]
    assert [one.path.name for one in layers[1]] != [one.path.name for one in layers[2]]


def test_small_layers_have_small_files_only() -> None:
    chosen = files(1, 1 << 20, 2, 3, 4, 5)
    assert [[one.size for one in layer] for layer in small_layers(chosen, layers=2, each=2)] == [
        [2, 3],
        [4, 5],
    ]


def test_one_pass_makes_the_same_tree_in_each_compression(tmp_path: Path) -> None:
    source, blobs = tmp_path / "source", tmp_path / "blobs"
    source.mkdir()
    blobs.mkdir()
    (source / "first").write_bytes(b"1" * 5000)
    (source / "second").write_bytes(b"2" * 3)
    first, second = walk([source])
    both = (Compression.GZIP, Compression.ZSTD)
    built, whole = write_layers([[first], [second]], blobs, both, single=True)
    again, _ = write_layers([[first], [second]], blobs, both, single=False)
    assert built == again
    gzipped, packed = built[Compression.GZIP], built[Compression.ZSTD]
    assert [layer.diff_id for layer in gzipped] == [layer.diff_id for layer in packed]
    assert whole is not None
    with whole.blob.open() as file, tarfile.open(fileobj=file, mode="r|gz") as archive:
        names = [entry.name.rpartition("/")[2] for entry in archive if entry.isfile()]
    assert names == ["first", "second"]
    assert sorted(path.name for path in blobs.iterdir()) == sorted(
        layer.blob.digest.removeprefix("sha256:") for layer in (*gzipped, *packed, whole)
    )


@pytest.mark.parametrize("version", ["1.6", "2.4"])
def test_a_stock_daemon_has_the_test_beds_configuration(version: str, tmp_path: Path) -> None:
    stock = ContainerdDaemon(version, tmp_path)._config()
    assert Setup(version).config(stock) == stock


def test_a_tuned_daemon_leaves_the_cri_alone_so_that_it_pulls_by_the_transfer_service(tmp_path: Path) -> None:
    stock = ContainerdDaemon("2.4", tmp_path)._config()
    plugins = tomllib.loads(Setup(tuned=True).config(stock))["plugins"]
    assert plugins["io.containerd.transfer.v1.local"] == {
        "max_concurrent_downloads": 8,
        "concurrent_layer_fetch_buffer": RANGE_BYTES,
        "max_concurrent_unpacks": 4,
    }
    assert "max_concurrent_downloads" not in plugins[CRI_IMAGES.split('"')[1]]


def test_a_synced_daemon_syncs_in_the_cri_where_alone_it_can(tmp_path: Path) -> None:
    stock = ContainerdDaemon("2.4", tmp_path)._config()
    images = tomllib.loads(Setup(tuned=True, sync=True).config(stock))["plugins"][CRI_IMAGES.split('"')[1]]
    assert images["image_pull_with_sync_fs"] is True
    assert images["max_concurrent_downloads"] == 8


def test_placeholders_of_a_command_are_filled() -> None:
    contender = Contender("x", Setup(), ("pull", "{image}", "--to=unix://{socket}"))
    assert contender.command_line(image="a:1", socket=Path("/s"), certs="", folder="") == [
        "pull",
        "a:1",
        "--to=unix:///s",
    ]


def test_a_contender_by_command_line() -> None:
    contender = custom("nerd=2.4-tuned:nerdctl pull {image}")
    assert (contender.name, contender.setup.tuned) == ("nerd", True)
    assert contender.command == ("nerdctl", "pull", "{image}")


@pytest.mark.parametrize("text", ["", "x=2.4:", "x=3.0:pull", "=2.4:pull", "pull {image}"])
def test_an_incomplete_contender_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not NAME=DAEMON:COMMAND"):
        custom(text)


def test_only_a_large_tmpfs_is_in_the_way() -> None:
    mounts = "tmpfs /run tmpfs rw 0 0\n/dev/vda / ext4 rw 0 0\ntmpfs /dev/shm tmpfs rw 0 0\n"
    used = {"/run": 5 << 20, "/": 1 << 40, "/dev/shm": 2 << 30}
    assert tmpfs_in_use(mounts, used.__getitem__) == {"/dev/shm": 2 << 30}


def test_idle_time_is_no_work() -> None:
    clock = CpuClock.parse("cpu  100 10 50 9999 777 3 2 40 0 0\ncpu0 …\n", 100)
    assert (clock.busy, clock.stolen) == (1.65, 0.4)


def test_a_process_may_be_called_anything() -> None:
    text = "7 (a (b) c) S 3 7 7 0 -1 0 0 0 0 0 150 50 0 0 20 0 1 0"
    assert Process.parse(text, 100) == Process(3, "a (b) c", 2.0)


def test_an_agents_workers_are_told_from_it() -> None:
    processes = {
        1: Process(0, "containerd", 0),
        2: Process(0, "agent", 0),
        3: Process(2, "agent", 0),
        4: Process(3, "agent", 0),
        5: Process(1, "igzip", 0),
    }
    assert [role(pid, processes) for pid in processes] == [
        "containerd",
        "agent",
        "agent/",
        "agent//",
        "igzip",
    ]


def test_limits_add_up_for_an_image() -> None:
    limits = Limits(inflate_gzip=10, inflate_zstd=20, sha256=40, create=5, write=100)
    image = Image("eight", "m", "t", "c", "chain", (), compressed=80, unpacked=400, files=10)
    assert limits.seconds(image) == {"inflate": 40, "hash tar": 10, "hash blob": 2, "create": 2, "write": 4}
    zstd = Image("zstd", "m", "t", "c", "chain", (), compressed=80, unpacked=400, files=10)
    assert limits.seconds(zstd)["inflate"] == 20


def test_the_own_group_is_a_relative_path() -> None:
    assert not own_blkio_group().startswith("/")
