"""The container file, as far as it can be checked without an engine that builds it."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Containerfile").read_text(encoding="utf-8")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def instructions() -> list[tuple[str, str]]:
    """Words of every instruction, comments left out and continued lines joined."""
    plain = "\n".join(line for line in TEXT.splitlines() if not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", plain)
    return [(line.split()[0], line.partition(" ")[2]) for line in joined.splitlines() if line]


def of(kind: str) -> list[str]:
    return [words for name, words in instructions() if name == kind]


ENV = {key: value for line in of("ENV") for key, _, value in (word.partition("=") for word in line.split())}


def test_addresses_are_given_by_who_builds() -> None:
    assert of("ARG") == ["BASE", "EXTRA_INDEX"]  # no defaults
    assert of("FROM") == ["${BASE}"]
    assert "://" not in TEXT
    assert re.findall(r"\b[\w-]+\.(?:com|io|net|org|ai|dev)\b", TEXT) == []


def test_every_extra_is_installed_with_the_pinned_versions() -> None:
    (install,) = [words for words in of("RUN") if "pip install" in words]
    (extras,) = re.findall(r"'\.\[([\w,]+)\]'", install)
    assert set(extras.split(",")) == set(EXTRAS)
    assert "-c constraints.txt" in install
    assert '--extra-index-url "${EXTRA_INDEX}"' in install
    assert 'test -n "${EXTRA_INDEX}"' in install


def test_what_is_copied_is_here_and_all_that_the_package_needs() -> None:
    copied = {name for words in of("COPY") for name in words.split()[:-1]}
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert {"engine", "export", "kernels", "benchmarks", "tests", "pyproject.toml"} <= copied


def test_it_is_not_run_by_root() -> None:
    (user,) = of("USER")
    assert re.fullmatch(r"[1-9]\d*:0", user)
    assert instructions().index(("USER", user)) > max(
        i for i, (name, _) in enumerate(instructions()) if name == "RUN"
    )


USE = """
import getpass, os
from pathlib import Path
from gbad_batch.engine.runtime.cache import EngineCache  # before that: it may lie where only root may look
os.setresgid(*3 * [54321])
os.setresuid(*3 * [54321])
getpass.getuser()
assert Path.home() == Path(os.environ["HOME"])
cache = EngineCache.open()
assert cache is not None and cache.path.parent == Path(os.environ["XDG_CACHE_HOME"])
"""


def test_a_user_whom_the_system_does_not_know_has_a_name_a_home_and_a_cache(open_folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    assert f"mkdir -m 1777 {ENV['XDG_CACHE_HOME']} {ENV['HOME']}\n" in TEXT
    for name in ("cache", "home"):
        (open_folder / name).mkdir()
        (open_folder / name).chmod(0o1777)
    folders = {"HOME": f"{open_folder}/home", "XDG_CACHE_HOME": f"{open_folder}/cache"}
    env = ENV | folders | {"PATH": os.environ["PATH"]}
    ran = subprocess.run([sys.executable, "-c", USE], env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
