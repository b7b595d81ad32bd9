"""What a person reads on a terminal: the summary, the bar of a scan, help, completion, and advice."""

import json
import logging
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import stand_in_stages as stand_ins
from click.testing import CliRunner
from PIL import Image
from terminal import on_a_terminal

from gbad_batch import Refused, Scan, ScanSettings, Stopped, Summary
from gbad_batch.engine.bundle import Bundle
from gbad_batch.engine.commands.cli import main
from gbad_batch.engine.commands.console import summary_text
from gbad_batch.engine.summary import Suspicion

PROGRAM = str(Path(sys.executable).with_name("gbad-batch"))
FOUND = Summary(
    "/out.parquet", images=79, ok=73, containers=1, failed={"truncated": 6, "archive_truncated": 1}
)


def said(*words: object, code: int = 0) -> str:
    """Run a command in this process; returns what it printed."""
    ran = CliRunner().invoke(main, list(map(str, words)))
    assert ran.exit_code == code, ran.output
    return ran.output


# --- the summary --------------------------------------------------------------------------------------------


def test_containers_are_no_failed_images() -> None:
    assert summary_text(FOUND).startswith("79 images: 73 scored, 6 failed, 1 archive cut short (")
    folders = replace(FOUND, images=1, ok=1, containers=3, failed={"unlistable": 2, "unreadable": 1})
    assert summary_text(folders).startswith(
        "1 image: 1 scored, 0 failed, 2 folders not listed, 1 archive not read ("
    )


def test_the_table_holds_any_number_of_threats() -> None:
    worst = [
        Suspicion("/a.jpg", 2.0, True, ["gun", "knife", "scissors"]),
        Suspicion("/b.jpg", 1.0, False, []),
    ]
    head, *lines = (
        summary_text(replace(FOUND, most_anomalous=worst)).partition("Most anomalous:\n")[2].split("\n")
    )
    at = head.index("image")
    assert [line[at:] for line in lines[:2]] == ["/a.jpg", "/b.jpg"]


# --- a scan -------------------------------------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Nine images of the same pixels, a broken one, and what is left out."""
    folder = tmp_path / "archive"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    for name in "ihgfedcba":
        Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "link.png").symlink_to("a.png")
    return folder


@pytest.fixture
def settings(archive: Path, tiny_bundle: Bundle, own_cache: Path, tmp_path: Path) -> ScanSettings:
    return ScanSettings(
        sources=(archive,),
        out=tmp_path / "r.parquet",
        model=tiny_bundle.path,
        cache_dir=own_cache,
        threshold=-1e9,  # everything raises an alarm
        batch_size=1,
        threads=1,
    )


def test_a_resumed_scan_counts_what_was_done_and_fits_a_narrow_terminal(settings: ScanSettings) -> None:
    first = Scan(settings, stand_ins.open_slow)
    with pytest.raises(Stopped, match="on request"):
        first.run(lambda progress: first.stop() if progress.done >= 4 else None)
    done = first.progress.done
    assert (first.progress.failed, first.progress.alarms) == (1, done - 1)
    words = [PROGRAM, "scan", *map(str, settings.sources), "--out", settings.out, "--model", settings.model]
    words += ["--cache-dir", settings.cache_dir, "--threshold", "-1e9", "--threads", 1]
    lines = re.split(r"[\r\n]+", on_a_terminal(list(map(str, words)), columns=60)[2])
    assert f"gbad-batch: resuming with {done} rows already finished" in lines
    bars = [line for line in lines if line.startswith("scan")]
    assert bars[0] == "scan: opening the model"
    assert max(map(len, bars)) < 60
    assert re.match(r"scan 10/10, [\d.]+ img/s, 1 failed, 9 alarms", bars[-1])


def test_equal_scores_stand_by_name_and_cpu_seconds_add_up(settings: ScanSettings) -> None:
    summary = Scan(settings).run()
    assert [Path(worst.uri).name for worst in summary.most_anomalous] == [f"{name}.png" for name in "abcde"]
    assert summary.stage_cpu_seconds["score"] > 0
    assert summary.cpu_seconds == pytest.approx(sum(summary.stage_cpu_seconds.values()))
    assert "left out: 1 symbolic link (--follow-links follows them)" in summary_text(summary)


