"""What is installed is what is in the folders, and the files keep the rules of the house."""

import ast
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = ("engine", "export", "kernels")
FILES = sorted(path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
EVERY_FILE = FILES + sorted(
    path.relative_to(ROOT) for folder in ("benchmarks", "tests") for path in (ROOT / folder).rglob("*.py")
)


def test_every_package_is_listed() -> None:
    on_disk = {
        ".".join(("gbad_batch", *path.parent.parts)) for path in FILES if "default_bundle" not in path.parts
    }
    assert on_disk == set(PROJECT["tool"]["setuptools"]["packages"])


def test_every_folder_with_code_is_a_package() -> None:
    assert [path for path in FILES if not (ROOT / path).with_name("__init__.py").exists()] == []


def test_every_module_has_its_layer() -> None:
    (layers,) = [c for c in PROJECT["tool"]["importlinter"]["contracts"] if c["id"] == "layers"]
    placed = set(re.findall(r"gbad_batch\.engine\.(\w+)", " ".join(layers["layers"])))
    children = {path.name for path in (ROOT / "engine").iterdir() if (path / "__init__.py").exists()}
    modules = {path.stem for path in (ROOT / "engine").glob("*.py")} - {"__init__"}
    assert modules | children == placed


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, so that no stale build folder can fill in what is missing."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    words = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(out)]
    built = subprocess.run([sys.executable, "-m", "pip", *words, str(source)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = out.iterdir()
    return path


def test_the_wheel_holds_every_module_and_the_default_bundle(wheel: Path) -> None:
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    bundle = {path.relative_to(ROOT) for path in (ROOT / "engine" / "default_bundle").iterdir()}
    typed = {Path(folder, "py.typed") for folder in FOLDERS}
    assert len(bundle) >= 5
    assert inside == {f"gbad_batch/{path.as_posix()}" for path in {*FILES, *bundle, *typed}}


def test_the_wheel_says_who_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        read = {
            Path(name).name: archive.read(name).decode()
            for name in archive.namelist()
            if ".dist-info/" in name
        }
    assert "License-Expression: Apache-2.0" in read["METADATA"]
    assert "Apache License" in read["LICENSE"]
    assert "gbad-batch = gbad_batch.engine.commands.cli:main" in read["entry_points.txt"]
    assert read["top_level.txt"].split() == ["gbad_batch"]


@pytest.fixture(scope="module")
def installed() -> Distribution:
    """Find what pip installed, not the egg-info that an editable install leaves in the checkout."""
    (found,) = distributions(name="gbad-batch", path=[sysconfig.get_path("purelib")])
    return found


def test_the_version_is_the_installed_one(installed: Distribution) -> None:
    assert installed.version == PROJECT["project"]["version"]


def test_only_one_import_name_is_installed(installed: Distribution) -> None:
    tops = {file.parts[0] for file in installed.files or [] if file.parts[0] != ".."}
    assert {top for top in tops if not top.startswith(("__", "gbad_batch"))} == set()


def test_the_changelog_knows_the_version() -> None:
    assert f"## [{PROJECT['project']['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def _pinned() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_constraints_pin_versions_by_name_alone() -> None:
    assert [line for line in _pinned() if not re.fullmatch(r"[a-z0-9-]+==[0-9][a-z0-9.]*", line)] == []
    names = [line.partition("==")[0] for line in _pinned()]
    assert names == sorted(set(names))
    assert [name for name in names if "tensorrt" in name] == []


def test_constraints_pin_whatever_is_asked_for() -> None:
    project = PROJECT["project"]
    asked = set(project["dependencies"])
    for extra in ("train", "gpu", "cluster", "dev"):
        asked |= set(project["optional-dependencies"][extra])
    names = {re.split(r"[^\w.-]", line)[0] for line in asked}
    assert names - {line.partition("==")[0] for line in _pinned()} == set()


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse((ROOT / path).read_bytes())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")


@pytest.mark.parametrize("path", FILES, ids=str)
def test_inside_the_package_imports_are_relative(path: Path) -> None:
    """An absolute import of our own would blind checkers, and by the short name load a second copy."""
    ours = {"gbad_batch", *FOLDERS}
    assert [(line, name) for line, name in _imports(path) if name.split(".")[0] in ours] == []


def test_outside_the_package_imports_go_by_the_installed_name() -> None:
    every = [(path, line, name.split(".")[0]) for path in EVERY_FILE for line, name in _imports(path)]
    assert [(str(path), line) for path, line, top in every if top in FOLDERS] == []


@pytest.mark.parametrize("path", EVERY_FILE, ids=str)
def test_functions_stay_short(path: Path) -> None:
    nodes = ast.walk(ast.parse((ROOT / path).read_bytes()))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {f.name: (f.end_lineno or f.lineno) - f.lineno + 1 for f in functions}
    assert {name: lines for name, lines in lengths.items() if lines > 60} == {}
