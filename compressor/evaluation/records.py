"""Labelled data: a table of records read from a file, split in two, and proof that two tables share none."""

import csv
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from worker.errors import InvalidRequest

Column = NDArray[Any]
"""One value a record, or an array a record: [records, …]."""

MOST_BYTES: Final = 4 * 2**30
_NO_ARCHIVE: Final = (ValueError, EOFError, TypeError, KeyError, NotImplementedError, BadZipFile, zlib.error)
"""What numpy and zipfile raise of files that are cut off, empty, damaged, or one array (.npy) by another name."""
EXPECTED: Final = "expected .csv, .tsv, .jsonl or .npz"


@dataclass(frozen=True, slots=True)
class Records:
    """`columns`: by name, all as long as there are records. `source`: where they come from, for messages."""

    columns: Mapping[str, Column]
    source: str

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, places: Sequence[int] | NDArray[np.int64]) -> "Records":
        return Records({name: column[np.asarray(places)] for name, column in self.columns.items()}, self.source)

    def column(self, name: str) -> Column:
        """Raises InvalidRequest: there is no such column."""
        if name not in self.columns:
            raise InvalidRequest(f"{self.source}: no column {name!r}; there is {', '.join(self.columns)}")
        return self.columns[name]

    def numbers(self, name: str) -> NDArray[np.float64]:
        """A column as one number a record. Raises InvalidRequest naming the record that holds none."""
        column = self.column(name)
        if column.ndim != 1:
            raise InvalidRequest(
                f"{self.source}: column {name!r} has {list(column.shape[1:])} a record; expected one number each"
            )
        try:
            numbers = column.astype(np.float64)
        except (ValueError, TypeError, OverflowError):
            place = next(index for index, value in enumerate(column) if not is_number(value))
            raise InvalidRequest(
                f"{self.source}: column {name!r}: {column[place]!r} in record {place} is not a number; give one there, "
                "or take the record out"
            ) from None
        broken = np.flatnonzero(~np.isfinite(numbers))
        if len(broken):
            raise InvalidRequest(
                f"{self.source}: column {name!r}: {numbers[broken[0]]} in record {broken[0]}; expected a finite number"
            )
        return numbers

    def texts(self, name: str) -> list[str]:
        """A column as texts. Raises InvalidRequest naming the record that holds none."""
        column = self.column(name)
        place = next((index for index, value in enumerate(column) if not _is_text(value)), None)
        if place is not None:
            raise InvalidRequest(
                f"{self.source}: column {name!r}: {column[place]!r} in record {place} is not a text (of whole Unicode "
                "characters); give one there, or take the record out"
            )
        return [str(value) for value in column]

    def digest(self) -> str:
        """A hash of names and values."""
        digest = hashlib.sha256()
        for name, column in sorted(self.columns.items()):
            digest.update(f"{name} {column.dtype.kind} {column.shape}\n".encode())
            digest.update(_bytes(column))
        return digest.hexdigest()


def is_number(value: Any) -> bool:
    try:
        float(value)
    except (ValueError, TypeError, OverflowError):
        return False
    return True


