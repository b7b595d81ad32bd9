"""The benchmark of a site's own images, on a small site that is drawn."""

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tiny_bundle as tiny
import torch_bundle
from benchmarks.quality import site
from benchmarks.quality.real_bags import read_bags
from PIL import Image

from gbad_batch.engine.bundle import Bundle, write_bundle

COLUMNS = "path,gun,knife,wrench,pliers,scissors,source,group,drawn"


def write_part(folder: Path, part: str, count: int, seed: int) -> None:
    """Write pictures and their list; every other one is said to hold a gun."""
    (folder / part).mkdir(parents=True)
    lines = [COLUMNS]
    for k, picture in enumerate(tiny.pictures(count, seed)):
        Image.fromarray(picture).save(folder / part / f"{part}{k}.png")
        held, source = k % 2, "sixray-pos" if k % 2 else "sixray-neg"
        lines.append(f"{part}{k}.png,{held},0,0,0,0,{source},g{k // 4},no")
    (folder / f"{part}.csv").write_text("\n".join(lines))


@pytest.mark.slow  # trains
def test_bundles_are_made_once_and_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = tmp_path / "data" / "real-bags"
    write_part(real, "test", 60, 1)
    write_part(real, "train", 120, 2)
    monkeypatch.setenv("GBAD_REAL_DATA", str(real.parent))
    model = write_bundle(tmp_path / "model", torch_bundle.manifest(), torch_bundle.files())
    arguments = argparse.Namespace(model=model.path, work=tmp_path / "work", adapted=[50], tuned=[])
    report = site.run(arguments)
    work = tmp_path / "work" / model.hash[:12]
    made = Bundle.read(work / "adapted_50")
    assert made.manifest.provenance["adapted"]["images"]["all"] == 50
    names = [figure.name for figure in report.figures]
    assert {"shipped.gbad.pd", "adapted_50.gbad.pfa_sixray", "adapted_50.classes.pd_at_05"} <= set(names)
    ((_, *first), shipped, adapted) = report.tables[0]
    assert first[:2] == ["gbad.pfa_sixray", "gbad.pd"]
    assert [shipped[0], adapted[0]] == ["shipped", "adapted_50"]
    assert adapted[2] == f"{json.loads((work / 'adapted_50.json').read_text())['gbad.pd']['value']:.3f}"
    again = site.run(arguments)
    assert [figure.value for figure in again.figures] == [figure.value for figure in report.figures]
    assert Bundle.read(work / "adapted_50").hash == made.hash  # was not made again


def test_a_sites_table_has_images_of_the_whole_list(tmp_path: Path):
    write_part(tmp_path, "train", 40, 1)
    site.write_table(tmp_path / "site.csv", read_bags(tmp_path, "train"), 10)
    with (tmp_path / "site.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == ["path", "gun", "knife", "wrench", "pliers", "scissors", "group"]
    assert [line["path"] for line in lines] == [f"train{k}.png" for k in range(0, 40, 4)]
    assert np.unique([line["gun"] for line in lines]).tolist() == ["0"]
