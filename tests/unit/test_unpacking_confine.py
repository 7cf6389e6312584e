"""What a worker that a hostile layer took over could still do. Needs root; the filter's shape does not."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import os
import platform
import random
import signal
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zstandard

from imageprepull.unpacking import capabilities, seccomp
from imageprepull.unpacking.frontier import Frontier
from imageprepull.unpacking.jobs import ExtractJob, ImplicitDirectory, InheritJob
from imageprepull.unpacking.messages import Settings
from imageprepull.unpacking.syscall_numbers import FREE, FREE_ON_X86, LOOKED_AT
from imageprepull.unpacking.workers import WorkerDied, Workers
from tests.unit.unpacking_zygotes import SCENARIOS, Stage, awaited, children, until, zygote

root_only = pytest.mark.skipif(
    os.geteuid() != 0 or bool(capabilities.missing()), reason="confinement needs root and its capabilities"
)
on_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers tried are those of x86_64")

CONFINED = msgspec.structs.replace(SCENARIOS, confine=True)
THREAD = 0x00010000
# Arguments with which each call fails, or does nothing, should the filter ever let it pass.
FORBIDDEN = {
    "socket": (41, 2, 1, 0),
    "connect": (42, -1, 0, 0),
    "bind": (49, -1, 0, 0),
    "sendmsg": (46, -1, 0, 0),
    "mount": (165, 0, 0, 0, 0, 0),
    "umount2": (166, 0, 0),
    "open_tree": (428, -1, 0, 0),
    "move_mount": (429, -1, 0, -1, 0, 0),
    "fsopen": (430, 0, 0),
    "fsconfig": (431, -1, 0, 0, 0, 0),
    "fsmount": (432, -1, 0, 0),
    "fspick": (433, -1, 0, 0),
    "mount_setattr": (442, -1, 0, 0, 0, 0),
    "pivot_root": (155, 0, 0),
    "chroot": (161, 0),
    "setns": (308, -1, 0),
    "unshare": (272, 0x10000000),
    "ptrace": (101, 0, 0, 0, 0),
    "process_vm_readv": (310, 0, 0, 0, 0, 0, 0),
    "process_vm_writev": (311, 0, 0, 0, 0, 0, 0),
    "process_madvise": (440, -1, 0, 0, 0, 0),
    "kcmp": (312, 0, 0, 0, 0, 0),
    "bpf": (321, 0, 0, 0),
    "perf_event_open": (298, 0, 0, -1, -1, 0),
    "add_key": (248, 0, 0, 0, 0, 0),
    "request_key": (249, 0, 0, 0, 0),
    "keyctl": (250, 0, 0, 0, 0, 0),
    "init_module": (175, 0, 0, 0),
    "finit_module": (313, -1, 0, 0),
    "delete_module": (176, 0, 0),
    "kexec_load": (246, 0, 0, 0, 0),
    "kexec_file_load": (320, -1, -1, 0, 0, 0),
    "open_by_handle_at": (304, -1, 0, 0),
    "name_to_handle_at": (303, -1, 0, 0, 0, 0),
    "userfaultfd": (323, 0),
    "io_uring_setup": (425, 1, 0),
    "io_uring_enter": (426, -1, 0, 0, 0, 0, 0),
    "io_uring_register": (427, -1, 0, 0, 0),
    "execve": (59, 0, 0, 0),
    "execveat": (322, -1, 0, 0, 0, 0),
    "memfd_create": (319, 0, 0),
    "fork": (57,),
    "vfork": (58,),
    "clone without a thread": (56, 17, 0, 0, 0, 0),
    "clone of a user namespace": (56, 0x10000000 | THREAD, 0, 0, 0, 0),
    "clone of a mount namespace": (56, 0x00020000 | THREAD, 0, 0, 0, 0),
    "clone of a network namespace": (56, 0x40000000 | THREAD, 0, 0, 0, 0),
    "kill": (62, 1, 0),
    "tkill": (200, 1, 0),
    "tgkill": (234, 1, 1, 0),
    "rt_sigqueueinfo": (129, 1, 0, 0),
    "pidfd_open": (434, 1, 0),
    "pidfd_send_signal": (424, -1, 0, 0, 0),
    "pidfd_getfd": (438, -1, 0, 0),
    "setpriority": (141, 0, 0, 0),
    "sched_setaffinity": (203, 0, 0, 0),
    "prlimit64 of another": (302, 1, 0, 0, 0),
    "prctl": (157, 4, 1, 0, 0, 0),
    "capset": (126, 0, 0),
    "setuid": (105, -1),
    "reboot": (169, 0, 0, 0, 0),
    "sethostname": (170, 0, -1),
    "swapon": (167, 0, 0),
    "quotactl": (179, 0, 0, 0, 0),
    "personality": (135, 0xFFFFFFFF),
    "iopl": (172, 0),
    "fanotify_init": (300, 0, 0),
    "fcntl F_SETOWN": (72, 0, 8, 1),
    "ioctl TIOCSTI": (16, 0, 0x5412, 0),
    "mprotect to code": (10, 0, 4096, 5),
}
TOO_NEW = {"clone3": (435, 0, 0), "statmount": (457, 0, 0, 0, 0), "open_tree_attr": (467, -1, 0, 0, 0, 0)}


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with zygote(CONFINED) as workers:
        yield workers


@pytest.fixture
def stage(workers: Workers, tmp_path: Path) -> Stage:
    return Stage(workers, tmp_path)


@root_only
async def test_the_probe_finds_nothing_in_the_way(workers: Workers) -> None:
    assert await workers.probe() is None


@root_only
@on_x86
@pytest.mark.parametrize("name", FORBIDDEN)
async def test_a_worker_may_not_call(stage: Stage, name: str) -> None:
    assert await stage.ask("call", FORBIDDEN[name]) == "EPERM"


@root_only
@on_x86
@pytest.mark.parametrize("name", TOO_NEW)
async def test_the_c_library_shall_take_an_older_call_for(stage: Stage, name: str) -> None:
    assert await stage.ask("call", TOO_NEW[name]) == "ENOSYS"


@root_only
@on_x86
async def test_a_call_by_another_convention_kills(stage: Stage) -> None:
    with pytest.raises(WorkerDied) as caught:
        await stage.run("call", [0x40000000 | 39])
    assert caught.value.signal == signal.SIGSYS


@root_only
@pytest.mark.parametrize(
    ("what", "errno"),
    [
        ("inet socket", "EPERM"),
        ("unix socket", "EPERM"),
        ("socket pair", "EPERM"),
        ("chroot", "EPERM"),
        ("fork", "EPERM"),
        ("exec", "EPERM"),
        ("signal the parent", "EPERM"),
        ("map code", "EPERM"),
        # Mounts forbid it (Linux 5.12 and above).
        ("open a device", "EACCES"),
        ("change the blob's mode", "EROFS"),
        ("change the blob's attributes", "EROFS"),
    ],
)
async def test_a_worker_cannot(stage: Stage, what: str, errno: str) -> None:
    assert await stage.ask("attempt", what) == errno


@root_only
async def test_a_confined_worker_hears_that_it_is_to_hurry(stage: Stage) -> None:
    hurry = asyncio.Event()
    job = asyncio.create_task(stage.run("until_hurried", hurry=hurry))
    await until(lambda: stage.progress)
    hurry.set()
    assert json.loads((await job).diff_id)[0] is False


@root_only
async def test_no_way_leads_out_of_the_directory(stage: Stage) -> None:
    (stage.root / "only").mkdir()
    assert await stage.ask("outside") == {"cwd": True, "slash": True, "above": True, "names": ["only"]}


@root_only
async def test_a_module_in_the_layer_is_not_imported(stage: Stage) -> None:
    assert "worker can import nothing" in str(await stage.ask("late_import", "/"))
    assert (stage.root / "evil.py").exists()


@root_only
async def test_limits_hold(stage: Stage) -> None:
    limits = await stage.ask("limits")
    assert isinstance(limits, dict)
    assert limits["core"] == 0
    assert limits["files"] <= 4096
    assert limits["umask"] == 0
    assert await stage.ask("grow", limits["space"]) == "refused"
    assert await stage.ask("grow", 200 << 20) == f"got {200 << 20}"


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return dict(line.split(":\t", 1) for line in lines)


def namespace(pid: int, kind: str) -> Path:
    return Path(f"/proc/{pid}/ns/{kind}").readlink()


def mounts_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/mountinfo").read_text(encoding="utf-8").splitlines()


@root_only
async def test_seen_from_outside_a_worker_has_exactly_what_it_needs(workers: Workers, stage: Stage) -> None:
    frontier = Frontier(10)
    job = asyncio.create_task(stage.run("follow", frontier=frontier))
    await until(lambda: awaited(frontier))
    (pid,) = children(workers._pid)
    status = status_of(pid)
    needed = capabilities.bits(capabilities.NEEDED.values())
    assert needed == 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 21 | 1 << 27 | 1 << 31
    assert {name: int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb")} == {
        "CapPrm": needed,
        "CapEff": needed,
        "CapBnd": needed,
        "CapInh": 0,
        "CapAmb": 0,
    }
    assert (status["NoNewPrivs"], status["Seccomp"].strip(), status["Name"]) == ("1", "2", "unpack-worker")
    for kind in ("mnt", "net", "ipc"):
        assert namespace(pid, kind) != namespace(os.getpid(), kind)
    frontier.advance(10)
    await job


@root_only
async def test_lower_layers_are_read_only_and_lead_nowhere(workers: Workers, tmp_path: Path) -> None:
    for name in ("root", "lower"):
        (tmp_path / name).mkdir()
    root, lower = (os.open(tmp_path / name, os.O_RDONLY | os.O_DIRECTORY) for name in ("root", "lower"))
    implicit = (ImplicitDirectory(b"a", listed=False, below=False, used=True),)
    await workers.inherit(InheritJob(implicit=implicit, lowers=1), root=root, lowers=[lower])
    inode = os.fstat(lower).st_ino
    seen = json.loads((tmp_path / "root/seen").read_text(encoding="ascii"))
    assert seen == {"jobs": 1, "inodes": [inode], "above": [inode, inode], "refused": "EROFS"}
    os.close(root)
    os.close(lower)


@root_only
async def test_the_hosts_unmounts_are_not_held_up(workers: Workers) -> None:
    """Nothing of the host is mounted in the zygote but what its own root is."""
    lines = mounts_of(workers._pid)
    assert [line.split()[4] for line in lines] == ["/"]
    assert " - tmpfs " in lines[0]


async def test_lacking_privilege_is_a_reason_and_no_failure(tmp_path: Path) -> None:
    with zygote(CONFINED, kept=[]) as workers:
        lacking = ", ".join(sorted([*capabilities.NEEDED, "CAP_SYS_CHROOT"]))
        assert await workers.probe() == f"workers cannot be had here: lacks {lacking}"
        assert workers.why_not is not None
        with pytest.raises(WorkerDied, match="lacks"):
            await Stage(workers, tmp_path).run("noop")
        assert workers.alive


def layer() -> bytes:
    """A tar with an entry of each kind."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:

        def add(name: str, kind: bytes, content: bytes = b"", **fields: object) -> None:
            entry = tarfile.TarInfo(name)
            entry.type, entry.size, entry.mtime, entry.mode = kind, len(content), 1_700_000_000, 0o755
            for field, value in fields.items():
                setattr(entry, field, value)
            tar.addfile(entry, io.BytesIO(content))

        add("d/", tarfile.DIRTYPE, mode=0o1777)
        add("d/file", tarfile.REGTYPE, random.Random(1).randbytes(3_000_000), uid=1000, gid=1001, mode=0o4755)
        add("d/capable", tarfile.REGTYPE, b"x", pax_headers={"SCHILY.xattr.user.note": "yes"})
        add("link", tarfile.SYMTYPE, linkname="d/file", uid=5)
        add("d/hard", tarfile.LNKTYPE, linkname="d/file", uid=1000, gid=1001, mode=0o4755)
        add("device", tarfile.CHRTYPE, devmajor=1, devminor=3)
        add("fifo", tarfile.FIFOTYPE)
        add("implied/deep/.wh.gone", tarfile.REGTYPE)
        add("opaque/.wh..wh..opq", tarfile.REGTYPE)
        for number in range(2000):
            add(f"many/{number}", tarfile.REGTYPE, b"y" * (number % 100))
    return packed.getvalue()


