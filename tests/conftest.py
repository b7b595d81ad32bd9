"""What tests share: a small bundle that is real in every part, and a cache that is not the user's."""

import logging
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_bundle as tiny

from gbad_batch.engine.bundle import Bundle, write_bundle


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep engines that tests build out of the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "gbad-batch"


@pytest.fixture(autouse=True)
def own_log_level() -> Iterator[None]:
    """Undo what a command that ran in this process set: `--quiet` would hide the next test's warnings."""
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Write a bundle of 64 x 64 pixels and a few random convolutions; scores in milliseconds."""
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny", tiny.manifest(), tiny.files())


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Give a folder that other users may reach, as pytest's own, and on some machines /tmp, may not be."""
    above = next(filter(_is_open, map(Path, (tempfile.gettempdir(), "/var/tmp", "/dev/shm"))), None)
    if above is None:
        pytest.skip("this machine has no folder for temporary files that another user may reach")
    folder = Path(tempfile.mkdtemp(dir=above))
    folder.chmod(0o755)
    yield folder
    subprocess.run(["chmod", "-R", "u+rwx", str(folder)], check=True)
    shutil.rmtree(folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a file system of 400 kB, which a test can fill."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def _is_open(folder: Path) -> bool:
    """Tell whether every user may pass through a folder and those above it."""
    return folder.is_dir() and all(each.stat().st_mode & 0o001 for each in (folder, *folder.parents))
