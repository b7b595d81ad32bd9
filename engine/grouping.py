"""Which images are views of one bag: by a part of their names, or by a table."""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import Refused
from .results.finished import not_results
from .results.parts import files_of, is_one_of, read_parquet
from .results.schema import columns_of
from .sources.uris import plain
from .text import one_line

if TYPE_CHECKING:
    import pyarrow as pa

KEYS = ("uri", "path", "name")  # columns of a table that name an image, the first that is there
BAGS = ("bag", "group")  # columns that name its bag
FILE_NAME = r"[^/!]*$"  # of a uri
HASH = 16  # bytes of a bag's name: of ten million names two are alike with a chance of 1e-25
READ_COLUMNS = ("uri", "kind", "gone")
NO_BAG = -1


class Grouping:
    """Names the bag of each image; an image without one is a bag of its own, named by its uri."""

    def __init__(self, text: str):
        self.text = text  # how it was asked for, for footers and messages

    def bags(self, uris: "pa.Array") -> "pa.Array":
        """Return the names of the bags of images, null where an image belongs to none."""
        raise NotImplementedError

    def bag(self, uri: str) -> str:
        """Return the name of one image's bag, which may be that of the image."""
        import pyarrow as pa

        return self.bags(pa.array([uri], pa.string()))[0].as_py() or uri


class ByPattern(Grouping):
    """Groups by what a regular expression (RE2) finds in the uri: its groups, or else all that it matches.

    Raises Refused for what is no such expression.
    """

    def __init__(self, pattern: str):
        super().__init__(pattern)
        self._pattern = _with_named_groups(pattern)
        import pyarrow as pa

        try:
            self.bags(pa.array([""]))
        except (pa.ArrowException, ValueError) as error:
            raise Refused(f"--group-by {pattern!r} is not a regular expression: {one_line(error)}") from None

    def bags(self, uris: "pa.Array") -> "pa.Array":
        """Return what the groups find, that which is not empty joined by /; null where that is nothing."""
        pc: Any = import_module("pyarrow.compute")  # its functions are made at run time, unknown to checkers
        found = pc.extract_regex(uris, pattern=self._pattern)
        joined, *others = map(_none_if_empty, found.flatten())  # null where there is no match
        for part in others:
            joined = pc.coalesce(pc.binary_join_element_wise(joined, part, "/"), joined, part)
        return joined


def _none_if_empty(texts: "pa.Array") -> "pa.Array":
    pc: Any = import_module("pyarrow.compute")
    return pc.if_else(pc.equal(pc.utf8_length(texts), 0), None, texts)


class ByTable(Grouping):
    """Groups by a CSV with a column that names the image and one that names the bag; raises Refused."""

    def __init__(self, path: Path):
        super().__init__(str(path))
        self._key, table = _read_table(path)
        self._keys, self._bags = table[0].combine_chunks(), table[1].combine_chunks()
        _check_unique(path, self._keys, self._bags)

    def bags(self, uris: "pa.Array") -> "pa.Array":
        """Return the bags of the images that the table names."""
        import pyarrow as pa

        pc: Any = import_module("pyarrow.compute")
        names = uris if self._key == "uri" else pa.array(map(plain, uris.to_pylist()), pa.string())
        if self._key == "name":
            names = pc.struct_field(pc.extract_regex(names, pattern=f"(?P<name>{FILE_NAME})"), 0)
        return self._bags.take(pc.index_in(names, value_set=self._keys))


def grouping_of(pattern: str | None, table: Path | None) -> Grouping | None:
    """Return the grouping that --group-by or --groups asks for; raises Refused."""
    if pattern is not None and table is not None:
        raise Refused("--group-by and --groups exclude each other: give one of them")
    return ByPattern(pattern) if pattern is not None else ByTable(table) if table is not None else None


@dataclass(frozen=True)
class Numbered:
    """The bag of each row of a result: numbers from 0 on, in the order in which bags first occur."""

    bags: NDArray[np.int32]  # [rows]; NO_BAG for containers and files that are gone
    count: int
    single: int  # images that the grouping does not name, each a bag of its own


def number_bags(results: Path, grouping: Grouping) -> Numbered:
    """Read the names in a finished result once, holding 16 bytes of each; raises Refused.

    Refused are a damaged result, and a grouping that names no image of it.
    """
    hashes, rows, single, example = bytearray(), list[NDArray[np.bool_]](), 0, ""
    for batch in _batches(results):
        images = image_rows(batch)
        names = grouping.bags(batch["uri"])
        rows.append(images)
        for uri, name, is_image in zip(batch["uri"].to_pylist(), names.to_pylist(), images, strict=True):
            if is_image:
                example = example or uri
                single += name is None
                hashes += _hash(uri, name)
    halves = np.frombuffer(hashes, np.uint64).reshape(-1, 2)
    if single == len(halves):
        if not example:
            raise Refused(f"{results} holds no image")
        raise Refused(
            f"{grouping.text!r} names the bag of no image in {results}: give what fits names such as "
            f"{example!r}"
        )
    is_image = np.concatenate(rows)
    bags = np.full(len(is_image), NO_BAG, np.int32)
    bags[is_image], count = _numbers(halves)
    return Numbered(bags, count, single)


