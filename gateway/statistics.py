"""Counters of every model version, shared by the processes of one gateway.

A region of shared memory holds one part for each process. A process writes its own part only, so nothing is locked; a
reader sums over all of them. A process that is started again goes on with the part of the one before it.

A part holds `RECORDS` records of sixteen 64-bit numbers. The first two are a digest of the model's name and version (0:
the record is free), the rest are `FIELDS`. Behind the parts there is one more number for each process: its beats
(`gateway.pulse`).
"""

import logging
import mmap
import time
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, Self

FIELDS: Final = (
    "success",
    "success_ns",
    "fail",
    "fail_ns",
    "queue_ns",
    "input_ns",
    "compute_ns",
    "output_ns",
    "rows",
    "microbatches",
    "last_ms",
)
"""`microbatches`: millionths of a batch; a request is charged its share of the batch that it was computed in."""

RECORDS: Final = 1024
_NUMBERS: Final = 16
_PART_BYTES: Final = RECORDS * _NUMBERS * 8
_BEATS_BYTES: Final = 8
_PLACE: Final = {name: place for place, name in enumerate(FIELDS, start=2)}

SUCCESS, SUCCESS_NS = _PLACE["success"], _PLACE["success_ns"]
FAIL, FAIL_NS = _PLACE["fail"], _PLACE["fail_ns"]
QUEUE_NS, INPUT_NS, COMPUTE_NS, OUTPUT_NS = (_PLACE[f"{name}_ns"] for name in ("queue", "input", "compute", "output"))
ROWS, MICROBATCHES, LAST_MS = _PLACE["rows"], _PLACE["microbatches"], _PLACE["last_ms"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all processes since the gateway started. Times in nanoseconds; `last_ms` since the epoch."""

    success: int = 0
    success_ns: int = 0
    fail: int = 0
    fail_ns: int = 0
    queue_ns: int = 0
    input_ns: int = 0
    compute_ns: int = 0
    output_ns: int = 0
    rows: int = 0
    microbatches: int = 0
    last_ms: int = 0


class Counters:
    """One model version's record in this process's part."""

    __slots__ = ("_record",)

    def __init__(self, record: memoryview) -> None:
        self._record = record

    def succeeded(
        self,
        *,
        total_ns: int,
        queue_ns: int,
        compute_ns: int,
        input_ns: int,
        output_ns: int,
        rows: int,
        batch_rows: int,
    ) -> None:
        record = self._record
        record[SUCCESS] += 1
        record[SUCCESS_NS] += total_ns
        record[QUEUE_NS] += queue_ns
        record[COMPUTE_NS] += compute_ns
        record[INPUT_NS] += input_ns
        record[OUTPUT_NS] += output_ns
        record[ROWS] += rows
        record[MICROBATCHES] += 1_000_000 * rows // max(batch_rows, rows)
        record[LAST_MS] = time.time_ns() // 1_000_000

    def failed(self, total_ns: int) -> None:
        record = self._record
        record[FAIL] += 1
        record[FAIL_NS] += total_ns


class Statistics:
    """The shared region, and this process's part of it."""

    def __init__(self, memory: mmap.mmap, processes: int, process: int) -> None:
        self._numbers = memoryview(memory).cast("Q")
        self._beats = self._numbers[processes * RECORDS * _NUMBERS :]
        self._processes = processes
        self._process = process

    @classmethod
    def alone(cls) -> Self:
        """For a gateway of one process that nobody looks into."""
        return cls(mmap.mmap(-1, region_bytes(1)), 1, 0)

    @classmethod
    def shared(cls, file: int, processes: int, process: int) -> Self:
        """`file`: descriptor of a file of `region_bytes(processes)` bytes."""
        return cls(mmap.mmap(file, region_bytes(processes)), processes, process)

    def beat(self) -> None:
        """This process's event loop has turned."""
        self._beats[self._process] += 1

    def beats(self, process: int) -> int:
        """Of that process, and of those before it in its place."""
        return self._beats[process]

    def counters(self, model: str, version: str) -> Counters:
        """The record of a model version, taken where it has none. Without a free record it is counted in vain."""
        key = _key(model, version)
        for record in self._records(self._process):
            if (record[0], record[1]) == key:
                return Counters(record)
            if not record[0]:
                record[1] = key[1]
                record[0] = key[0]
                return Counters(record)
        logger.warning("no statistics of %s/%s: %d versions have been counted before it", model, version, RECORDS)
        return Counters(memoryview(bytearray(_NUMBERS * 8)).cast("Q"))

    def totals(self, model: str, version: str) -> Totals:
        key = _key(model, version)
        sums = [0] * len(FIELDS)
        last = FIELDS.index("last_ms")
        for process in range(self._processes):
            for record in self._records(process):
                if not record[0]:
                    break
                if (record[0], record[1]) == key:
                    numbers = record[2 : 2 + len(FIELDS)].tolist()
                    newest = max(sums[last], numbers[last])
                    sums = [one + other for one, other in zip(sums, numbers, strict=True)]
                    sums[last] = newest
                    break
        return Totals(*sums)

    def _records(self, process: int) -> Iterable[memoryview]:
        start = process * RECORDS * _NUMBERS
        for record in range(RECORDS):
            first = start + record * _NUMBERS
            yield self._numbers[first : first + _NUMBERS]


def region_bytes(processes: int) -> int:
    return processes * (_PART_BYTES + _BEATS_BYTES)


def _key(model: str, version: str) -> tuple[int, int]:
    digest = blake2b(f"{model}\0{version}".encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little") | 1, int.from_bytes(digest[8:], "little")
