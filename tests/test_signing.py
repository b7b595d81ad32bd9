"""Results that are signed: what was changed is named, down to the row, and nothing else is accepted."""

import json
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from benchmarks.made_up_results import write_results
from click.testing import CliRunner

from gbad_batch.engine.commands.cli import main
from gbad_batch.engine.errors import Refused
from gbad_batch.engine.results.schema import footer_metadata, read_footer
from gbad_batch.engine.signing import Signed, sign, verify
from gbad_batch.engine.signing import rows as signed_rows
from gbad_batch.engine.signing.manifest import TITLE

ROWS = 300
COMMAND = str(Path(sys.executable).with_name("gbad-batch"))


def openssl(*words: object) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make keys as the documentation does: the signer's, somebody else's, one encrypted, one of RSA."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not here")
    folder = tmp_path_factory.mktemp("keys")
    for name in ("key", "other"):
        openssl("genpkey", "-algorithm", "ed25519", "-out", folder / f"{name}.pem")
        openssl("pkey", "-in", folder / f"{name}.pem", "-pubout", "-out", folder / f"{name}-public.pem")
    secret = ("-aes-256-cbc", "-passout", "pass:open sesame")
    openssl("pkey", "-in", folder / "key.pem", *secret, "-out", folder / "encrypted.pem")
    openssl("genpkey", "-algorithm", "rsa", "-pkeyopt", "rsa_keygen_bits:1024", "-out", folder / "rsa.pem")
    openssl("pkey", "-in", folder / "rsa.pem", "-pubout", "-out", folder / "rsa-public.pem")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_results(tmp_path_factory.mktemp("made") / "r.parquet", ROWS).read_bytes()


@pytest.fixture
def results(made: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "r.parquet"
    path.write_bytes(made)
    return path


def no_password() -> str:
    raise AssertionError("the key is not encrypted")


def signed(results: Path, keys: Path) -> Signed:
    return sign(results, keys / "key.pem", None, no_password)


def refused(results: Path, keys: Path, key: str = "key-public.pem") -> str:
    with pytest.raises(Refused) as refusal:
        verify(results, keys / key)
    return str(refusal.value)


def rewritten(results: Path, change: Callable[[pa.Table], pa.Table], **options: Any) -> None:
    """Write the results again, as another program would."""
    footer = footer_metadata(read_footer(results) or {})
    pq.write_table(change(pq.read_table(results)).replace_schema_metadata(footer), results, **options)


def with_value(table: pa.Table, column: str, row: int, value: Any) -> pa.Table:
    at = table.schema.get_field_index(column)
    values = table[column].to_pylist()
    values[row] = value
    return table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))


# --- as signed ---


def test_what_was_signed_is_accepted_and_described(results: Path, keys: Path) -> None:
    content = results.read_bytes()
    made = signed(results, keys)
    assert made.path == results.with_name("r.parquet.sig")
    found = verify(results, keys / "key-public.pem").manifest
    assert found == made.manifest
    assert found.rows == ROWS
    assert found.footer == read_footer(results)
    assert results.read_bytes() == content
    lines = made.path.read_bytes()
    assert len(lines.split(b"\n", 3)[3]) == 8 * ROWS


def test_values_are_signed_and_not_their_encoding(results: Path, keys: Path) -> None:
    signed(results, keys)
    rewritten(results, lambda table: table, compression="gzip", row_group_size=37, use_dictionary=True)
    assert verify(results, keys / "key-public.pem").manifest.rows == ROWS


def test_a_folder_of_parts_is_signed_as_one(results: Path, keys: Path, tmp_path: Path) -> None:
    table, folder = pq.read_table(results), tmp_path / "folder"
    folder.mkdir()
    for number in (1, 2, 3):
        pq.write_table(table.slice(100 * number - 100, 100), folder / f"part-{number:08d}.parquet")
    footer = footer_metadata(read_footer(results) or {})
    pq.write_table(table.slice(0, 0).replace_schema_metadata(footer), folder / "_common_metadata")
    assert sign(folder, keys / "key.pem", None, no_password).path == tmp_path / "folder.sig"
    assert verify(folder, keys / "key-public.pem").manifest.rows == ROWS
    other = not table["anomalous"][107].as_py()
    rewritten(folder / "part-00000002.parquet", lambda part: with_value(part, "anomalous", 7, other))
    assert f"row 108 ({table['uri'][107]})" in refused(folder, keys)