def check_tree(made: Path) -> None:
    file = (made / "d/file").stat()
    assert (file.st_nlink, file.st_mode & 0o7777, file.st_uid) == (2, 0o4755, 1000)
    assert (made / "link").lstat().st_uid == 5
    assert (made / "device").stat().st_rdev == os.makedev(1, 3)
    assert os.getxattr(made / "opaque", "trusted.overlay.opaque") == b"y"
    assert len(list((made / "many").iterdir())) == 2000


@root_only
@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
async def test_a_whole_extraction_passes_the_filter(tmp_path: Path, compression: str) -> None:
    tar = layer()
    blob = {
        "gzip": lambda: gzip.compress(tar, 1),
        "zstd": lambda: zstandard.compress(tar, 1),
        "none": lambda: tar,
    }[compression]()
    (tmp_path / "blob").write_bytes(b"")
    (tmp_path / "root").mkdir()
    descriptor = os.open(tmp_path / "blob", os.O_RDWR)
    root = os.open(tmp_path / "root", os.O_RDONLY | os.O_DIRECTORY)
    frontier = Frontier(len(blob))

    async def download() -> None:
        for start in range(0, len(blob), 300_000):
            os.pwrite(descriptor, blob[start : start + 300_000], start)
            frontier.advance(min(len(blob), start + 300_000))
            await asyncio.sleep(0.001)

    progress: list[int] = []
    with zygote(Settings()) as workers:
        job = ExtractJob(size=len(blob), detect=True, bottom=False)
        async with asyncio.TaskGroup() as group:
            group.create_task(download())
            work = group.create_task(
                workers.extract(job, root=root, blob=descriptor, frontier=frontier, progress=progress.append)
            )
        extracted = work.result()
        assert extracted.diff_id == f"sha256:{hashlib.sha256(tar).hexdigest()}"
        check_tree(tmp_path / "root")
        assert {directory.path for directory in extracted.implicit} >= {b"implied", b"implied/deep"}
        lower = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
        await workers.inherit(InheritJob(implicit=extracted.implicit, lowers=1), root=root, lowers=[lower])
    for opened in (descriptor, root, lower):
        os.close(opened)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_decides_as_the_tables_say(machine: str) -> None:
    """Runs the program on every number, so that the machine that is not here is covered too."""
    column, architecture = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}[machine]
    code = seccomp.program(machine)
    allowed = {numbers[column] for numbers in FREE.values()}
    if machine == "x86_64":
        allowed |= set(FREE_ON_X86.values())
    special = {numbers[column]: name for name, numbers in LOOKED_AT.items()}
    for number in range(600):
        decision = decide(code, number, architecture, [0] * 6)
        if number in special:
            # mmap, mprotect without PROT_EXEC, fcntl F_DUPFD and prlimit64 of this process are harmless.
            harmless = {"mmap", "mprotect", "fcntl", "prlimit64"}
            assert (decision == 0x7FFF0000) == (special[number] in harmless), special[number]
        else:
            assert (decision == 0x7FFF0000) == (number in allowed), number
    assert decide(code, 0, 0x40000003, [0] * 6) == 0x80000000
    mmap = LOOKED_AT["mmap"][column]
    assert decide(code, mmap, architecture, [0, 0, 4, 0, 0, 0]) == 0x00050001
    clone = LOOKED_AT["clone"][column]
    pthread = 0x3D0F00
    assert decide(code, clone, architecture, [pthread, 0, 0, 0, 0, 0]) == 0x7FFF0000
    assert decide(code, clone, architecture, [pthread | 0x20000000, 0, 0, 0, 0, 0]) == 0x00050001


def test_an_unknown_machine_has_no_filter() -> None:
    with pytest.raises(OSError, match="riscv64"):
        seccomp.program("riscv64")


def decide(code: bytes, number: int, architecture: int, arguments: list[int]) -> int:
    """What the kernel would: classic BPF over struct seccomp_data."""
    seen = struct.pack("=iIQ6Q", number, architecture, 0, *arguments)
    steps = list(struct.iter_unpack("=HBBI", code))
    accumulator, at = 0, 0
    while True:
        operation, yes, no, operand = steps[at]
        at += 1
        if operation == 0x06:
            return int(operand)
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", seen, operand)
            continue
        true = {
            0x15: accumulator == operand,
            0x25: accumulator > operand,
            0x35: accumulator >= operand,
            0x45: bool(accumulator & operand),
        }[operation]
        at += yes if true else no
