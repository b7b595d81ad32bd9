"""The documentation as a site: it builds without a warning, holds every page, and its tutorial runs."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import fields
from html import unescape
from pathlib import Path

import click
import pyarrow.parquet as pq
import pytest
import yaml
from processes import PATIENCE_S

import gbad_batch
from gbad_batch import ScanSettings
from gbad_batch.engine.commands.cli import main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CONFIGURATION = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
MKDOCS = Path(sys.executable).with_name("mkdocs")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site; every warning is an error."""
    if not MKDOCS.exists():
        pytest.skip("the extra docs is not installed")
    folder = tmp_path_factory.mktemp("site")
    words = [str(MKDOCS), "build", "--strict", "--quiet", "--site-dir", str(folder)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=PATIENCE_S)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def text_of(page: Path) -> str:
    return unescape(re.sub(r"<[^>]+>", " ", page.read_text(encoding="utf-8")))


def test_every_page_has_its_place() -> None:
    listed = re.findall(r": (\S+\.md)$", CONFIGURATION, re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in DOCS.glob("*.md"))
    assert yaml.safe_load(CONFIGURATION)["strict"] is True


def test_the_pictures_are_there_and_light() -> None:
    shown = {
        name for page in DOCS.glob("*.md") for name in re.findall(r"\]\((pictures/\S+)\)", page.read_text())
    }
    assert {path.name for path in (DOCS / "pictures").iterdir()} == {Path(name).name for name in shown}
    assert sum(path.stat().st_size for path in (DOCS / "pictures").iterdir()) < 600_000


def test_ci_builds_the_site_with_the_extra_docs() -> None:
    run = (ROOT / ".ci" / "run").read_text()
    assert "mkdocs build --quiet --strict" in run
    assert "-e '.[dev,docs]'" in run
    assert "run: .ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert not [line for line in extras["dev"] if "mkdocs" in line]  # tests need no site


@pytest.mark.slow
def test_the_site_asks_no_other_server(site: Path) -> None:
    loaded = [
        f"{page.name}: {address}"
        for page in site.rglob("*.html")
        for address in re.findall(
            r"<(?:script|img|link rel=\"stylesheet\")[^>]+(?:src|href)=\"(\w+://[^\"]+)", page.read_text()
        )
    ]
    assert loaded == []
    assert "repo_url" not in CONFIGURATION  # of which the theme asks GitHub for stars


@pytest.mark.slow
def test_the_reference_names_every_command_with_its_options(site: Path) -> None:
    page = text_of(site / "reference-commands" / "index.html")

    def missing(command: click.Command, name: str) -> list[str]:
        if isinstance(command, click.Group):
            found = [missing(child, f"{name} {word}") for word, child in command.commands.items()]
            return [each for some in found for each in some]
        options = [
            max(p.opts, key=len) for p in command.params if isinstance(p, click.Option) and not p.hidden
        ]
        return [f"{name} {option}" for option in options if option not in page]

    assert missing(main, "gbad-batch") == []
    assert all(re.search(rf"\b{re.escape(name)}\b", page) for name in main.commands)


@pytest.mark.slow
def test_the_reference_names_the_python_interface_and_every_setting(site: Path) -> None:
    page = text_of(site / "reference-python" / "index.html")
    assert [name for name in gbad_batch.__all__ if name not in page and name != "__version__"] == []
    assert [field.name for field in fields(ScanSettings) if field.name not in page] == []
    for method in ("run", "rows", "to_frame", "stop", "open", "score"):
        assert re.search(rf"\b{method}\b", page)


@pytest.mark.slow
def test_links_out_of_the_docs_lead_to_the_repository(site: Path) -> None:
    pages = "".join(page.read_text() for page in site.rglob("index.html"))
    assert "/blob/main/CONTRIBUTING.md" in pages
    assert not re.findall(r"href=\"(?:\.\./)+[A-Z]+(?:\.md)?\"", pages)


@pytest.mark.slow
def test_the_tutorial_leads_to_a_report(tmp_path: Path) -> None:
    """All but the installation, in its own environment and with the default model."""
    text = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    assert blocks[0].startswith("python3 -m venv")
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for block in ["gbad-batch doctor >doctor || true\n", *blocks[1:]]:
        ran = subprocess.run(
            ["sh", "-ec", block], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert ran.returncode == 0, f"{block}\n{ran.stderr}"
    assert pq.read_metadata(tmp_path / "results.parquet").num_rows == 61
    assert pq.read_metadata(tmp_path / "fewer.parquet").num_rows == 61
    assert (tmp_path / "report.html").stat().st_size > 100_000
    shutil.rmtree(tmp_path / "bags")
