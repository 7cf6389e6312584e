"""A worker's seccomp filter: an allow-list as a classic BPF program.

What is not listed gets EPERM, so that it shows as an error; a call by another architecture's convention, whose
numbers mean something else, kills. Calls newer than the list get ENOSYS: the C library then falls back.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
from dataclasses import dataclass

from imageprepull.unpacking import kernel
from imageprepull.unpacking.syscall_numbers import FREE, FREE_ON_X86, LOOKED_AT

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of the numbers, AUDIT_ARCH_*."""
_X32_BIT = 0x40000000
_NEWEST = 450
"""set_mempolicy_home_node, Linux 5.17: above it only what is listed is known here."""

_LOAD_WORD = 0x20
_RETURN = 0x06
_EQUAL = 0x15
_GREATER = 0x25
_AT_LEAST = 0x35
_ANY_BIT = 0x45

_OFFSET_NUMBER = 0
_OFFSET_ARCHITECTURE = 4
_OFFSET_ARGUMENTS = 16

_ALLOW = 0x7FFF0000
_KILL = 0x80000000
_ERRNO = 0x00050000

_SET_MODE_FILTER = 1
_SPEC_ALLOW = 4
"""Without it kernels before 5.16 also switch off speculative store bypass, for a process that runs no foreign code."""

_PROT_EXEC = 4
_CLONE_THREAD = 0x00010000
# NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET; NEWTIME is no flag of clone.
_CLONE_NEW = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
_FIOCLEX = 0x5451
# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC: neither locks nor F_SETOWN, which sends signals.
_FCNTL = (0, 1, 2, 3, 4, 1030)


@dataclass(frozen=True)
class Condition:
    """On the low 32 bits of one argument: one of `values` if given, a bit of `required`, none of `forbidden`."""

    argument: int
    values: tuple[int, ...] = ()
    required: int = 0
    forbidden: int = 0


CONDITIONS = {
    # A hostile layer may hold a libgcc_s.so.1 or a Python extension: nothing of it is ever mapped as code.
    "mmap": Condition(2, forbidden=_PROT_EXEC),
    "mprotect": Condition(2, forbidden=_PROT_EXEC),
    "clone": Condition(0, required=_CLONE_THREAD, forbidden=_CLONE_NEW),
    "ioctl": Condition(1, values=(_FIOCLEX,)),
    "fcntl": Condition(1, values=_FCNTL),
    "prctl": Condition(0, values=(kernel.PR_SET_NAME,)),
    "prlimit64": Condition(0, values=(0,)),
}


def program(machine: str) -> bytes:
    """The filter as an array of struct sock_filter.

    Raises:
        OSError: ENOSYS, the numbers of this machine are not known here.
    """
    if machine not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no system call numbers known for {machine}")
    column, architecture = _ARCHITECTURES[machine]
    code = [
        _op(_LOAD_WORD, _OFFSET_ARCHITECTURE),
        _op(_EQUAL, architecture, yes=1),
        _op(_RETURN, _KILL),
        _op(_LOAD_WORD, _OFFSET_NUMBER),
    ]
    if machine == "x86_64":
        code += [_op(_AT_LEAST, _X32_BIT, no=1), _op(_RETURN, _KILL)]
    free = [numbers[column] for numbers in FREE.values()]
    if machine == "x86_64":
        free += FREE_ON_X86.values()
    for number in free:
        code += [_op(_EQUAL, number, no=1), _op(_RETURN, _ALLOW)]
    for name, condition in CONDITIONS.items():
        block = _decide(condition)
        code += [_op(_EQUAL, LOOKED_AT[name][column], no=len(block)), *block]
    # Its flags stand behind a pointer, where a filter cannot look; without it the C library uses clone.
    code += [_op(_EQUAL, LOOKED_AT["clone3"][column], no=1), _op(_RETURN, _ERRNO | errno.ENOSYS)]
    code += [_op(_GREATER, _NEWEST, no=1), _op(_RETURN, _ERRNO | errno.ENOSYS)]
    code += [_op(_RETURN, _ERRNO | errno.EPERM)]
    return b"".join(code)


class Filter:
    """A program made once, installed by every worker."""

    def __init__(self, machine: str | None = None) -> None:
        code = program(machine or platform.machine())
        self._code = ctypes.create_string_buffer(code, len(code))
        # struct sock_fprog: a length in instructions, a pointer.
        self._prog = ctypes.create_string_buffer(
            struct.pack("@HP", len(code) // 8, ctypes.addressof(self._code))
        )

    def install(self) -> None:
        """For this thread and those it starts, for good. Needs no_new_privs or CAP_SYS_ADMIN."""
        kernel.syscall(
            "seccomp", ctypes.c_uint(_SET_MODE_FILTER), ctypes.c_uint(_SPEC_ALLOW), ctypes.byref(self._prog)
        )


def _op(code: int, operand: int, *, yes: int = 0, no: int = 0) -> bytes:
    """One struct sock_filter; `yes` and `no` are how many instructions a comparison jumps over."""
    return struct.pack("@HBBI", code, yes, no, operand)


def _decide(condition: Condition) -> list[bytes]:
    """Instructions that end in a return for every argument."""
    # Little-endian on both machines: the low word comes first.
    block = [_op(_LOAD_WORD, _OFFSET_ARGUMENTS + 8 * condition.argument)]
    if condition.required:
        block += [_op(_ANY_BIT, condition.required, yes=1), _op(_RETURN, _ERRNO | errno.EPERM)]
    if condition.forbidden:
        block += [_op(_ANY_BIT, condition.forbidden, no=1), _op(_RETURN, _ERRNO | errno.EPERM)]
    for value in condition.values:
        block += [_op(_EQUAL, value, no=1), _op(_RETURN, _ALLOW)]
    block += [_op(_RETURN, _ERRNO | errno.EPERM if condition.values else _ALLOW)]
    return block
