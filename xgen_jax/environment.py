"""What a process asks of the system before it loads jax."""

import os
import sys

TUNABLES = "GLIBC_TUNABLES"


def ask_for_huge_pages() -> None:
    """Begins this process again, once, with memory in pages of 2 MiB.

    Each run of a compiled program takes its scratch memory anew, and in pages of 4 KiB the kernel spends so long
    handing it out that a step of a small transformer on CPU takes half as long again. The C library (glibc, Linux)
    reads the setting when a process begins, and never after. Nothing happens where it is set already, in another
    system, under a debugger, or once jax is loaded.
    """
    if sys.platform != "linux" or TUNABLES in os.environ or "jax" in sys.modules or sys.gettrace() is not None:
        return
    os.environ[TUNABLES] = "glibc.malloc.hugetlb=1"
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