def slow_digest(schema: pa.Schema, row: dict[str, Any]) -> bytes:
    """Compute the digest of a row by the words of the documentation, value by value."""
    fixed, texts = b"", b""
    for column in schema:
        value, kind = row[column.name], column.type
        fixed += bytes([value is not None])
        if pa.types.is_string(kind):
            fixed += struct.pack("<I", len((value or "").encode()))
            texts += (value or "").encode()
        elif pa.types.is_list(kind):
            fixed += struct.pack("<I", len(value or []))
            texts += b"".join(struct.pack("<i", len(text.encode())) for text in value or [])
            texts += b"".join(text.encode() for text in value or [])
        elif pa.types.is_fixed_size_binary(kind):
            fixed += value or bytes(kind.byte_width)
        else:
            form = {"int32": "<i", "int64": "<q", "float": "<f", "double": "<d", "bool": "<B"}
            fixed += struct.pack(form.get(str(kind), "<q"), value or 0)
    return sha256(fixed + texts).digest()


def test_digests_are_as_documented(results: Path) -> None:
    table = pq.read_table(results)
    table = with_value(table, "error", 3, "ü\0\U0001f600")
    table = with_value(table, "threats", 4, ["gun", "", "knife"])
    table = with_value(table, "threats", 5, [])
    table = with_value(table, "sha256", 6, None)
    for name in ("mtime", "scanned_at", "gone"):
        at = table.schema.get_field_index(name)
        table = table.set_column(at, name, table[name].cast(pa.int64()))
    (batch,) = table.combine_chunks().to_batches()
    wanted = b"".join(slow_digest(batch.schema, row) for row in batch.to_pylist())
    assert signed_rows.row_digests(batch) == wanted
    sliced = signed_rows.row_digests(batch.slice(3, 50))
    assert sliced == wanted[3 * 32 : 53 * 32]
    assert len({wanted[at : at + 32] for at in range(0, len(wanted), 32)}) == ROWS


# --- changed ---

