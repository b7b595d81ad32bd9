"""Known kinds of hostile inputs end as their row or one sentence, with right pixels or a right reason."""

import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.robustness.soaking.hostile_case import Case
from benchmarks.robustness.soaking.hostile_images import image_cases

from gbad_batch.engine.decode import DecodeLimits, Decoder
from gbad_batch.engine.row import Row

ROOT = Path(__file__).parents[1]
CASES = list(image_cases())


@pytest.mark.parametrize("case", CASES, ids=[case.kind for case in CASES])
def test_an_image_has_right_pixels_or_a_right_reason(case: Case) -> None:
    decoder = Decoder(None, DecodeLimits())
    for name, right in case.files.items():
        row = Row(name)
        pixels = decoder(row, right.data)
        assert right.wrong(row, pixels) is None, name


@pytest.mark.slow
def test_every_kind_ends_right_in_a_scan() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks", "hostile"], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
