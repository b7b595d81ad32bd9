"""Tells whether Triton can launch kernels here: at the first launch it builds a small C module for Python.

So even an engine that was built elsewhere, or by TensorRT, needs a C compiler and Python's headers. Without
them the plain torch form of each operator runs on the GPU.
"""

import logging
import os
import shutil
import subprocess
import sysconfig
import tempfile
from functools import cache

log = logging.getLogger(__name__)

PACKAGES = "install gcc, libc6-dev and python3-dev (Debian, Ubuntu) or gcc and python3-devel (Fedora, RHEL)"
MOST_SECONDS = 60  # for one line of C


@cache
def triton_compiles() -> bool:
    """Tell whether Triton's kernels can be used; where not, says why, once in a process."""
    reason = lacking()
    if reason:
        log.warning(
            "Triton cannot compile its kernels (%s), so plain torch computes pooling and losses on the GPU, "
            "slower: %s",
            reason,
            PACKAGES,
        )
    return reason is None


def lacking() -> str | None:
    """Return what Triton lacks to compile here, or None.

    An empty module is built in the way of `triton.runtime.build`.
    """
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return "no C compiler is installed"
    scheme = sysconfig.get_default_scheme().replace(
        "posix_local", "posix_prefix"
    )  # of Debian, as Triton does
    headers = sysconfig.get_paths(scheme=scheme)["include"]
    with tempfile.TemporaryDirectory(prefix="gbad-batch-") as folder:
        command = [compiler, "-shared", "-fPIC", f"-I{headers}", "-x", "c", "-", "-o", f"{folder}/empty.so"]
        try:
            done = subprocess.run(  # noqa: S603 - the compiler that Triton would call
                command, input="#include <Python.h>\n", capture_output=True, text=True, timeout=MOST_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"the C compiler does not run: {error}"
    if done.returncode == 0:
        return None
    errors = [line for line in done.stderr.splitlines() if "error" in line] or ["no reason is given"]
    return f"{compiler} builds no module for Python: {errors[0].strip()[:200]}"
