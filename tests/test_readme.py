"""What the README, CI and the command promise of each other."""

import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from gbad_batch.engine.commands.cli import main
from gbad_batch.engine.results.schema import COLUMNS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python3 -m venv .*$", README, re.MULTILINE)


def test_the_two_commands_come_first() -> None:
    demo, tests = COMMANDS
    assert demo.endswith(".venv/bin/gbad-batch demo")
    assert tests.endswith(".venv/bin/python -m pytest")
    assert README.index(tests) < README.index("\n## ")


def test_ci_takes_the_test_command_from_the_readme() -> None:
    pattern = re.search(r"grep -m 1 -E '([^']+)' README.md", (ROOT / ".ci" / "run").read_text())
    assert pattern is not None
    assert [command for command in COMMANDS if re.search(pattern[1], command)] == [COMMANDS[1]]


def test_the_demo_scans_its_archive_and_can_be_repeated(tmp_path: Path) -> None:
    words = [str(Path(sys.executable).with_name("gbad-batch")), "demo", str(tmp_path), "--count", "4"]
    for _ in range(2):
        ran = subprocess.run(words, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.endswith(f"Results: {tmp_path / 'results.parquet'}\n")
        assert "Most anomalous:" in ran.stdout
    assert pq.read_table(tmp_path / "results.parquet").num_rows == 4


def test_every_column_is_explained() -> None:
    named = set(re.findall(r"`(\w+)`", README))
    assert set(COLUMNS) - named == set()


@pytest.mark.parametrize("option", sorted(set(re.findall(r"`(--[a-z-]+)", README)) - {"--extra-index-url"}))
def test_options_that_the_readme_names_exist(option: str) -> None:
    known = {name for command in main.commands.values() for p in command.params for name in p.opts}
    assert option in known


def test_commands_that_the_readme_names_exist() -> None:
    assert set(re.findall(r"^gbad-batch (\w+)", README, re.MULTILINE)) <= set(main.commands)


def test_links_inside_the_repository_lead_somewhere() -> None:
    for page in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text(encoding="utf-8")):
            assert (ROOT / target).exists(), f"{page}: {target}"
