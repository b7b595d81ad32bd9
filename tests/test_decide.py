"""`gbad-batch decide`: another operating point gives the rows of a scan with it, without scanning."""

import json
import re
import resource
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_bundle as tiny
from killing import die_at
from PIL import Image
from written import footer_of, rows_of

from gbad_batch.engine import Scan, ScanSettings
from gbad_batch.engine.bundle import Bundle, write_bundle
from gbad_batch.engine.errors import Refused
from gbad_batch.engine.rescreening import Decided, DecideSettings, decide
from gbad_batch.engine.results.parts import ROW_GROUP, write_parquet
from gbad_batch.engine.results.schema import (
    COLUMNS,
    FOOTER_KEY,
    footer_metadata,
    results_schema,
)

COMMAND = str(Path(sys.executable).with_name("gbad-batch"))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write seventy images, more than one block of a decision, and two files that get no score."""
    root = tmp_path_factory.mktemp("archive")
    for i, picture in enumerate(tiny.pictures(70, seed=3)):
        Image.fromarray(picture).save(root / f"bag{i:02d}.png")
    (root / "bag30 broken.jpg").write_bytes(b"no picture")
    (root / "bag31 empty.png").touch()
    return root


@pytest.fixture(scope="module")
def scanned(archive: Path, tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Scan the archive with the tiny bundle; each scan is made once."""
    made: dict[str, Path] = {}

    def scan(end: str = "", **options: Any) -> Path:
        name = f"{options}{end}"
        if name not in made:
            out = tmp_path_factory.mktemp("scanned") / "r"
            settings = {"sources": (archive,), "model": tiny_bundle.path, **options}
            Scan(ScanSettings(**settings, out=f"{out}{end}")).run()
            made[name] = out
        return made[name]

    return scan


def decided(results: Path, out: Path | str, bundle: Bundle, **options: Any) -> Decided:
    return decide(DecideSettings(**{"results": results, "out": out, "model": bundle.path, **options}))


def refusal(results: Path, out: Path | str, bundle: Bundle, **options: Any) -> str:
    """Say why nothing is decided; what stood before stands still, and nothing is beside it."""
    parent = Path(out).parent
    before = sorted((path, path.stat().st_mtime_ns) for path in parent.rglob("*"))
    with pytest.raises(Refused) as caught:
        decided(results, out, bundle, **{"pfa": 0.25, **options})
    assert sorted((path, path.stat().st_mtime_ns) for path in parent.rglob("*")) == before
    return str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"pfa": 0.25},
        {"pfa": 0.4},
        {"threshold": -0.5},
        {"decision": "classes"},
        {"decision": "combined", "pfa": 0.5},
        {"decision": "combined", "threshold": 0.1},
    ],
    ids=str,
)
def test_it_gives_the_rows_of_a_scan_with_these_options(
    scanned: Any, tiny_bundle: Bundle, tmp_path: Path, options: dict[str, Any]
) -> None:
    out = tmp_path / "new.parquet"
    figures = decided(scanned(), out, tiny_bundle, **options)
    wanted, old = rows_of(scanned(**options)), rows_of(scanned())
    found = rows_of(out)
    assert found.equals(wanted)
    assert found.schema.equals(wanted.schema)
    assert not found.equals(old)
    footer, scan = footer_of(out), footer_of(scanned(**options))
    for same in ("operating_point", "fingerprint", "bundle_hash", "rows", "images", "containers"):
        assert footer[same] == scan[same]
    now, before = (table["anomalous"].to_pylist() for table in (found, old))
    assert (figures.rows, figures.scored) == (72, 70)
    assert (figures.alarms_before, figures.alarms) == (before.count(True), now.count(True))
    assert figures.raised == sum(bool(n) and not b for n, b in zip(now, before, strict=True))
    assert figures.raised - figures.cleared == figures.alarms - figures.alarms_before
    named = [name for names in found["threats"].to_pylist() for name in names or []]
    assert figures.alarms_by_class == {name: named.count(name) for name in figures.alarms_by_class}


