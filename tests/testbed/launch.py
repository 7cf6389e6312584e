"""Starts one daemon and ends: a program of its own, run as `python -I -S launch.py SPEC`.

It imports nothing of the testbed, so that it starts in milliseconds. SPEC is JSON: argv, environment, log, record,
cgroups (folders to enter), join (pid whose namespaces to enter, or null), unshare (namespaces to make).

Forked twice: the daemon's parent then is the init of its PID namespace, which collects it. The host's number of its
process goes into the record file before the program runs, so whoever reads it never misses a process.
"""

# ruff: noqa: PTH119, PTH120, PTH123 - pathlib takes longer to import than all else here takes to run.

import ctypes
import json
import os
import sys

CLONE = {"mnt": 0x00020000, "uts": 0x04000000, "pid": 0x20000000, "net": 0x40000000}
LIBC = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def enter(spec: dict) -> None:  # type: ignore[type-arg]
    for folder in spec["cgroups"]:
        with open(f"{folder}/cgroup.procs", "w") as procs:
            procs.write("0")
    if spec["join"]:
        # All are opened first: once inside, /proc shows other numbers. The mount namespace comes last.
        kinds = ("pid", "net", "uts", "mnt")
        files = [(kind, os.open(f"/proc/{spec['join']}/ns/{kind}", os.O_RDONLY)) for kind in kinds]
        for kind, descriptor in files:
            check(LIBC.setns(descriptor, CLONE[kind]), f"enter the {kind} namespace of {spec['join']}")
            os.close(descriptor)
    if spec["unshare"]:
        flags = 0
        for kind in spec["unshare"]:
            flags |= CLONE[kind]
        check(LIBC.unshare(flags), f"new namespaces {spec['unshare']}")


def main() -> None:
    spec = json.loads(sys.argv[1])
    log = os.open(spec["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open("/dev/null", os.O_RDONLY)
    proc = os.open("/proc", os.O_RDONLY)
    records = os.open(os.path.dirname(spec["record"]), os.O_RDONLY)
    os.chdir("/")
    enter(spec)
    go_reader, go_writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(go_writer)
        if not os.read(go_reader, 1):
            os._exit(1)  # nobody recorded this process: better none than one that nobody knows
        os.setsid()
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.closerange(3, 256)
        try:
            os.execvpe(spec["argv"][0], spec["argv"], spec["environment"])
        except OSError as error:
            os.write(2, f"{spec['argv'][0]}: {error}\n".encode())
            os._exit(127)
    # /proc and the record's folder by descriptor: the paths may mean something else in the namespaces entered.
    stat = os.open(f"{pid}/stat", os.O_RDONLY, dir_fd=proc)
    started = os.read(stat, 4096).decode().rpartition(")")[2].split()[19]
    name = os.path.basename(spec["record"])
    record = os.open(f".{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644, dir_fd=records)
    os.write(record, json.dumps({"pid": pid, "started": started, "argv": spec["argv"]}).encode())
    os.rename(f".{name}", name, src_dir_fd=records, dst_dir_fd=records)
    os.write(go_writer, b"x")


if __name__ == "__main__":
    main()
