"""Score again, from the features that a scan stored, with another BiGAN and decision on the same network."""

import os
import socket
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import DEMO_SENTENCE, Bundle, OperatingPoint, operating_point
from ..errors import Refused
from ..model.decision import Decision, sigmoid
from ..results.derived import Derivation, told
from ..results.finished import current_footer
from ..results.parts import PartFolder, keys_in, read_parquet
from ..results.schema import KEY_COLUMNS, features_schema, read_footer
from ..results.site_point import read_point
from ..row import THREATS
from ..runtime.features import FeatureRunner
from ..settings import StrPath, check_point
from ..system.machine import installed, usable_cores
from ..text import timestamp
from .deciding import Decided, Decider, named_point, point_of

if TYPE_CHECKING:
    import pyarrow as pa

PACKAGES = ("gbad-batch", "numpy", "openvino", "pyarrow")
BATCH = 1024  # images that a thread scores at a time
FIGURES = np.dtype(
    [
        ("logits", "<f4", (len(THREATS),)),
        ("reconstruction_loss", "<f4"),
        ("feature_matching_loss", "<f4"),
        ("typicality", "<f4"),
    ]
)
KEY = np.dtype("S16")  # of one length, so that bytes of zero at the end do no harm

Figures = NDArray[np.void]


@dataclass(frozen=True, kw_only=True)
class RescoreSettings:
    """What to score again, and by what. Raises Refused for impossible values."""

    features: Path  # the folder of features of a finished scan
    results: Path  # that scan's results: a file, or a folder of parts
    model: StrPath  # the bundle that scores, with the network of the one that scanned
    out: StrPath  # a new file or, with a trailing slash, a new folder of parts
    decision: str | None = None  # default: that of the bundle
    pfa: float | None = None  # probability of false alarm; default: that of the results
    threshold: float | None = None  # on anomaly_score, instead of pfa
    point: StrPath | None = None  # an operating point of the site's own, instead of decision and pfa
    overwrite: bool = False  # replace what stands at `out`, which may be the results, if they are a file

    def __post_init__(self) -> None:
        """Refuse impossible values and combinations."""
        check_point(self.pfa, self.threshold, self.decision, self.point)


@dataclass
class Rescored(Decided):
    """Figures of a result that was scored again."""

    features: str = ""
    model_before: str = ""


def rescore(settings: RescoreSettings) -> Rescored:
    """Write the results anew as a scan with another bundle would have; returns the figures.

    Losses, class scores, decisions and typicality come from the stored features, which are float16: they
    agree with those of a scan within the bundle's tolerance. Raises Refused, and leaves nothing, if features,
    results and bundle do not belong together.
    """
    began, start = time.monotonic(), timestamp()
    footer = current_footer(settings.results)
    bundle = Bundle.read(Path(settings.model))
    _check_features(settings, footer, bundle)
    point = _point(settings, bundle, footer)
    rescored = Rescored(
        results=os.path.abspath(settings.results),  # noqa: PTH100 - keeps links
        out=os.path.abspath(settings.out),  # noqa: PTH100
        features=os.path.abspath(settings.features),  # noqa: PTH100
        model=f"{bundle.manifest.name} ({bundle.hash[:12]})",
        model_before=f"{footer['bundle']} ({footer['bundle_hash'][:12]})",
        demo=bundle.manifest.demo,
        before=point_of(footer),
        after=named_point(point, settings.threshold is None and settings.point is None, settings.point),
        notes=point.notes(footer["precision"]),
    )
    decision = Decision.from_tensors(point.decision, bundle.tensors())
    decide = Decider(settings.results, decision, point, rescored)

    def new_footer() -> dict[str, Any]:
        before = {name: footer[name] for name in ("bundle", "bundle_hash")} | rescored.before
        run = {"command": "rescore", "results": rescored.results, "features": rescored.features}
        run |= {"before": before, "host": socket.gethostname(), "versions": installed(PACKAGES)}
        new = {
            "bundle": bundle.manifest.name,
            "bundle_hash": bundle.hash,
            "demo": bundle.manifest.demo,
            "use": DEMO_SENTENCE if bundle.manifest.demo else None,
            "operating_point": asdict(point),
            "fingerprint": footer["fingerprint"] | rescored.after | {"model": bundle.hash},
            "runs": [*footer["runs"], run | {"start": start, "end": timestamp()}],
        }
        return footer | new

    derivation = Derivation(settings.results, footer["rows"], settings.out, settings.overwrite)
    derivation.check()
    with _scratch(settings.out) as file, _Scores(settings.features, bundle, file) as scores:
        derivation.write(lambda batch: decide(scores.fill(batch, settings)), new_footer)
    rescored.seconds = time.monotonic() - began
    return rescored


def _check_features(settings: RescoreSettings, footer: dict[str, Any], bundle: Bundle) -> None:
    """Raise Refused unless the features are those of the results, by the network of the bundle."""
    folder, stored = settings.features, read_footer(settings.features) if settings.features.is_dir() else None
    if stored is None or not any(folder.glob("features-*.parquet")):
        raise Refused(
            f"{folder} does not hold the features of a finished scan: give the folder that `gbad-batch scan "
            "--features` wrote"
        )
    if stored["scan_id"] != footer["scan_id"]:
        raise Refused(
            f"{folder} holds the features of another scan than {settings.results}: give those of one scan"
        )
    trunk, own = stored.get("trunk"), bundle.trunk(footer["precision"])
    if trunk != own:
        raise Refused(
            f"{bundle.path} has another network than the one that {folder} comes from (in "
            f"{footer['precision']} {own[:12]}, not {str(trunk)[:12]}): scan with --model {bundle.path}, or "
            "give a bundle of the same network, such as one that adapt made"
        )