def image_rows(batch: "pa.RecordBatch") -> NDArray[np.bool_]:
    """Tell which rows are images that are there: these belong to bags."""
    return is_one_of(batch["kind"], ["image"]) & batch["gone"].is_null().to_numpy(zero_copy_only=False)


def _hash(uri: str, name: str | None) -> bytes:
    """Hash a bag's name; that of an image by itself can be no other's."""
    return blake2b(f"!{uri}".encode() if name is None else f"={name}".encode(), digest_size=HASH).digest()


def _numbers(halves: NDArray[np.uint64]) -> tuple[NDArray[np.int32], int]:
    """Give hashes [n, 2] numbers [n] by where each first occurs; also returns how many there are."""
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: the first of equal ones comes first
    is_first = np.ones(len(order), np.bool_)
    is_first[1:] = (halves[order[1:]] != halves[order[:-1]]).any(axis=1)
    place = np.cumsum(is_first) - 1  # of each hash, among the distinct ones in the order of sorting
    ranks = np.empty(int(is_first.sum()), np.int32)
    ranks[np.argsort(order[is_first])] = np.arange(len(ranks), dtype=np.int32)
    numbers = np.empty(len(order), np.int32)
    numbers[order] = ranks[place]
    return numbers, len(ranks)


def _batches(results: Path) -> "Iterator[pa.RecordBatch]":
    if not results.exists():
        raise Refused(not_results(results))
    for file in files_of(results):
        yield from read_parquet(file, columns_of(*READ_COLUMNS))


def _with_named_groups(pattern: str) -> str:
    """Give every group of an expression a name, which Arrow wants; all of it is one if there is none."""
    named, escaped, in_class, count = "", False, False, 0
    for at, sign in enumerate(pattern):
        is_group = sign == "(" and not escaped and not in_class
        if is_group and pattern[at + 1 : at + 2] != "?":
            sign = f"(?P<g{count}>"
            count += 1
        elif is_group and pattern[at + 1 : at + 4] == "?P<":
            count += 1
        in_class = not escaped and (sign == "[" or in_class) and sign != "]"
        escaped = sign == "\\" and not escaped
        named += sign
    return named if count else f"(?P<g>{pattern})"


def _read_table(path: Path) -> "tuple[str, tuple[Any, Any]]":
    """Return which column names the image, and the columns of images and bags."""
    import pyarrow as pa

    csv: Any = import_module("pyarrow.csv")
    try:
        with path.open("rb") as file:
            header = file.readline(1 << 16).decode("utf-8-sig", "replace").strip().split(",")
            file.seek(0)
            columns = [column.strip().strip('"').lower() for column in header]
            key = next((name for name in KEYS if name in columns), None)
            bag = next((name for name in BAGS if name in columns), None)
            if key is None or bag is None or len(set(columns)) < len(columns):
                raise Refused(
                    f"{path}, line 1: a table of bags needs the columns name (or path, uri) and bag"
                )
            texts = dict.fromkeys(columns, pa.string())
            table = csv.read_csv(
                file,
                read_options=csv.ReadOptions(column_names=columns, skip_rows=1),
                parse_options=csv.ParseOptions(newlines_in_values=True),
                convert_options=csv.ConvertOptions(
                    column_types=texts, include_columns=[key, bag], strings_can_be_null=False
                ),
            )
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror or one_line(error)}") from None
    except pa.ArrowException as error:
        raise Refused(f"{path} is not a table in CSV: {one_line(error)}") from None
    return key, (table[key], table[bag])


def _check_unique(path: Path, keys: Any, bags: Any) -> None:
    """Raise Refused if the table is empty, or names an image twice."""
    import pyarrow as pa

    pc: Any = import_module("pyarrow.compute")
    if not len(keys):
        raise Refused(f"{path} names no image")
    counts = pc.value_counts(keys)
    twice = counts.filter(pc.greater(pc.struct_field(counts, 1), pa.scalar(1)))
    if len(twice):
        raise Refused(f"{path} names {twice[0].as_py()['values']!r} more than once: keep one line")
    if pc.any(pc.equal(pc.utf8_length(bags), 0)).as_py():
        at = pc.index(pc.equal(pc.utf8_length(bags), 0), True).as_py()
        raise Refused(f"{path}: the bag of {keys[at].as_py()!r} is blank: name it, or leave the line out")