def test_the_debug_log_tells_choices_chunks_and_parts(
    settings: ScanSettings, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "gbad_batch"):
        Scan(settings).run()
    for told in ("precision auto resolve to Choice", "worker 0 .* is ready", "chunk 0: 1 rows", "durable"):
        assert re.search(told, caplog.text), told


# --- advice -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["-", "rows.csv", "folder.x/rows.XLSX"])
def test_an_output_of_another_format_is_refused_naming_export(out: str) -> None:
    with pytest.raises(Refused, match=r"gbad-batch export .*\.parquet "):
        ScanSettings(out=out)


def test_what_is_there_instead_of_images_is_told_with_what_takes_it_in(
    tmp_path: Path, tiny_bundle: Bundle
) -> None:
    (tmp_path / "a").symlink_to("nowhere")
    with zipfile.ZipFile(tmp_path / "bags.zip", "w") as bags:
        bags.writestr("bag.jpg", b"bag")
    settings = ScanSettings(sources=(tmp_path,), out=tmp_path / "r.parquet", model=tiny_bundle.path)
    with pytest.raises(Refused) as refused:
        Scan(settings).run()
    assert "1 symbolic link (--follow-links follows them)" in str(refused.value)
    assert "1 .zip file (zip archives are not read: unpack them" in str(refused.value)
    (row,) = Scan(replace(settings, sources=(tmp_path / "bags.zip",))).rows()
    assert (row.status, row.error) == (
        "not_an_image",
        "the content is a zip archive, which is not read: unpack it, or repack it as .tar",
    )


def test_a_missing_extra_is_installed_from_the_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagehash", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "imagehash" else name)
    told = said("data", "check", ".", code=2)
    assert "in your clone of gbad-batch run pip install -c constraints.txt '.[train]'" in told


# --- help, completion, configuration ------------------------------------------------------------------------


def test_the_help_of_a_scan_has_sections_with_the_rare_last() -> None:
    sections = re.findall(r"^(\w.*):$", said("scan", "--help"), re.MULTILINE)
    assert (sections[0], sections[-1]) == ("Output", "Speed and limits (rarely needed)")
    assert len(sections) == len(set(sections)) == 6


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("scan --dec", "plain,--decision"),
        ("scan --decision c", "plain,classes"),
        ("scan --retry trunc", "plain,truncated"),
        ("scan --out re", "file,re"),
        ("scan arch", "file,arch"),
    ],
)
def test_the_shell_completes(typed: str, offered: str) -> None:
    words = f"gbad-batch {typed}"
    environment = {
        "_GBAD_BATCH_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    ran = CliRunner().invoke(main, env=environment, prog_name="gbad-batch", catch_exceptions=False)
    assert offered in ran.output.splitlines()


def test_a_shell_takes_the_script_for_completion(tmp_path: Path) -> None:
    script = tmp_path / "completion"
    script.write_text(said("completion", "bash"))
    done = subprocess.run(
        ["bash", "-c", f". {script} && complete -p gbad-batch"], capture_output=True, text=True
    )
    assert "_gbad_batch_completion" in done.stdout, done.stderr


def test_train_and_tune_read_their_tables(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[train]\nseeed = 1\n")
    assert "unknown key 'seeed' in [train]" in said("train", ".", "--out", "x", "--config", file, code=2)
    file.write_text(f"[tune]\nmodel = {json.dumps(str(tmp_path / 'absent'))}\n")
    assert "absent" in said("tune", "--config", file, code=2)


def test_synthesis_tells_what_it_does_off_a_terminal_too(tmp_path: Path) -> None:
    ran = CliRunner().invoke(main, ["synth", str(tmp_path / "bags"), "--count", "2"])
    assert ran.exit_code == 0, ran.output
    assert "synth: 2 of 2" in ran.stderr


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_a_script_too(shell: str) -> None:
    assert "_GBAD_BATCH_COMPLETE" in said("completion", shell)
    assert f"gbad-batch completion {shell} >" in said("completion", "--help")


# --- commands in the foreground -----------------------------------------------------------------------------


def test_a_benchmark_whose_reader_has_gone_ends_without_a_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "benchmarks", "--help"]
    root = Path(__file__).parent.parent
    ran = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True, cwd=root)
    os.close(write)
    assert ran.stderr == ""
    assert ran.returncode == 1
