"""What is installed is what is in the folders."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterator
from functools import partial
from importlib.metadata import Distribution, distributions
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = ("engine", "export", "kernels")
FILES = sorted(path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
EVERY_FILE = FILES + sorted(
    path.relative_to(ROOT) for folder in ("benchmarks", "tests") for path in (ROOT / folder).rglob("*.py")
)


def _installed_at(path: Path) -> PurePosixPath:
    """Say where in site-packages a file of the repository goes; `engine/_root` is the root of the package."""
    inside = path.relative_to("engine/_root") if path.is_relative_to("engine/_root") else path
    return PurePosixPath("gbad_batch", inside)


def test_every_package_is_listed() -> None:
    on_disk = {".".join(_installed_at(path).parent.parts) for path in FILES}
    assert on_disk == set(PROJECT["tool"]["setuptools"]["packages"])


def test_every_folder_with_code_is_a_package() -> None:
    assert [path for path in FILES if not (ROOT / path).with_name("__init__.py").exists()] == []


def test_checkers_see_the_package_as_it_is_installed() -> None:
    links = {path.name: path.resolve().relative_to(ROOT) for path in (ROOT / ".typing/gbad_batch").iterdir()}
    root = {path.name: path for path in FILES if path.parent == Path("engine/_root")}
    assert links == root | {name: Path(name) for name in FOLDERS}


def test_every_module_has_its_layer() -> None:
    (layers,) = [c for c in PROJECT["tool"]["importlinter"]["contracts"] if c["id"] == "layers"]
    placed = set(re.findall(r"gbad_batch\.engine\.(\w+)", " ".join(layers["layers"])))
    children = {path.parent.name for path in (ROOT / "engine").glob("[!_]*/__init__.py")}
    modules = {path.stem for path in (ROOT / "engine").glob("*.py")} - {"__init__"}
    assert modules | children == placed


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, so that no stale build folder can fill in what is missing."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source / name)
    words = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(out)]
    built = subprocess.run([sys.executable, "-m", "pip", *words, str(source)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = out.iterdir()
    return path


def test_the_wheel_holds_every_module_and_the_default_bundle(wheel: Path) -> None:
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    bundle = {path.relative_to(ROOT) for path in (ROOT / "engine" / "default_bundle").iterdir()}
    page = {Path("engine/report", name) for name in ("page.html", "page.css", "page.js")}
    assert len(bundle) >= 5
    others = {*bundle, *page, Path("engine/_root/py.typed")}
    assert inside == {str(_installed_at(path)) for path in {*FILES, *others}}


def test_the_wheel_runs_as_a_module_and_exports_the_public_names(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    names = "GbadError Refused Row Scan ScanSettings Stopped Summary TooManyFailures"
    code = (
        f"import gbad_batch\nprint(gbad_batch.__file__, *(getattr(gbad_batch, n) for n in {names.split()}))"
    )
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    python = partial(subprocess.run, cwd=tmp_path, env=env, capture_output=True, text=True)
    read = python([sys.executable, "-c", code])
    assert read.returncode == 0, read.stderr
    assert read.stdout.startswith(f"{tmp_path}/gbad_batch/__init__.py ")
    ran = python([sys.executable, "-m", "gbad_batch", "--version"])
    assert ran.stdout == f"gbad-batch, version {PROJECT['project']['version']}\n", ran.stderr


def test_the_wheel_says_who_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        read = {
            Path(name).name: archive.read(name).decode()
            for name in archive.namelist()
            if ".dist-info/" in name
        }
    assert "License-Expression: Apache-2.0" in read["METADATA"]
    assert "Apache License" in read["LICENSE"]
    assert "tensorflow/tpu" in read["NOTICE"]
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
    # its libraries are not on PyPI; the bindings, which tests read names from, are
    assert [name for name in names if "tensorrt" in name] == ["tensorrt-cu13-bindings"]


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


def test_imports_are_relative_inside_the_package_and_by_the_installed_name_outside() -> None:
    """An absolute import inside blinds checkers; by the short name, it loads a second copy."""
    inside = {path for path in FILES if "_root" not in path.parts}
    wrong = [
        f"{path}:{line}: {name}"
        for path in EVERY_FILE
        for line, name in _imports(path)
        if name.split(".")[0] in FOLDERS or (path in inside and name.split(".")[0] == "gbad_batch")
    ]
    assert wrong == []