CHANGES: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "a score": (lambda t: with_value(t, "anomaly_score", 41, 0.5), "1 row has changed: row 42 (/archive/"),
    "a null": (lambda t: with_value(t, "width", 0, None), "1 row has changed: row 1 ("),
    "a null for a zero": (lambda t: with_value(t, "offset", 9, 0), "1 row has changed: row 10 ("),
    "a list": (lambda t: with_value(t, "threats", 99, ["wrench", "x"]), "1 row has changed: row 100 ("),
    "a name": (lambda t: with_value(t, "uri", 299, "/elsewhere"), "1 row has changed: row 300 (/elsewhere)"),
    "a row less": (lambda t: t.slice(1), "299 rows, and 300 were signed; the first that differs is row 1 ("),
    "the last row": (lambda t: t.slice(0, 299), "holds 299 rows, and 300 were signed"),
    "rows swapped": (
        lambda t: t.take([1, 0, *range(2, ROWS)]),
        "2 rows have changed: row 1 (/archive/day00000/scanner-1/bag000000001.jpg), row 2 (",
    ),
    "many": (lambda t: t.take([*range(150, ROWS), *range(150)]), ", and 295 others"),
    "a column": (lambda t: t.append_column("note", pa.array(["x"] * ROWS)), "the column 'note' was added"),
    "columns moved": (lambda t: t.select(t.column_names[::-1]), "columns were moved"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_what_has_changed_is_named(results: Path, keys: Path, name: str) -> None:
    change, said = CHANGES[name]
    signed(results, keys)
    rewritten(results, change)
    told = refused(results, keys)
    assert told.startswith(f"{results} is not as it was signed: ")
    assert said in told
    assert len(told) < 700


@pytest.mark.parametrize(
    ("name", "value"), [("bundle_hash", "0" * 64), ("operating_point", {}), ("runs", [{}]), ("note", 1)]
)
def test_another_model_or_setting_is_named(results: Path, keys: Path, name: str, value: Any) -> None:
    signed(results, keys)
    footer = footer_metadata({**(read_footer(results) or {}), name: value})
    pq.write_table(pq.read_table(results).replace_schema_metadata(footer), results)
    assert f"its footer differs in {name}, " in refused(results, keys)


def test_damage_to_the_file_is_located(results: Path, keys: Path) -> None:
    rewritten(results, lambda table: table, compression="zstd", row_group_size=100, use_dictionary=False)
    signed(results, keys)
    column = pq.read_metadata(results).row_group(1)
    at = next(i for i in range(column.num_columns) if column.column(i).path_in_schema == "sha256")
    damaged = bytearray(results.read_bytes())
    start = column.column(at).data_page_offset
    damaged[start + column.column(at).total_compressed_size // 2] ^= 1  # within the bytes of 100 digests
    results.write_bytes(damaged)
    told = refused(results, keys)
    assert "1 row has changed: row 1" in told or "'sha256' of rows 101 to 200 cannot be read" in told


def test_one_bit_of_the_signature_is_enough(results: Path, keys: Path) -> None:
    path = signed(results, keys).path
    content = path.read_bytes()
    manifest = content.index(b"{")
    for at in (len(TITLE), len(TITLE) + 40, manifest, manifest + 300, content.index(b'"rows": 300') + 8):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert "r.parquet.sig" in refused(results, keys)
    path.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])  # a mark, which proves nothing
    assert verify(results, keys / "key-public.pem")
    rewritten(results, lambda table: with_value(table, "width", 0, 1))
    assert "rows 1 to 300 are not all as they were signed, and " in refused(results, keys)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"x", TITLE, TITLE + b"AAAA\n{}\n", TITLE + b"A" * 500),
        TITLE + b"A" * 86 + b"==\n" + b"[" * 100_000,
    ],
)
def test_what_is_no_signature_is_refused(results: Path, keys: Path, content: bytes) -> None:
    results.with_name("r.parquet.sig").write_bytes(content)
    assert "r.parquet.sig is not a signature that `gbad-batch sign` wrote" in refused(results, keys)


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 10**12},
        {"rows": -1},
        {"groups": []},
        {"columns": [["uri"]]},
        {"footer": 1},
        {"groups": [{"rows": 1, "marks": ""}]},
        {"more": 1},
    ],
    ids=str,
)
def test_a_manifest_that_somebody_else_made_up_is_refused(
    results: Path, keys: Path, change: dict[str, Any]
) -> None:
    """The holder of the key may err, too: what is signed is checked all the same."""
    from base64 import b64encode

    from gbad_batch.engine.signing.keys import private_key

    path = signed(results, keys).path
    title, _, manifest, marks = path.read_bytes().split(b"\n", 3)
    line = json.dumps({**json.loads(manifest), **change}).encode()
    signature = b64encode(private_key(keys / "key.pem", no_password).sign(line))
    path.write_bytes(b"\n".join([title, signature, line, marks]))
    assert "manifest" in refused(results, keys)


def test_another_key_is_told(results: Path, keys: Path) -> None:
    signed(results, keys)
    assert "was not signed with" in refused(results, keys, "other-public.pem")


def test_results_without_a_signature_are_told(results: Path, keys: Path) -> None:
    assert refused(results, keys).endswith(
        "r.parquet.sig does not exist: the results are not signed, or name it with --signature"
    )


# --- keys, targets ---


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("absent.pem", "cannot be read: No such file"),
        ("key-public.pem", "is not a private key in PEM: make one with openssl genpkey -algorithm ed25519"),
        ("rsa.pem", "is not a key of Ed25519"),
    ],
)
def test_keys_that_cannot_sign_are_refused(results: Path, keys: Path, key: str, said: str) -> None:
    with pytest.raises(Refused, match=said):
        sign(results, keys / key, None, no_password)
    assert [path.name for path in results.parent.iterdir()] == ["r.parquet"]


@pytest.mark.parametrize(
    ("key", "said"), [("key.pem", "is a private key: give the public one"), ("rsa-public.pem", "of Ed25519")]
)
def test_keys_that_cannot_verify_are_refused(results: Path, keys: Path, key: str, said: str) -> None:
    signed(results, keys)
    assert said in refused(results, keys, key)


