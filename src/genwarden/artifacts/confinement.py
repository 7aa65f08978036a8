"""What the reading child gives up before it looks at a byte of an untrusted file (R-3, goal 12).

Layers, each of which holds without the others: resource limits (memory, processor time, no file
that grows, no process, no further descriptor and so no file and no socket); the identity "nobody"
if started as root; and on Linux a seccomp filter under which the kernel refuses everything but
reading, writing, memory and leaving. Standard library only.

Sources: getrlimit(2), prctl(2), seccomp(2), <linux/audit.h>, <linux/filter.h>.
"""

from __future__ import annotations

import contextlib
import os
import resource
import struct
import sys
from typing import Final

_NOBODY: Final = 65534
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 38, 22, 2
_ALLOW, _EPERM = 0x7FFF0000, 0x00050001
_LOAD, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06

# fmt: off
#: Machine -> (AUDIT_ARCH_*, numbers of the system calls that stay allowed): read, write, close,
#: fstat, lseek, mmap, mprotect, munmap, brk, mremap, madvise, rt_sigaction, rt_sigprocmask,
#: rt_sigreturn, futex, clock_gettime, getrandom, sched_yield, exit, exit_group.
_CALLS: Final = {
    "x86_64": (0xC000003E, (0, 1, 3, 5, 8, 9, 10, 11, 12, 25, 28, 13, 14, 15, 202, 228, 318, 24,
                            60, 231)),
    "aarch64": (0xC00000B7, (63, 64, 57, 80, 62, 222, 226, 215, 214, 216, 233, 134, 135, 139, 98,
                             113, 278, 124, 93, 94)),
}
# fmt: on


def confine(memory_bytes: int, seconds: int) -> list[str]:
    """Give up everything but reading what is open, computing, and answering.

    Args:
        memory_bytes: limit of the address space.
        seconds: limit of processor time.

    Returns:
        The layers that hold: ``limits``, ``nobody``, ``seccomp``.

    Raises:
        OSError: a limit cannot be set.
    """
    layers = ["limits"]
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_CPU, seconds)
    _limit(resource.RLIMIT_FSIZE, 0)
    filtered = _prepare_filter()
    if os.getuid() == 0 and _become_nobody():
        layers.append("nobody")  # root could raise its limits again
    _limit(resource.RLIMIT_NPROC, 0)
    if sys.platform != "darwin":  # whose kernel does not limit address spaces
        _limit(resource.RLIMIT_AS, memory_bytes)
    _limit(resource.RLIMIT_NOFILE, 0)
    if filtered is not None and filtered():
        layers.append("seccomp")
    return layers


def _limit(which: int, value: int) -> None:
    try:
        resource.setrlimit(which, (value, value))
    except ValueError as error:  # the limit that is in force is lower
        if resource.getrlimit(which)[1] > value:
            raise OSError(f"limit {which} cannot be set") from error


def _become_nobody() -> bool:
    """Drop root's rights; not possible in some containers, where root has few to begin with."""
    with contextlib.suppress(OSError):
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
        return True
    return False


def _prepare_filter() -> _Filter | None:
    """The seccomp filter, ready to be installed once nothing more can be imported."""
    if sys.platform != "linux" or os.uname().machine not in _CALLS:
        return None
    try:
        return _Filter(*_CALLS[os.uname().machine])
    except (ImportError, OSError, AttributeError):
        return None  # a Python without ctypes, or a libc without prctl


class _Filter:
    """A Berkeley packet filter over system calls: the listed ones pass, others give EPERM."""

    def __init__(self, machine: int, calls: tuple[int, ...]) -> None:
        import ctypes

        steps = [(_LOAD, 0, 0, 4), (_IF_EQUAL, 1, 0, machine), (_RETURN, 0, 0, _EPERM)]
        steps.append((_LOAD, 0, 0, 0))
        steps += [(_IF_EQUAL, len(calls) - i, 0, call) for i, call in enumerate(calls)]
        steps += [(_RETURN, 0, 0, _EPERM), (_RETURN, 0, 0, _ALLOW)]
        self._steps = ctypes.create_string_buffer(
            b"".join(struct.pack("=HBBI", *step) for step in steps)
        )
        address = ctypes.addressof(self._steps)
        self._program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), address))
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl
        self._prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
        self._address = ctypes.addressof(self._program)

    def __call__(self) -> bool:
        """Install it for good; whether the kernel took it."""
        if self._prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            return False
        return not self._prctl(_PR_SET_SECCOMP, _FILTER, self._address, 0, 0)
