"""A process that kills itself midway, so that what it leaves can be looked at."""

import os
import signal
import sys

CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree")  # of folders, as audit events


def die_at(number: int) -> None:
    """Have this process kill itself before its change of a folder of that number."""
    left = number

    def hook(event: str, _arguments: object) -> None:
        nonlocal left
        if event in CHANGES:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
