"""Imports stay light: what a command does not need is not loaded."""

import json
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

import gbad_batch
import gbad_batch.engine
from gbad_batch.engine.bundle import Bundle

TRAINING = {"nncf", "onnx", "onnxscript", "pandas", "ray", "scipy", "sklearn", "timm", "torch", "torchvision"}
HEAVY = TRAINING | {
    "matplotlib",
    *("cykooz", "numpy", "nvidia", "openvino", "PIL", "pyarrow", "tqdm", "safetensors", "simplejpeg"),
    *("tensorrt", "triton"),
}

HELP = """
from click.testing import CliRunner
from gbad_batch.engine.commands.cli import main
said = CliRunner().invoke(main, {words})
assert said.exit_code == 0, said.output
"""
SCAN = """
import stand_in_stages as stand_ins
from gbad_batch.engine import Scan, ScanSettings
settings = ScanSettings(sources={folder!r}, model={model!r}, cache_dir={cache!r}, threads=1)
rows = list(Scan(settings, open_stages=stand_ins.open_listing_modules).rows())
assert [row.status for row in rows] == ["ok"], rows
"""


def _loaded_by(code: str) -> set[str]:
    """Run `code` in a fresh interpreter and name the top-level modules that it has loaded."""
    ending = "\nimport json, sys\nprint(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    here = Path(__file__).parent  # of the stages that stand in for real ones
    ran = subprocess.run([sys.executable, "-c", code + ending], cwd=here, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return set(json.loads(ran.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import gbad_batch",
        "import gbad_batch; gbad_batch.__version__, gbad_batch.GbadError, gbad_batch.ScanSettings",
        "import gbad_batch.engine",
        "import gbad_batch.export",
        "import gbad_batch.kernels",
        "import gbad_batch.engine.model",
        "import gbad_batch.engine.commands.cli",
        "from gbad_batch.engine import GbadError, Row, ScanSettings",
        HELP.format(words=["--help"]),
        HELP.format(words=["--version"]),
        HELP.format(words=["scan", "--help"]),
        HELP.format(words=["synth", "--help"]),
        HELP.format(words=["evaluate", "--help"]),
        HELP.format(words=["doctor", "--help"]),
        HELP.format(words=["tune", "--help"]),
        HELP.format(words=["data", "--help"]),
        HELP.format(words=["data", "check", "--help"]),
        HELP.format(words=["data", "convert", "--help"]),
    ],
)
def test_nothing_heavy_is_loaded(code: str) -> None:
    assert _loaded_by(code) & HEAVY == set()


def test_reading_labels_loads_no_training_package() -> None:
    loaded = _loaded_by("import gbad_batch.engine.datasets.check")
    assert loaded & (TRAINING | {"imagehash", "matplotlib", "nvidia", "openvino"}) == set()


def test_a_scan_on_the_cpu_loads_no_training_package(tmp_path: Path, tiny_bundle: Bundle) -> None:
    from PIL import Image

    for folder in ("bags", "cache"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (80, 60), "white").save(tmp_path / "bags" / "bag.png")
    cache = str(tmp_path / "cache")
    coordinator = _loaded_by(
        SCAN.format(folder=str(tmp_path / "bags"), model=str(tiny_bundle.path), cache=cache)
    )
    worker = (tmp_path / "cache" / "modules").read_text().splitlines()
    assert "openvino" in worker
    assert "nvidia.dali" not in worker
    assert {name.partition(".")[0] for name in worker} & TRAINING == set()
    assert coordinator & (TRAINING | {"openvino", "cykooz", "simplejpeg"}) == set()


@pytest.mark.parametrize("name", gbad_batch.engine.__all__)
def test_public_names_resolve(name: str) -> None:
    assert getattr(gbad_batch.engine, name).__name__ == name


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    for package in (gbad_batch, gbad_batch.engine):
        with pytest.raises(AttributeError, match="no_such_name"):
            package.no_such_name  # noqa: B018


def test_the_root_has_the_version_and_the_public_names_of_the_engine() -> None:
    assert set(gbad_batch.__all__) == {*gbad_batch.engine.__all__, "__version__"}
    assert gbad_batch.__version__ == version("gbad-batch")
    assert all(
        getattr(gbad_batch, name) is getattr(gbad_batch.engine, name) for name in gbad_batch.engine.__all__
    )


def test_the_root_is_not_imported_under_a_second_name() -> None:
    with pytest.raises(ImportError, match=r"import this package as gbad_batch, not as"):
        import_module("gbad_batch.engine._root")


@pytest.mark.parametrize("folder", ["engine", "export", "kernels"])
def test_a_copy_under_the_folder_name_is_refused(folder: str) -> None:
    root = Path(__file__).parents[1]
    ran = subprocess.run([sys.executable, "-c", f"import {folder}"], cwd=root, capture_output=True, text=True)
    assert ran.returncode != 0
    assert "ImportError" in ran.stderr
