"""What the README, CI and the command promise of each other."""

import os
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import click
import pyarrow.parquet as pq
import pytest
from processes import PATIENCE_S

from gbad_batch.engine.commands.cli import main
from gbad_batch.engine.results.schema import COLUMNS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python3 -m venv .*$", README, re.MULTILINE)
OWN = ["README.md", *(f"docs/{name}.md" for name in ("usage", "python", "results", "models", "machines"))]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
    *map(str, (ROOT / "docs").glob("*.md")),
]


def blocks(page: str, language: str) -> list[str]:
    """Return the text of a page's fenced blocks of one language, in their order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)


def calls(program: str) -> list[tuple[str, list[str]]]:
    """Find every call of a program in the pages' shell blocks and code spans: the page, and the arguments."""
    found = []
    for page in PAGES:
        spans = re.findall(
            r"`([^`\n]+)`", re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
        )
        lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
        for text in [*lines, *spans]:
            for command in re.split(r" (?:&&|\|\|?) ", text):
                start = re.match(rf"\s*(?:\S*/)?{program}(?=\s|$)", command)
                if start is not None:
                    found.append((Path(page).name, shlex.split(command[start.end() :], comments=True)))
    return found


def test_the_two_commands_come_first() -> None:
    demo, tests = COMMANDS
    assert demo.endswith(".venv/bin/gbad-batch demo")
    assert tests.endswith(".venv/bin/python -m pytest")
    assert README.index(tests) < README.index("\n## ")


def test_ci_takes_the_test_command_from_the_readme() -> None:
    pattern = re.search(r"grep -m 1 -E '([^']+)' README.md", (ROOT / ".ci" / "run").read_text())
    assert pattern is not None
    assert [command for command in COMMANDS if re.search(pattern[1], command)] == [COMMANDS[1]]


@pytest.mark.slow
def test_the_demo_scans_its_archive_and_can_be_repeated(tmp_path: Path) -> None:
    words = [str(Path(sys.executable).with_name("gbad-batch")), "demo", str(tmp_path), "--count", "4"]
    for _ in range(2):
        ran = subprocess.run(words, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        results, page = tmp_path / "results.parquet", tmp_path / "report.html"
        assert ran.stdout.endswith(f"Results: {results}\nReport: {page}\n")
        assert page.stat().st_size
        assert "Most anomalous:" in ran.stdout
    assert pq.read_table(tmp_path / "results.parquet").num_rows == 4


def test_every_column_is_explained() -> None:
    named = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "results.md").read_text(encoding="utf-8")))
    assert set(COLUMNS) - named == set()


def options_named() -> set[str]:
    """Options that stand in code spans of pages that are about our commands only."""
    pages = "".join((ROOT / page).read_text(encoding="utf-8") for page in OWN)
    return set(re.findall(r"`(--[a-z-]+)", pages)) - {"--extra-index-url"}


@pytest.mark.parametrize("option", sorted(options_named()))
def test_options_that_the_pages_name_exist(option: str) -> None:
    known = {name for command in main.commands.values() for p in command.params for name in p.opts}
    assert option in known


def test_the_package_is_installed_from_a_clone() -> None:
    assert "The package is on no index" in README
    lines = re.findall(r"pip install .*", "\n".join((ROOT / page).read_text("utf-8") for page in PAGES))
    assert len(lines) > 5
    assert [line for line in lines if re.search(r"pip install(?: -\S+| constraints\.txt)* gbad", line)] == []


def parsed(command: click.Command, words: list[str]) -> None:
    """Parse a command line without running it; raises UsageError for what the command does not know."""
    ctx = click.Context(command)
    _, rest, _ = command.make_parser(ctx).parse_args(list(words))
    if isinstance(command, click.Group) and rest and rest[0] != "COMMAND":
        _, child, rest = command.resolve_command(ctx, rest)
        assert child is not None
        parsed(child, rest)