def _is_text(value: Any) -> bool:
    """Half of a surrogate pair, which JSON can hold, is no character and has no UTF-8."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _bytes(column: Column) -> bytes:
    if column.dtype.kind in "OU":
        return "\0".join(map(str, column.tolist())).encode(errors="surrogatepass")
    return np.ascontiguousarray(column).tobytes()


def read_records(path: Path, names: Sequence[str] = ()) -> Records:
    """The records of a file: .csv or .tsv (UTF-8), .jsonl (an object a line), or .npz (an array a column).

    Args:
        names: of the columns of a .csv or .tsv without a first line that holds them. Empty: the first line holds them.

    Raises:
        InvalidRequest: the file is missing, empty, of another kind, or not as regular as a table; it names the line.
    """
    readers = {".csv": _read_separated, ".tsv": _read_separated, ".jsonl": _read_lines, ".npz": _read_arrays}
    if path.suffix not in readers:
        raise InvalidRequest(f"data {str(path)!r}: {EXPECTED}")
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InvalidRequest(f"data {str(path)!r}: over {MOST_BYTES} bytes")
        records = Records(readers[path.suffix](path, names), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"data {str(path)!r}: cannot be read: {error}") from error
    if not records.columns or not len(records):
        raise InvalidRequest(f"data {str(path)!r}: no records; give a file with at least 2")
    return records


def _read_separated(path: Path, names: Sequence[str]) -> dict[str, Column]:
    tabs = path.suffix == ".tsv"
    with path.open(encoding="utf-8", newline="") as file:
        # Tab-separated data sets hold lone quotes: there a quote is a letter like any other.
        reader = csv.reader(
            file, delimiter="\t" if tabs else ",", quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
        )
        try:
            rows = list(reader)
        except csv.Error as error:
            raise InvalidRequest(
                f"data {str(path)!r}: line {reader.line_num}: {error}; is a quote not closed? Long texts fit in .jsonl"
            ) from error
    rows = [row for row in rows if row]
    if not rows:
        return {}
    headed = not names or set(names) <= set(rows[0])
    header = rows[0] if headed else list(names)
    if len(set(header)) != len(header):
        raise InvalidRequest(f"data {str(path)!r}: two columns have one name: {', '.join(header)}")
    body = rows[1:] if headed else rows
    for place, row in enumerate(body):
        if len(row) != len(header):
            raise InvalidRequest(
                f"data {str(path)!r}: record {place} has {len(row)} columns; expected {len(header)} "
                f"({', '.join(header)})"
            )
    return {name: np.array([row[index] for row in body], dtype=object) for index, name in enumerate(header)}


def _read_lines(path: Path, _: Sequence[str]) -> dict[str, Column]:
    found: list[dict[str, Any]] = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                item = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InvalidRequest(f"data {str(path)!r}: line {number} is not JSON: {error}") from error
            if not isinstance(item, dict) or (found and item.keys() != found[0].keys()):
                raise InvalidRequest(
                    f"data {str(path)!r}: line {number}: expected an object with the keys "
                    f"{', '.join(found[0]) if found else 'of its columns'}"
                )
            found.append(item)
    if not found:
        return {}
    try:
        return {name: _column([item[name] for item in found]) for name in found[0]}
    except ValueError as error:
        raise InvalidRequest(f"data {str(path)!r}: lists of different lengths in one column: {error}") from error


def _column(values: list[Any]) -> Column:
    return np.array(values, dtype=object) if isinstance(values[0], str) else np.array(values)


def _read_arrays(path: Path, _: Sequence[str]) -> dict[str, Column]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            columns = {name: archive[name] for name in archive.files}
    except _NO_ARCHIVE as error:
        raise InvalidRequest(
            f"data {str(path)!r}: not plain arrays, or damaged: {error}; write it with numpy.savez, an array a column"
        ) from error
    lengths = {name: column.shape[0] if column.ndim else None for name, column in columns.items()}
    if len(set(lengths.values())) > 1 or None in lengths.values():
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InvalidRequest(
            f"data {str(path)!r}: every array needs as many rows as there are records; they have {told}"
        )
    return columns


def keys_of(records: Records, columns: Sequence[str]) -> list[bytes]:
    """A hash of each record's values in `columns`, in whichever order they stand: the same where two are the same."""
    parts = [_record_hashes(records.column(name)) for name in columns]
    return [b"".join(sorted(each)) for each in zip(*parts, strict=True)]


def _record_hashes(column: Column) -> list[bytes]:
    return [hashlib.sha256(_told(value)).digest() for value in column]


def _told(value: Any) -> bytes:
    """The same for the same numbers, whichever type they are kept in: fp32 and fp64 agree to the digits of fp32."""
    if isinstance(value, str):
        return value.encode(errors="surrogatepass")
    numbers = np.asarray(value)
    if numbers.dtype.kind not in "biuf":
        return repr(numbers.tolist()).encode(errors="surrogatepass")
    if numbers.dtype.kind == "f":
        with np.errstate(over="ignore"):
            numbers = numbers.astype(np.float32)
    return f"{numbers.shape}".encode() + (numbers.astype(np.float64) + 0.0).tobytes()  # -0 + 0 is 0


def without_overlap(records: Records, others: Records, columns: Sequence[str], *, drop: bool) -> Records:
    """`records` after checking that none of them is also among `others`; with `drop`, without those that are.

    Raises:
        InvalidRequest: some are and `drop` is false, or none is left.
    """
    theirs = set(keys_of(others, columns))
    places = [place for place, key in enumerate(keys_of(records, columns)) if key in theirs]
    if not places:
        return records
    if not drop:
        raise InvalidRequest(
            f"{records.source}: {len(places)} of {len(records)} records are also in {others.source} (the first is "
            f"record {places[0]}); what calibrates must not judge: take them out, or pass --drop-overlap to do so"
        )
    if len(places) == len(records):
        raise InvalidRequest(f"{records.source}: every record is also in {others.source}; give other data")
    return records[np.setdiff1d(np.arange(len(records)), places)]


def split(records: Records, columns: Sequence[str], share: float, seed: int) -> tuple[Records, Records]:
    """Two parts, of about `share` of the records and the rest; records with the same `columns` stay together.

    Raises:
        InvalidRequest: there are too few different records for two parts of at least 2.
    """
    keys = keys_of(records, columns)
    kinds = sorted(set(keys))
    shuffled = np.random.default_rng(seed).permutation(len(kinds))
    chosen = {kinds[place] for place in shuffled[: round(len(kinds) * share)]}
    first = [place for place, key in enumerate(keys) if key in chosen]
    second = [place for place, key in enumerate(keys) if key not in chosen]
    if min(len(first), len(second)) < 2:
        raise InvalidRequest(f"{records.source}: {len(kinds)} different records are too few to split in two")
    return records[first], records[second]


def sample(records: Records, most: int, seed: int) -> Records:
    """At most that many of the records, in their order."""
    if len(records) <= most:
        return records
    return records[np.sort(np.random.default_rng(seed).permutation(len(records))[:most])]
