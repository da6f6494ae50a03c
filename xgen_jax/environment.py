"""What a process asks of the system before it loads jax."""

import os
import sys

TUNABLES = "GLIBC_TUNABLES"


def ask_for_huge_pages() -> None:
    """Begins this process again, once, with memory in pages of 2 MiB; for the first line of a
    script.

    Each run of a compiled program takes its scratch memory anew, and in pages of 4 KiB the kernel
    spends so long handing it out that a step of a small transformer on CPU takes half as long
    again. The C library (glibc, Linux) reads the setting when a process begins, and never after.
    Nothing happens where it is set already, in another system, once jax is loaded, under a
    debugger, or where no file is run: a notebook or standard input would be lost.
    """
    if sys.platform != "linux" or TUNABLES in os.environ or "jax" in sys.modules:
        return
    if sys.gettrace() is not None or not os.path.isfile(
        getattr(sys.modules["__main__"], "__file__", "")
    ):
        return
    os.environ[TUNABLES] = "glibc.malloc.hugetlb=1"
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