def _point(settings: RescoreSettings, bundle: Bundle, footer: dict[str, Any]) -> OperatingPoint:
    """Choose the operating point: the bundle's decision at the PFA of the results, if nothing is given."""
    if settings.point is not None:
        return read_point(settings.point, bundle)
    pfa = settings.pfa
    if pfa is None and settings.threshold is None:
        pfa = footer["fingerprint"].get("pfa")
        if pfa is None:
            raise Refused(
                f"{settings.results} was decided by a threshold of your own, on scores of another model: add "
                "--pfa, --threshold or --point"
            )
    return operating_point(bundle, footer["precision"], settings.decision, pfa, settings.threshold)


@contextmanager
def _scratch(out: StrPath) -> Iterator[IO[bytes]]:
    """Open a file without a name beside the output, of which not even a kill leaves anything."""
    with told(out), tempfile.TemporaryFile(dir=Path(out).absolute().parent) as file:
        yield file


class _Scores:
    """What the bundle says of each image whose features are stored: 24 bytes an image here, more on disk."""

    def __init__(self, folder: Path, bundle: Bundle, file: IO[bytes]):
        self._length = bundle.manifest.architecture.features
        self._cores = usable_cores()
        self._run = FeatureRunner(bundle, self._cores, BATCH)
        keys = bytearray()
        with ThreadPoolExecutor(self._cores, thread_name_prefix="rescore") as pool:
            for own, figures in _in_turn(pool, self._score, self._batches(folder), 2 * self._cores):
                keys += own
                file.write(figures.tobytes())
        file.flush()
        unsorted = np.frombuffer(keys, KEY)
        self._order = np.argsort(unsorted, kind="stable")
        self._keys = unsorted[self._order]
        self._figures: Figures = (
            np.memmap(file, FIGURES, "r") if len(self._keys) else np.empty(0, FIGURES)  # type: ignore[assignment]
        )

    def __enter__(self) -> "_Scores":
        return self

    def __exit__(self, *exc_info: object) -> None:
        del self._figures

    def _batches(self, folder: Path) -> "Iterator[pa.RecordBatch]":
        schema = features_schema(self._length, len(THREATS))
        for part in PartFolder(folder, "features").parts:
            yield from read_parquet(part.path, schema, BATCH)

    def _score(self, batch: "pa.RecordBatch") -> tuple[bytes, Figures]:
        """Return the keys of images and the figures [n] of their features."""
        x, logits = (
            batch.column(name).flatten().to_numpy().astype(np.float32).reshape(batch.num_rows, -1)
            for name in ("x", "logits")
        )
        figures = np.empty(len(x), FIGURES)
        figures["logits"] = logits
        for name, values in self._run(x).items():
            figures[name] = values
        return b"".join(keys_in(batch.select(KEY_COLUMNS))), figures

    def fill(self, batch: "pa.RecordBatch", settings: RescoreSettings) -> "pa.RecordBatch":
        """Return rows with what this bundle says of them; raises Refused if features are missing."""
        import pyarrow as pa

        scored = batch["anomaly_score"].is_valid().to_numpy(zero_copy_only=False)
        of_scored = batch if scored.all() else batch.filter(pa.array(scored))
        figures = np.zeros(len(scored), FIGURES)
        figures[scored] = self._figures[self._positions(of_scored, settings)]
        p = sigmoid(np.ascontiguousarray(figures["logits"]))
        values = {
            **{f"p_{threat}": p[:, k] for k, threat in enumerate(THREATS)},
            "largest_logit": figures["logits"].max(axis=1),
            **{name: figures[name] for name in ("reconstruction_loss", "feature_matching_loss")},
        }
        columns = {name: pa.array(np.ascontiguousarray(each), mask=~scored) for name, each in values.items()}
        typicality = np.ascontiguousarray(figures["typicality"])
        columns["typicality"] = pa.array(typicality, mask=~scored | np.isnan(typicality))
        arrays = [columns.get(name, batch[name]) for name in batch.schema.names]
        return pa.RecordBatch.from_arrays(arrays, schema=batch.schema)

    def _positions(self, rows: "pa.RecordBatch", settings: RescoreSettings) -> NDArray[np.intp]:
        """Return where the figures of rows are, [n]."""
        keys = np.frombuffer(b"".join(keys_in(rows.select(KEY_COLUMNS))), KEY)
        if not len(keys):
            return np.empty(0, np.intp)
        at = np.minimum(np.searchsorted(self._keys, keys), max(0, len(self._keys) - 1))
        missing = self._keys[at] != keys if len(self._keys) else np.ones(len(keys), np.bool_)
        if missing.any():
            uri = rows["uri"][int(np.argmax(missing))].as_py()
            raise Refused(
                f"{settings.features} lacks features of images in {settings.results}, such as {uri!r:.200}: "
                "scan them again"
            )
        return self._order[at]


def _in_turn(
    pool: ThreadPoolExecutor, action: Any, batches: "Iterable[pa.RecordBatch]", ahead: int
) -> Iterator[tuple[bytes, Figures]]:
    """Yield the results of a function for each batch, in order, with some batches in the threads."""
    waiting: deque[Future[tuple[bytes, Figures]]] = deque()
    for batch in batches:
        waiting.append(pool.submit(action, batch))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