def test_back_from_another_decision_come_the_first_bits(
    scanned: Any, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    decided(scanned(), tmp_path / "a", tiny_bundle, decision="combined")
    decided(tmp_path / "a", tmp_path / "b", tiny_bundle, decision="gbad")
    assert rows_of(tmp_path / "b").equals(rows_of(scanned()))
    assert [run.get("command") for run in footer_of(tmp_path / "b")["runs"]] == [None, "decide", "decide"]


def test_the_footer_tells_both_runs(scanned: Any, tiny_bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "new.parquet"
    decided(scanned(), out, tiny_bundle, pfa=0.25)
    scan, again = footer_of(out)["runs"]
    assert [scan] == footer_of(scanned())["runs"]
    assert (again["command"], again["results"]) == ("decide", str(scanned()))
    assert again["before"] == {key: footer_of(scanned())["fingerprint"][key] for key in again["before"]}
    assert again["before"]["pfa"] == 0.05
    assert again["end"] >= again["start"]


def test_a_folder_of_parts_gives_a_folder_of_parts(scanned: Any, tiny_bundle: Bundle, tmp_path: Path) -> None:
    results, out = scanned("/"), tmp_path / "new"
    decided(results, f"{out}/", tiny_bundle, pfa=0.25)
    assert rows_of(out).equals(rows_of(scanned(pfa=0.25)))
    assert {path.name for path in out.iterdir()} == {path.name for path in results.iterdir()}
    assert footer_of(out)["operating_point"]["pfa"] == 0.25
    assert "cannot replace itself" in refusal(results, f"{results}/", tiny_bundle, overwrite=True)
    assert "with a slash at its end" in refusal(results, tmp_path / "file", tiny_bundle)
    assert "without a slash at its end" in refusal(scanned(), f"{tmp_path}/folder/", tiny_bundle)


def test_results_are_replaced_on_demand_and_a_scan_goes_on_from_there(
    scanned: Any, archive: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    out = tmp_path / "r.parquet"
    out.write_bytes(scanned().read_bytes())
    assert "add --overwrite" in refusal(out, out, tiny_bundle)
    decided(out, out, tiny_bundle, pfa=0.25, overwrite=True)
    options: dict[str, Any] = {"sources": (archive,), "model": tiny_bundle.path, "out": out}
    Scan(ScanSettings(**options, pfa=0.25, retry=frozenset({"failed"}))).run()
    assert rows_of(out).equals(rows_of(scanned(pfa=0.25)))


def test_a_scan_that_is_refused_names_the_command_that_does_it(
    scanned: Any, archive: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    out = tmp_path / "r.parquet"
    out.write_bytes(scanned().read_bytes())
    options: dict[str, Any] = {"sources": (archive,), "model": tiny_bundle.path, "out": out}
    given: list[dict[str, Any]] = [
        {"pfa": 0.25},
        {"decision": "classes", "threshold": 0.3, "retry": frozenset({"failed"})},
    ]
    for more in given:
        with pytest.raises(Refused) as caught:
            Scan(ScanSettings(**options, **more)).run()
        (line,) = re.findall(r"`gbad-batch (decide .+) --out NEW`", str(caught.value))
        ran = subprocess.run(
            [COMMAND, *shlex.split(line), "--out", str(tmp_path / "new"), "--overwrite"],
            capture_output=True,
            text=True,
        )
        assert (ran.returncode, ran.stderr) == (0, "")
        again = {name: value for name, value in more.items() if name != "retry"}
        assert rows_of(tmp_path / "new").equals(rows_of(scanned(**again)))
    given = [{}, {"pfa": 0.25, "max_pixels": 1000}]  # these need a scan
    for other in given:
        with pytest.raises(Refused) as caught:
            Scan(ScanSettings(**options, **other)).run()
        assert "decide" not in str(caught.value)


def test_the_command_prints_what_changed(scanned: Any, tiny_bundle: Bundle, tmp_path: Path) -> None:
    line = [COMMAND, "decide", scanned(), "--model", tiny_bundle.path, "--pfa", "0.25", "--out"]
    ran = subprocess.run([*map(str, line), str(tmp_path / "a")], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert re.match(r"72 rows: 70 scored \(\d+:\d\d:\d\d, [\d,]+ rows/s\)\n", ran.stdout)
    assert re.search(
        r"alarms before, at PFA 0.05 .+\n.+ alarms now, at PFA 0.25 .+\n.+ raised, 0 cl", ran.stdout
    )
    assert "synthetic images" in ran.stdout
    ran = subprocess.run([*map(str, line), str(tmp_path / "b"), "--json"], capture_output=True, text=True)
    figures = json.loads(ran.stdout)
    assert figures["after"]["pfa"] == 0.25
    assert figures["raised"] > 0 == figures["cleared"]


# --- refusals ---


def test_what_does_not_belong_together_is_refused(scanned: Any, tiny_bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out" / "new"
    out.parent.mkdir()
    other = write_bundle(tmp_path / "other", {**tiny.manifest(), "name": "other"}, tiny.files())
    assert f"its hash is {other.hash[:12]}, and they come from 'tiny'" in refusal(scanned(), out, other)
    assert "does not exist" in refusal(tmp_path / "absent", out, tiny_bundle)
    foreign = tmp_path / "foreign.parquet"
    pq.write_table(pq.read_table(scanned()).replace_schema_metadata(None), foreign)
    assert "does not hold results of a scan" in refusal(foreign, out, tiny_bundle)
    (tmp_path / "begun.parquet.parts").mkdir()
    assert "is not finished" in refusal(tmp_path / "begun.parquet", out, tiny_bundle)
    footer = footer_of(scanned())
    for change, said in (
        ({"schema": 1}, "another version"),
        ({"rows": 73}, "holds 72 rows, not the 73"),
        ({"fingerprint": {**footer["fingerprint"], "pfa": None}}, "was decided by a threshold"),
    ):
        changed = tmp_path / "changed.parquet"
        metadata = {FOOTER_KEY: json.dumps(footer | change)}
        pq.write_table(pq.read_table(scanned()).replace_schema_metadata(metadata), changed)
        assert said in refusal(
            changed, out, tiny_bundle, pfa=None if "thresh" in said else 0.2, decision="gbad"
        )
    assert "'best' is not in the bundle" in refusal(scanned(), out, tiny_bundle, decision="best")
    assert "is not a probability" in refusal(scanned(), out, tiny_bundle, pfa=1.5)
    assert "exclude each other" in refusal(scanned(), out, tiny_bundle, threshold=1.0)
    assert "nothing is to be decided" in refusal(scanned(), out, tiny_bundle, pfa=None)


def test_results_that_lack_a_score_s_losses_are_refused(
    scanned: Any, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    table = pq.read_table(scanned())
    at = table.schema.get_field_index("largest_logit")
    lost = table.set_column(at, table.schema.field(at), pa.nulls(len(table), pa.float32()))
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    pq.write_table(
        lost.replace_schema_metadata({FOOTER_KEY: json.dumps(footer_of(scanned()))}), tmp_path / "in" / "r"
    )
    new = tmp_path / "out" / "new"
    assert "lacks losses or logits" in refusal(tmp_path / "in" / "r", new, tiny_bundle, decision="classes")


def test_damaged_results_are_refused(scanned: Any, tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    damaged = tmp_path / "in" / "r.parquet"
    content = bytearray(scanned().read_bytes())
    digests = pq.read_metadata(scanned()).row_group(0).column(list(COLUMNS).index("sha256"))
    content[digests.data_page_offset + digests.total_compressed_size // 2] ^= 1
    damaged.write_bytes(content)
    assert "is damaged" in refusal(damaged, tmp_path / "out" / "new", tiny_bundle)


def test_many_rows_keep_their_order_and_damage_among_the_last_leaves_nothing(
    scanned: Any, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    times = 2 * ROW_GROUP // 72 + 1  # more than two row groups
    footer = footer_metadata(footer_of(scanned()) | {"rows": 72 * times})
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    many, out = tmp_path / "in" / "r", tmp_path / "out" / "new"
    write_parquet(many, results_schema(), pq.read_table(scanned()).to_batches() * times, footer)
    decided(many, tmp_path / "all", tiny_bundle, decision="combined")
    decided(scanned(), tmp_path / "few", tiny_bundle, decision="combined")
    assert rows_of(tmp_path / "all").equals(pa.concat_tables([rows_of(tmp_path / "few")] * times))
    content = bytearray(many.read_bytes())
    digests = pq.read_metadata(many).row_group(2).column(list(COLUMNS).index("sha256"))
    content[digests.data_page_offset + digests.total_compressed_size // 2] ^= 1
    many.write_bytes(content)
    assert "is damaged" in refusal(many, out, tiny_bundle)


def test_an_unfinished_scan_of_the_output_is_left_alone(
    scanned: Any, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    parts = tmp_path / "new.parts"
    parts.mkdir(mode=0o700)
    (parts / "scan.json").write_text("{}")
    with pytest.raises(Refused, match="holds an unfinished scan"):
        decided(scanned(), tmp_path / "new", tiny_bundle, pfa=0.25)
    assert (parts / "scan.json").read_text() == "{}"
    assert not (tmp_path / "new").exists()


def test_a_disk_that_takes_no_more_is_told_and_nothing_is_written(
    scanned: Any, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    line = [COMMAND, "decide", scanned(), "--model", tiny_bundle.path, "--pfa", "0.25"]
    ran = subprocess.run(
        [*map(str, line), "--out", str(tmp_path / "new")], capture_output=True, text=True, preexec_fn=full
    )
    assert ran.returncode == 2
    assert re.fullmatch(
        r"gbad-batch: .+ cannot be written: File too large; nothing was written\n", ran.stderr
    )
    assert list(tmp_path.iterdir()) == []


# --- kills ---


def _decided_apart(order: str, die_at: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, __file__, order, str(die_at)], capture_output=True, text=True)


@pytest.mark.parametrize("end", ["", pytest.param("/", marks=pytest.mark.slow)])
def test_killed_before_any_change_it_leaves_the_old_or_the_new(
    scanned: Any, tiny_bundle: Bundle, tmp_path: Path, end: str
) -> None:
    results, out = scanned(end), tmp_path / "new"
    old, new = rows_of(scanned()), rows_of(scanned(pfa=0.25))
    assert not old.equals(new)
    decided(results, f"{out}{end}", tiny_bundle, pfa=0.05)
    options = {"results": str(results), "out": f"{out}{end}", "model": str(tiny_bundle.path)}
    order = json.dumps({**options, "pfa": 0.25, "overwrite": True})
    number = 0
    while (died := _decided_apart(order, number)).returncode != 0:
        assert died.returncode == -signal.SIGKILL, died.stderr
        if out.exists():  # a folder that is being replaced stands aside until the next command
            assert rows_of(out).equals(old) or rows_of(out).equals(new)
        decided(results, f"{out}{end}", tiny_bundle, pfa=0.05, overwrite=True)
        assert rows_of(out).equals(old)
        assert [path.name for path in tmp_path.iterdir()] == ["new"]
        number += 1
    assert number >= 5
    assert rows_of(out).equals(new)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    die_at(int(sys.argv[2]))
    decide(DecideSettings(**{**given, "results": Path(given["results"])}))
