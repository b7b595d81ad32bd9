"""`scan --shard I/N` on many machines, and `merge`: together they are a scan of the whole."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image
from processes import PATIENCE_S, decoding

from gbad_batch.engine import Scan, ScanSettings
from gbad_batch.engine.bundle import Bundle
from gbad_batch.engine.commands.cli import main
from gbad_batch.engine.errors import Refused
from gbad_batch.engine.results.schema import COLUMNS, read_footer
from gbad_batch.engine.row import identity_of
from gbad_batch.engine.settings import Shard
from gbad_batch.engine.sources import ListingCounts, SourceSettings, count, find

COMMAND = str(Path(sys.executable).with_name("gbad-batch"))
N, ROWS = 5, 88
EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


def picture(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8 + number % 5, 8), (number % 251, 7 * number % 251, 99)).save(path)
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an archive with folders, tars of all kinds, bad files, and a tar that ends early."""
    root = tmp_path_factory.mktemp("shards") / "archive"
    for number in range(40):
        picture(root / f"day{number % 3}" / f"bag{number:03d}.png", number)
    for name, mode in (("a.tar", "w"), ("b.tar.gz", "w:gz"), ("c.tgz", "w:gz"), ("d.tar", "w")):
        with tarfile.open(root / name, mode) as tar:  # type: ignore[call-overload]
            for number in range(12):
                tar.add(picture(root.parent / "member.png", number), f"in/bag{number}.png")
    cut = root / "d.tar"
    cut.write_bytes(cut.read_bytes()[:-11_000])
    (root / "day1" / "bag900.png").write_bytes(b"")
    (root / "day1" / "bag901.jpg").write_bytes(b"nothing of the kind")
    return root


def settings(archive: Path, out: Path, bundle: Bundle, **given: Any) -> ScanSettings:
    return ScanSettings(sources=(archive,), out=out, model=bundle.path, **{"threads": 1, **given})


def rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows, but for when they were scanned."""
    return pq.read_table(path).select([name for name in COLUMNS if name != "scanned_at"]).to_pylist()


@pytest.fixture(scope="module")
def whole(archive: Path, tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "whole.parquet"
    Scan(settings(archive, out, tiny_bundle)).run()
    return out


@pytest.fixture(scope="module")
def shards(archive: Path, tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("parts")
    outs = [folder / f"part-{i}.parquet" for i in range(N)]
    for i, out in enumerate(outs):
        Scan(settings(archive, out, tiny_bundle, shard=f"{i}/{N}")).run()
    return outs


def merged(parts: list[Path], out: Path, *options: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["merge", *map(str, parts), "--out", str(out), *options])
    return result.exit_code, result.output


# --- the whole ---


def test_merged_shards_equal_the_whole(shards: list[Path], whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.parquet"
    assert merged(shards[::-1], out) == (0, f"{ROWS} rows of 5 shards\n\nResults: {out}\n")
    assert rows(out) == rows(whole)
    assert pq.read_schema(out).equals(pq.read_schema(whole))
    assert list(out.parent.iterdir()) == [out]


def test_the_footer_is_that_of_the_whole(shards: list[Path], whole: Path, tmp_path: Path) -> None:
    merged(shards, tmp_path / "r.parquet")
    footer, scanned = read_footer(tmp_path / "r.parquet"), read_footer(whole)
    assert footer is not None
    assert scanned is not None
    assert footer.keys() == scanned.keys()
    apart = {"runs", "scan_id", "since"}
    assert {k: v for k, v in footer.items() if k not in apart} == {
        k: v for k, v in scanned.items() if k not in apart
    }
    assert [run.get("command") for run in footer["runs"]] == [None] * N + ["merge"]


def test_a_shard_says_which_it_is_and_every_row_is_in_one(shards: list[Path], whole: Path) -> None:
    tables = [pq.read_table(path) for path in shards]
    assert all(table.num_rows > 5 for table in tables)
    seen = [(row["uri"], row["offset"]) for table in tables for row in table.to_pylist()]
    assert len(seen) == len(set(seen)) == pq.read_table(whole).num_rows
    for i, path in enumerate(shards):
        footer = read_footer(path)
        assert footer is not None
        assert footer["fingerprint"]["shard"] == f"{i}/{N}"


def test_a_compressed_tar_lies_in_one_shard_and_a_plain_one_in_all(shards: list[Path]) -> None:
    def holders(tar: str) -> int:
        tables = (pq.read_table(path, columns=["uri"])["uri"].to_pylist() for path in shards)
        return sum(any(f"/{tar}!" in uri for uri in uris) for uris in tables)

    assert (holders("b.tar.gz"), holders("c.tgz")) == (1, 1)
    assert holders("a.tar") > 2


def test_the_merged_result_is_updated_like_any_other(
    shards: list[Path], archive: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    out = tmp_path / "r.parquet"
    merged(shards, out)
    summary = Scan(settings(archive, out, tiny_bundle, update=True)).run()
    assert (summary.scanned_now, summary.kept) == (0, ROWS)


# --- the archive goes on living, machines die ---


@pytest.mark.slow
def test_shards_are_updated_one_by_one_and_gone_rows_stay_behind(tiny_bundle: Bundle, tmp_path: Path) -> None:
    root, outs, out = (
        tmp_path / "archive",
        [tmp_path / f"{i}.parquet" for i in range(2)],
        tmp_path / "r.parquet",
    )
    files = [picture(root / f"{number:02d}.png", number) for number in range(20)]

    def update(i: int) -> tuple[int, str]:
        Scan(settings(root, outs[i], tiny_bundle, shard=f"{i}/2", update=True, keep_gone=True)).run()
        return merged(outs, out, "--overwrite")

    assert update(0)[0] == 2  # the other is missing
    assert "changed" not in update(1)[1]
    files[3].unlink()
    picture(root / "055.png", 1)
    code, text = update(0)
    assert code == 0
    assert "the archive changed while its shards were scanned" in text
    assert "changed" not in update(1)[1]
    stored = pq.read_table(out)
    names = [Path(uri).stem for uri in stored["uri"].to_pylist()]
    assert names == ["00", "01", "02", "04", "05", "055", *(f"{n:02d}" for n in range(6, 20)), "03"]
    assert stored["gone"].null_count == 20


def test_a_file_that_is_reached_twice_is_in_one_shard_and_the_others_are_finished_too(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    root = tmp_path / "archive"
    picture(root / "a" / "only.png", 3)
    outs = [tmp_path / f"{i}.parquet" for i in range(3)]
    for i, out in enumerate(outs):
        given = settings(root, out, tiny_bundle, shard=f"{i}/3")
        Scan(replace(given, sources=(root / "a", root))).run()
    assert sorted(pq.read_table(out).num_rows for out in outs) == [0, 0, 1]
    assert merged(outs, tmp_path / "r.parquet")[0] == 0
    assert pq.read_table(tmp_path / "r.parquet").num_rows == 1


def test_nothing_at_all_is_refused_by_a_shard(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    with pytest.raises(Refused, match="no image was found"):
        Scan(settings(tmp_path / "archive", tmp_path / "r.parquet", tiny_bundle, shard="0/3")).run()


@pytest.mark.slow
def test_killed_shards_are_resumed_and_merged(
    archive: Path, whole: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    outs = [tmp_path / f"{i}.parquet" for i in range(2)]
    for i, out in enumerate(outs):
        words = [COMMAND, "scan", str(archive), "--shard", f"{i}/2", "--out", str(out), "--threads", "1"]
        words += ["--model", str(tiny_bundle.path), "--batch-size", "1", "--json"]
        for _ in range(2):
            process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while process.poll() is None and not decoding(out):
                time.sleep(0.01)
            process.kill()
            process.wait()
        done = subprocess.run([*words, "--update"], capture_output=True, text=True)
        assert done.returncode in (0, 3), done.stderr
    assert merged(outs, tmp_path / "r.parquet")[0] == 0
    assert rows(tmp_path / "r.parquet") == rows(whole)


# --- gaps, overlaps, strangers ---


def test_a_gap_an_overlap_and_an_unfinished_shard_are_refused(
    shards: list[Path], whole: Path, archive: Path, tmp_path: Path
) -> None:
    out = tmp_path / "r.parquet"

    def refused(parts: list[Path]) -> str:
        code, text = merged(parts, out)
        assert code == 2
        assert not out.exists()
        assert not (tmp_path / "r.parquet.parts").exists()
        return text

    assert "2 of 5 shards are missing, 1/5, 3/5" in refused([shards[0], shards[2], shards[4]])
    assert "are both shard 1/5" in refused([*shards, shards[1]])
    assert "is no shard: it was scanned without --shard" in refused([whole])
    unfinished = tmp_path / "u.parquet"
    Path(f"{unfinished}.parts").mkdir()
    assert "is not finished: run its scan again to the end" in refused([*shards[:4], unfinished])
    assert "does not hold results" in refused([archive / "a.tar"])
    code, text = merged(shards, tmp_path, "--overwrite")
    assert code == 2
    assert "is a folder" in text
    code, text = merged(shards, shards[0], "--overwrite")
    assert (code, "is one of the shards" in text) == (2, True)


def test_shards_of_different_scans_are_refused(
    shards: list[Path], archive: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    other = tmp_path / "other.parquet"
    Scan(settings(archive, other, tiny_bundle, shard=f"4/{N}", pfa=0.01)).run()
    code, text = merged([*shards[:4], other], tmp_path / "r.parquet")
    assert code == 2
    assert "are of different scans: they differ in operating point, pfa, threshold" in text


def test_a_shard_that_was_changed_is_refused(shards: list[Path], tiny_bundle: Bundle, tmp_path: Path) -> None:
    decided = tmp_path / "decided.parquet"
    words = [
        "decide",
        str(shards[1]),
        "--pfa",
        "0.01",
        "--model",
        str(tiny_bundle.path),
        "--out",
        str(decided),
    ]
    assert CliRunner().invoke(main, words).exit_code == 0
    footer = pq.read_metadata(shards[1]).metadata
    cut = pq.read_table(shards[1]).slice(1).replace_schema_metadata(footer)
    pq.write_table(cut, tmp_path / "cut.parquet")
    for changed in (decided, tmp_path / "cut.parquet"):
        code, text = merged([shards[0], changed, *shards[2:]], tmp_path / "r.parquet")
        assert (code, "was changed since its scan" in text) == (2, True)


@pytest.mark.parametrize("text", ["5/5", "1", "x/2", "-1/4", "1/2/3", "0/0", "100000/200000", ""])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="--shard"):
        ScanSettings(shard=text)


def test_what_does_not_go_with_a_shard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="--limit"):
        ScanSettings(shard="0/2", limit=3)
    with pytest.raises(Refused, match="one file"):
        ScanSettings(shard="0/2", out=f"{tmp_path}/r/")
    assert ScanSettings(shard="01/02").shard == "1/2"


# --- how a listing is divided ---


def test_shards_are_alike_in_bytes() -> None:
    """100,000 files of unlike sizes (a spread of 50 %) in 4 shards of 25,000: each within 2 %."""
    held = [0] * 4
    for number in range(100_000):
        identity = identity_of(f"/archive/2026-11-{number % 30:02d}/bag{number:06d}.jpg", None)
        size = 30_000 + int.from_bytes(identity[:2], "little") * 4
        (shard,) = (i for i in range(4) if Shard(i, 4).takes(identity))
        held[shard] += size
    assert all(abs(size * 4 / sum(held) - 1) < 0.02 for size in held)


def test_a_file_stays_in_its_shard_whatever_comes_or_goes(tmp_path: Path) -> None:
    def listed() -> dict[str, int]:
        return {
            candidate.row.uri: i
            for i in range(3)
            for candidate in find(
                SourceSettings((tmp_path,), shard=f"{i}/3"), ListingCounts(), lambda _: True
            )
        }

    for number in range(30):
        (tmp_path / f"{number}.jpg").write_bytes(b"x")
    before = listed()
    (tmp_path / "00.jpg").write_bytes(b"y")
    (tmp_path / "7.jpg").unlink()
    after = listed()
    assert len(before) == len(after) == 30
    assert all(before.get(uri, shard) == shard for uri, shard in after.items())


def test_a_dry_run_counts_the_shard_alone(archive: Path) -> None:
    counts = [count(SourceSettings((archive,), shard=f"{i}/{N}")).candidates for i in range(N)]
    assert sum(counts) == count(SourceSettings((archive,))).candidates


def test_the_figures_can_be_had_as_json(shards: list[Path], tmp_path: Path) -> None:
    code, text = merged(shards, tmp_path / "r.parquet", "--json")
    assert code == 0
    figures = json.loads(text)
    assert (figures["shards"], figures["rows"], figures["containers"]) == (5, ROWS, 1)
    assert pa.schema(pq.read_schema(tmp_path / "r.parquet")).names == list(COLUMNS)


# --- the examples of docs/job-arrays.md ---


def run_script(name: str, folder: Path, **environment: str) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    words = ["bash", str(EXAMPLES / name)]
    ran = subprocess.run(
        words, env=os.environ | {"PATH": path, **environment}, cwd=folder, capture_output=True, text=True,
        timeout=PATIENCE_S,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr


@pytest.mark.slow
def test_the_slurm_scripts_run(archive: Path, tmp_path: Path) -> None:
    small = tmp_path / "archive"
    shutil.copytree(archive / "day1", small)
    given = {"ARCHIVE": str(small), "RESULTS": str(tmp_path / "results"), "SHARDS": "2"}
    for task in range(2):
        run_script("slurm-scan.sh", tmp_path, SLURM_ARRAY_TASK_ID=str(task), **given)
    run_script("slurm-merge.sh", tmp_path, **given)
    assert pq.read_table(tmp_path / "results" / "results.parquet").num_rows == len(list(small.iterdir()))


def test_the_slurm_array_has_a_task_for_each_shard() -> None:
    text = (EXAMPLES / "slurm-scan.sh").read_text()
    (last,), (shards,) = re.findall(r"--array=0-(\d+)\n", text), re.findall(r"SHARDS:-(\d+)", text)
    assert int(shards) == int(last) + 1


@pytest.mark.parametrize("name", ["kubernetes-scan.yaml", "kubernetes-merge.yaml"])
def test_the_kubernetes_manifests_are_valid_and_their_commands_parse(name: str) -> None:
    manifest = yaml.safe_load((EXAMPLES / name).read_text())
    kubernetes_validate.validate(manifest, "1.37", strict=True)
    spec = manifest["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    (line,) = container["args"]
    words = shlex.split(line.partition("||")[0].replace("$JOB_COMPLETION_INDEX", "3"))
    assert words[0] == "gbad-batch"
    main.commands[words[1]].make_context(words[1], words[2:])
    if "--shard" in words:
        assert words[words.index("--shard") + 1] == f"3/{spec['completions']}"
    mounted = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert mounted.keys() == {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
    assert "/results" in mounted.values()


def test_a_wrong_manifest_is_not_valid() -> None:
    manifest = yaml.safe_load((EXAMPLES / "kubernetes-scan.yaml").read_text())
    manifest["spec"]["completion"] = 16
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, "1.37", strict=True)
