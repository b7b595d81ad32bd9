"""The figures of real bags: each kind of negative by itself, classes within the positives."""

import argparse
import os
from pathlib import Path

import numpy as np
import pytest
from benchmarks.quality import real_bags
from benchmarks.quality.real_bags import RealBags, Scored, read_bags, real_figures

from gbad_batch.engine.errors import Refused

COLUMNS = "path,gun,knife,wrench,pliers,scissors,source,group,drawn"


def bags() -> RealBags:
    """Make 20 guns, 20 knives, 20 negatives of SIXray, 10 passenger bags and one negative of pixray."""
    labels = np.zeros((71, 5), bool)
    labels[:20, 0] = labels[20:40, 1] = True
    sources = np.array(["sixray-pos"] * 40 + ["sixray-neg"] * 20 + ["harjot-neg"] * 10 + ["pixray"])
    return RealBags(tuple(Path(f"{k}.jpg") for k in range(71)), labels, sources, np.arange(71).astype(str))


def test_figures_are_those_of_their_kind():
    scores = np.zeros(71)
    scores[:30] = 3  # all guns, half of the knives
    scores[40] = 2  # one of twenty negatives of SIXray: 5 %
    scores[60:65] = 1.5  # half of the passenger bags
    probabilities = np.zeros((71, 5))
    probabilities[:20, 0] = 1
    probabilities[:40, 1] = 0.5
    found = real_figures(bags(), Scored({"gbad": scores}, {"gbad": 2.5}, probabilities))
    value = {name: figure.value for name, figure in found.items()}
    assert value["gbad.pd"] == 0.75
    assert (value["gbad.pfa_sixray"], value["gbad.pfa_passenger"]) == (0, 0)
    assert (value["gbad.pd_at_05.gun"], value["gbad.pd_at_05.knife"]) == (1, 0.5)
    assert value["gbad.pd_at_05"] == 0.75
    assert value["gbad.pfa_at_05_passenger"] == 0.5
    assert value["gbad.auroc_passenger"] == pytest.approx(0.75 + 0.25 / 4)
    assert (value["within.gun"], value["within.knife"], value["within"]) == (1, 0.5, 0.75)
    assert "within.pliers" not in value
    low, high = found["gbad.pd"].low, found["gbad.pd"].high
    assert low is not None
    assert high is not None
    assert low < 0.75 < high


def test_the_list_is_read_in_its_order(tmp_path: Path):
    lines = [COLUMNS, "b.jpg,0,1,0,0,0,sixray-pos,g:1,no", "a.jpg,0,0,0,0,0,sixray-neg,g:2,no"]
    (tmp_path / "test.csv").write_text("\n".join(lines))
    read = read_bags(tmp_path, "test")
    assert [path.name for path in read.paths] == ["b.jpg", "a.jpg"]
    assert read.positive.tolist() == [True, False]
    assert read.negatives("sixray").tolist() == [False, True]


def test_without_real_data_it_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("GBAD_REAL_DATA", raising=False)
    with pytest.raises(Refused, match="GBAD_REAL_DATA"):
        real_bags.run(argparse.Namespace(model=None))


@pytest.mark.real
@pytest.mark.skipif(
    "GBAD_REAL_DATA" not in os.environ, reason="real X-ray images are named by GBAD_REAL_DATA"
)
def test_every_listed_picture_is_there():
    read = read_bags(real_bags.real_folder(), "test")
    assert all(path.is_file() for path in read.paths)
    assert {kind: int(read.negatives(kind).sum()) for kind in real_bags.NEGATIVES} == {
        "sixray": 211,
        "passenger": 61,
        "pixray": 35,
    }
