"""The doctor: what is here, what a scan would use and why, what is kept and how it goes."""

import importlib.util
import json
import re
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import tiny_bundle as tiny
from click.testing import CliRunner

from gbad_batch.engine.bundle import Bundle
from gbad_batch.engine.commands.cli import main
from gbad_batch.engine.commands.doctor import driver_cuda, jpeg_engines
from gbad_batch.engine.runtime import open_engine
from gbad_batch.engine.runtime.cache import TIMING, EngineCache, cache_key
from gbad_batch.export import engine_for, nvidia_gpus


def findings(*words: object, code: int = 0) -> dict[tuple[str, str], str]:
    said = CliRunner().invoke(main, ["doctor", "--json", *map(str, words)])
    assert said.exit_code == code, said.output
    return {(one["section"], one["name"]): one["found"] for one in json.loads(said.stdout)}


def test_it_names_every_package_of_the_gpu_and_how_to_get_it(tiny_bundle: Bundle) -> None:
    found = findings("--model", tiny_bundle.path)
    packages = {"gpu": {"nvidia-dali-cuda130", "torch", "cuml-cu13", "triton"}, "tensorrt": {"tensorrt"}}
    for extra, names in packages.items():
        for name in names:
            said = found[extra, name]
            assert said[0].isdigit() or f"'.[{extra}]'" in said, name
    assert (
        found["tensorrt", "torch-tensorrt"][0].isdigit()
        or "not needed" in found["tensorrt", "torch-tensorrt"]
    )


def test_it_says_whether_triton_can_compile(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    words = "--model", tiny_bundle.path
    monkeypatch.setenv("CC", "false")
    found = findings(*words)["gpu", "C compiler and Python.h"]
    assert found.startswith("false builds no module for Python: ")
    assert "install gcc, libc6-dev and python3-dev" in found
    monkeypatch.delenv("CC")
    assert findings(*words)["gpu", "C compiler and Python.h"] == "found"


@pytest.mark.skipif(bool(nvidia_gpus()), reason="a GPU is here")
def test_it_says_why_a_scan_runs_where_it_does(tiny_bundle: Bundle) -> None:
    model = "--model", tiny_bundle.path
    found = findings(*model)
    assert found["machine", "NVIDIA GPU"] == "none found"
    assert found["engine", "because"] == "no NVIDIA GPU is here; OpenVINO is the backend of the CPU"
    assert found["engine", "and would compute"].startswith("batch 8, ")
    assert found["engine", "checked"].startswith(f"parity with FP32 on {tiny.GATE_IMAGES} images")
    asked = findings(*model, "--device", "cpu", "--engine", "openvino")["engine", "because"]
    assert asked == "--device cpu asks for it; --engine openvino asks for it"
    assert findings(*model, "--device", "cuda", code=1)["engine", "a scan here"].startswith(
        "--device cuda cannot"
    )


def test_it_counts_what_the_cache_holds_and_empties_it(tiny_bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    engine = engine_for(tiny_bundle, cache_dir=folder)
    timing = cache_key({"timing": "11.1"})
    with closing(EngineCache.open(folder) or pytest.fail("the cache cannot be used")) as cache:
        cache.store(timing, b"x" * 1000, {}, TIMING)
        (folder / f".{timing}.{TIMING}.123").touch()  # a process was killed here
        (folder / "benchmarks" / "bags").mkdir(parents=True)
        (folder / "benchmarks" / "bags" / "1.jpg").write_bytes(bytes(2_500_000))
        (folder / "notes.txt").touch()
        stored = [asdict(one) for one in cache.contents()]
        assert len(stored) == 3
        assert {one["name"]: one["bytes"] for one in stored}[f"{engine.key}.engine"] > len(engine.blob)
    words = "--model", tiny_bundle.path, "--cache-dir", folder
    found = findings(*words)
    assert found["cache", "folder"] == str(folder)
    assert re.fullmatch(r"3 entries, [\d.]+ MB, and 2\.5 MB of benchmarks", found["cache", "contents"])
    assert found["cache", "age"] == "written 0.0 to 0.0 days ago"
    assert findings(*words, "--empty-cache") == {
        ("cache", "emptied"): f"{folder}: {found['cache', 'contents']}"
    }
    assert sorted(path.name for path in folder.iterdir()) == ["notes.txt"]
    with closing(open_engine(engine)) as runner:
        assert np.isfinite(runner(tiny.pictures(2, seed=1)).x).all()
    assert findings(*words, "--empty-cache") == {("cache", "emptied"): f"{folder}: nothing"}


def test_a_cache_that_is_not_used_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    found = findings("--cache-dir", tmp_path / "link", "--empty-cache", code=1)
    assert found["cache", "emptied"].startswith("no: ")


def test_what_is_known_of_jpeg_engines_is_not_said_of_the_card() -> None:
    assert "not asked" in jpeg_engines("sm_90")
    assert jpeg_engines("sm_89").startswith("none known of sm_89")


@pytest.mark.skipif(importlib.util.find_spec("torch") is None or bool(nvidia_gpus()), reason="a GPU is here")
def test_without_a_driver_there_is_no_cuda_of_it() -> None:
    assert driver_cuda() is None
