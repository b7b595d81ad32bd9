"""What tests share: a small bundle that is real in every part, and a cache that is not the user's."""

import logging
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