def test_a_key_may_be_encrypted(results: Path, keys: Path) -> None:
    assert sign(results, keys / "encrypted.pem", None, lambda: "open sesame")
    assert verify(results, keys / "key-public.pem")
    with pytest.raises(Refused, match="or its password is another"):
        sign(results, keys / "encrypted.pem", None, lambda: "open barley")


def test_only_signatures_are_replaced(results: Path, keys: Path) -> None:
    for _ in range(2):
        signed(results, keys)
    other = results.with_name("letter.txt")
    other.write_text("dear all")
    with pytest.raises(Refused, match=r"letter\.txt exists and is not a signature: name another with --out"):
        sign(results, keys / "key.pem", other, no_password)
    assert other.read_text() == "dear all"
    with pytest.raises(Refused, match="does not exist: make it first"):
        sign(results, keys / "key.pem", results.parent / "absent" / "x.sig", no_password)


def test_what_is_not_finished_is_not_signed(tmp_path: Path, keys: Path) -> None:
    with pytest.raises(Refused, match="does not exist: give the file or folder that a scan has written"):
        sign(tmp_path / "r.parquet", keys / "key.pem", None, no_password)
    assert list(tmp_path.iterdir()) == []


# --- the commands ---


def test_the_commands_say_who_signed_what(results: Path, keys: Path) -> None:
    run = partial(CliRunner().invoke, main)
    ran = run(["sign", str(results), "--key", str(keys / "key.pem")])
    assert ran.exit_code == 0, ran.output
    assert ran.stdout.startswith("300 rows, model default (")
    assert ran.stdout.endswith(f"Signature: {results}.sig\n")
    ran = run(["verify", str(results), "--key", str(keys / "key-public.pem")])
    assert (ran.exit_code, ran.stdout.startswith("As signed: 300 rows, model default (")) == (0, True)
    rewritten(results, lambda table: with_value(table, "anomalous", 8, None))
    ran = run(["verify", str(results), "--key", str(keys / "key-public.pem")])
    assert (ran.exit_code, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
    assert "1 row has changed: row 9 (/archive/day00000/scanner-1/bag000000008.jpg)" in ran.stderr


KILLED = """
import os, signal, sys
from pathlib import Path
from gbad_batch.engine.system import durable
from gbad_batch.engine.signing import sign
real = os.fsync
calls = []

def fsync(handle):  # the first is of the temporary file, the second of the folder after its rename
    calls.append(handle)
    if len(calls) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    real(handle)

os.fsync = fsync
sign(Path(sys.argv[1]), Path(sys.argv[2]), None, str)
"""


@pytest.mark.parametrize("step", [1, 2])
def test_a_kill_leaves_the_old_signature_or_the_new(results: Path, keys: Path, step: int) -> None:
    sign(results, keys / "other.pem", None, no_password)
    words = [sys.executable, "-c", KILLED, str(results), str(keys / "key.pem"), str(step)]
    assert subprocess.run(words, capture_output=True).returncode == -signal.SIGKILL
    assert verify(results, keys / ("other-public.pem" if step == 1 else "key-public.pem"))
    signed(results, keys)
    assert sorted(path.name for path in results.parent.iterdir()) == ["r.parquet", "r.parquet.sig"]


@pytest.mark.slow
def test_one_flipped_bit_among_a_million_rows_is_named(tmp_path: Path, keys: Path) -> None:
    results = write_results(tmp_path / "r.parquet", 1_000_000)
    signed(results, keys)
    table = pq.read_table(results)
    at, row = table.schema.get_field_index("reconstruction_loss"), 765_432
    values = table[at].to_numpy().copy()
    values.view("u4")[row] ^= 1
    changed = table.set_column(at, table.schema.field(at), pa.array(values))
    footer = footer_metadata(read_footer(results) or {})
    pq.write_table(changed.replace_schema_metadata(footer), results)
    assert refused(results, keys).endswith(f"1 row has changed: row 765433 ({table['uri'][row]})")
    assert ds.dataset(results).count_rows() == 1_000_000