def test_every_command_line_of_the_pages_parses() -> None:
    lines = calls("gbad-batch")
    assert len(lines) > 25
    refused = []
    for page, words in lines:
        try:
            parsed(main, words)
        except click.UsageError as error:
            refused.append(f"{page}: gbad-batch {shlex.join(words)}: {error.format_message()}")
    assert refused == []


@pytest.mark.parametrize("words", [["scn"], ["scan", "x", "--no-such"], ["data", "chek"]], ids=shlex.join)
def test_a_wrong_command_line_does_not_parse(words: list[str]) -> None:
    with pytest.raises(click.UsageError):
        parsed(main, words)


def test_every_benchmark_of_the_pages_exists_with_its_options() -> None:
    listed = subprocess.run([sys.executable, "-m", "benchmarks"], cwd=ROOT, capture_output=True, text=True)
    known = {
        line.split()[0].replace("_", "-") for line in listed.stdout.splitlines() if line.startswith("  ")
    }
    source = "".join(path.read_text() for path in (ROOT / "benchmarks").rglob("*.py"))
    asked = [words for _, words in calls("python -m benchmarks") if words]
    assert {"crash", "throughput", "gpu"} <= {words[0] for words in asked} <= known
    options = {word for words in asked for word in words if word.startswith("--")}
    assert {option for option in options if f'"{option}"' not in source} == set()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder to give the README's commands in: four synthetic bags with labels, and a tar of them."""
    folder = tmp_path_factory.mktemp("readme")
    shell(
        "gbad-batch synth bags/ --count 4 --positive 0.5 && mkdir shards && touch -d 1970-01-02 last", folder
    )
    with tarfile.open(folder / "shards" / "0.tar", "w") as tar:
        tar.add(folder / "bags" / "images", "images")
    return folder


def shell(command: str, cwd: Path) -> None:
    """Run a line of a page with this environment's programs; `/archive` stands for the synthetic images."""
    line = command.replace("/archive", f"{cwd}/bags/images")
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    ran = subprocess.run(
        ["sh", "-c", line], cwd=cwd, env=env, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert ran.returncode == 0, f"{line}\n{ran.stderr}"


SHELL = "".join(text for page in OWN for text in blocks(page, "sh"))
CHEAP = [
    line
    for line in dict.fromkeys(line.partition("#")[0].strip() for line in SHELL.splitlines())
    if re.search(r"gbad-batch (scan|doctor|data)\b", line) and not re.search("my-bundle|--model site", line)
]


@pytest.mark.parametrize("command", CHEAP, ids=CHEAP)
def test_the_cheap_commands_of_the_pages_run(command: str, archive: Path) -> None:
    (archive / "results.parquet").unlink(missing_ok=True)
    shell(command, archive)
    if written := re.search(r"--out (\S+)", command):
        assert pq.read_table(archive / written[1]).num_rows == 4


def test_the_python_blocks_of_the_readme_run(
    archive: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (archive / "results.parquet").unlink(missing_ok=True)
    monkeypatch.chdir(archive)
    images = archive / "bags" / "images"
    page = "docs/python.md"
    assert set(blocks("README.md", "python")) == set(blocks(page, "python"))
    for block in blocks(page, "python"):
        code = block.replace("/archive/bag.jpg", str(next(images.iterdir()))).replace("/archive", str(images))
        exec(compile(code, page, "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 4 + 1
    assert all("ok " in line for line in printed)


def test_links_inside_the_repository_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text(encoding="utf-8")):
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_the_readme_is_short_and_leads_on() -> None:
    assert len(README.splitlines()) <= 200
    assert re.search(r"!\[[^]]+\]\(docs/report\.png\)", README)
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    named = set(re.findall(r"\(docs/(\S+?\.md)\)", README))
    built = {"index.md", "reference-commands.md", "reference-python.md"}  # of the site
    assert pages - named - built == {"nightly.md", "soak.md"}  # which the figures lead to
