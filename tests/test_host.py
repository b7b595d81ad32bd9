"""The benchmarks of the host and of crashes at tiny sizes: all figures are there, the arithmetic holds."""

import json
from pathlib import Path

import pytest
from benchmarks.__main__ import main
from benchmarks.speed.host import Costs, Machine, expected

from gbad_batch.engine.bundle import Bundle

CHEAP = Costs(serial_us=25, worker_us=50, gpu_loop_us=40, dali_us=20, reader_us=200, native_us=4925)


@pytest.mark.slow
def test_the_host_is_measured_without_a_gpu(tiny_bundle: Bundle, tmp_path: Path) -> None:
    words = ["host", "--images", "300", "--photographs", "300", "--rounds", "1", "--seconds", "0.1"]
    words += ["--model", str(tiny_bundle.path), "--json", str(tmp_path / "host.json")]
    assert main(words) in (0, 1)
    written = json.loads((tmp_path / "host.json").read_text())
    for name in (
        "img_s_stub_1",
        "img_s_stub_2",
        "stub_2_of_1",
        "serial_us",
        "cap_img_s",
        "gpu_loop_us",
        "dali_us",
    ):
        assert written[name] > 0
    assert {"worker_us", "reader_us", "native_us"} <= written.keys()
    assert len(written["expected_img_s"]) == 4


@pytest.mark.parametrize(
    ("machine", "speeds", "limit"),
    [
        (Machine("small", 16), (3200, 3200), "decoding and engine"),
        (Machine("large", 400), (40_000, 40_000), "coordinator"),
        (Machine("one GPU", 16, 1), (10_000, 15_000), "nvJPEG"),
        (Machine("a GPU and a core", 1, 1), (5_000, 5_000), "readers"),
        (Machine("eight GPUs", 128, 8), (40_000, 40_000), "coordinator"),
    ],
)
def test_what_limits_a_machine_follows_from_the_costs(
    machine: Machine, speeds: tuple[float, float], limit: str
) -> None:
    found, name = expected(CHEAP, machine)
    assert found == pytest.approx(speeds)
    assert name == limit


@pytest.mark.slow
def test_killed_scans_and_workers_lose_nothing(tmp_path: Path) -> None:
    words = ["crash", "--kills", "1", "--worker-kills", "2", "--workers", "2"]
    assert main([*words, "--json", str(tmp_path / "crash.json")]) == 0
    written = json.loads((tmp_path / "crash.json").read_text())
    assert written["kills_at_steps_2"] >= 4
    assert written["rows_lost"] == written["rows_doubled"] == written["files_out_of_order"] == 0
