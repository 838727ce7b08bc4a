"""What a profile says of any stage: seconds, bytes, memory. Pure arithmetic on what was measured.

A stage that was measured as such costs what was measured. Of any other, the steps' uncompiled times are known, and how
much faster the measured stages were that hold them: the stage is taken to gain as much. `is_measured` tells which.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Final

from worker.errors import InvalidRequest
from worker.profile import DeviceProfile, Profile, Sized, StageProfile, Timed

MOST_BLOCKS: Final = 32
"""Into so many pieces of about equal time a program is divided before stages are made of them: as AlpaServe's."""

HEADROOM: Final = 1.15
"""A stage's memory is taken to be so much more than was measured: allocators keep more than is in use."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Seconds at every pair of some rows and lengths; between them linear, beyond them in proportion to the cells."""

    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, timed: Sequence[Timed]) -> "Grid":
        """Sizes that were left out cost, per cell, as much as the nearest smaller one that was measured."""
        known = {(entry.rows, entry.length): entry.seconds for entry in timed}
        rows = tuple(sorted({entry.rows for entry in timed}))
        lengths = tuple(sorted({entry.length for entry in timed}))

        def at(row: int, length: int) -> float:
            if (row, length) in known:
                return known[row, length]
            smaller = [size for size in known if size[0] <= row and size[1] <= length] or list(known)
            nearest = max(smaller, key=lambda size: (size[0] * size[1], size[0]))
            return known[nearest] * (row * length) / (nearest[0] * nearest[1])

        return cls(rows, lengths, tuple(tuple(at(row, length) for length in lengths) for row in rows))

    def at(self, rows: float, length: float) -> float:
        last_rows, last_length = self.rows[-1], self.lengths[-1]
        beyond = max(1.0, rows / last_rows) * max(1.0, length / last_length)
        low, row_share = _between(self.rows, rows)
        left, length_share = _between(self.lengths, length)
        high, right = min(low + 1, len(self.rows) - 1), min(left + 1, len(self.lengths) - 1)
        above = self.seconds[low][left] * (1 - length_share) + self.seconds[low][right] * length_share
        below = self.seconds[high][left] * (1 - length_share) + self.seconds[high][right] * length_share
        return (above * (1 - row_share) + below * row_share) * beyond


def _between(known: Sequence[int], wanted: float) -> tuple[int, float]:
    """The place below `wanted`, and how far it is from there to the next one, 0 to 1."""
    if wanted <= known[0]:
        return 0, 0.0
    if wanted >= known[-1]:
        return len(known) - 1, 0.0
    place = bisect_right(known, wanted) - 1
    return place, (wanted - known[place]) / (known[place + 1] - known[place])


@dataclass(frozen=True)
class Costs:
    """Of one profiled model. `edges`: 0, the places where the planner may cut, and the number of steps."""

    profile: Profile
    most_blocks: int = MOST_BLOCKS
    _seconds: dict[tuple[int, int, int, int, str, int], float] = field(default_factory=dict, compare=False, repr=False)
    _grids: dict[tuple[int, int, str, int], Grid | None] = field(default_factory=dict, compare=False, repr=False)
    _alive: dict[int, Sequence[int]] = field(default_factory=dict, compare=False, repr=False)
    _sums: dict[tuple[int, int, str, int], Sequence[float]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def steps(self) -> int:
        return len(self.profile.steps)

    @property
    def devices(self) -> tuple[str, ...]:
        return tuple(self.profile.devices)

    def device(self, name: str) -> DeviceProfile:
        """Raises `InvalidRequest` where nothing was measured on it."""
        found = self.profile.devices.get(name)
        if found is None:
            raise InvalidRequest(
                f"the model is not profiled on {name!r}, only on {', '.join(self.profile.devices)}; "
                f"`shardline profile` on such a machine measures it"
            )
        return found

    @cached_property
    def edges(self) -> tuple[int, ...]:
        """In each block of about equal time the place over which the least travels, and every measured cut."""
        measured = {
            edge
            for device in self.profile.devices.values()
            for stage in device.stages
            for edge in (stage.low, stage.high)
        }
        points = [cut.point for cut in self.profile.cuts]
        if len(points) > self.most_blocks:
            before = self._step_sums()
            blocks: dict[int, list[int]] = {}
            for point in points:
                block = int(before[point] / max(before[-1], 1e-12) * self.most_blocks)
                blocks.setdefault(block, []).append(point)
            points = [
                min(block, key=lambda point: (self.travels(point, 1, self._length), -point))
                for block in blocks.values()
            ]
        return tuple(sorted({0, self.steps, *points, *measured}))

    @cached_property
    def _length(self) -> int:
        return self.profile.living[len(self.profile.living) // 2].length

    def _step_sums(self) -> Sequence[float]:
        device = next(iter(self.profile.devices.values()))
        steps = max(device.steps, key=lambda timed: timed.rows * timed.length, default=None)
        return _sums(steps.seconds if steps else [1.0] * self.steps)

    def thread_counts(self, device: str) -> tuple[int, ...]:
        """Numbers of threads that were measured, ascending."""
        return tuple(sorted({stage.threads for stage in self.device(device).stages}))

    def is_measured(self, low: int, high: int, device: str) -> bool:
        """Whether this very stage was measured, rather than derived from its steps."""
        return bool(self.device(device).stages_of(low, high))

    def seconds(self, low: int, high: int, rows: int, length: int, *, device: str, threads: int = 1) -> float:
        """Of one run of steps `low` to `high` on `rows` rows of `length` cells each."""
        key = (low, high, rows, length, device, threads)
        if key not in self._seconds:
            grid = self._grid(low, high, device, threads)
            if grid is not None:
                self._seconds[key] = grid.at(rows, length)
            else:
                sums = self._derived(rows, length, device, threads)
                self._seconds[key] = sums[high] - sums[low]
        return self._seconds[key]

    def _grid(self, low: int, high: int, device: str, threads: int) -> Grid | None:
        """What was measured of the stage with the most threads up to `threads`."""
        key = (low, high, device, threads)
        if key not in self._grids:
            stages = [stage for stage in self.device(device).stages_of(low, high) if stage.threads <= threads]
            best = max(stages, key=lambda stage: stage.threads, default=None)
            self._grids[key] = Grid.of(best.seconds) if best else None
        return self._grids[key]

    def _derived(self, rows: int, length: int, device: str, threads: int) -> Sequence[float]:
        """Running sums over the steps: uncompiled times, scaled to what the measured stages took."""
        key = (rows, length, device, threads)
        if key not in self._sums:
            plain = self._uncompiled(rows, length, device)
            scaled = list(plain)
            for stage in self._finest(device, threads):
                grid = self._grid(stage.low, stage.high, device, threads)
                own = sum(plain[stage.low : stage.high])
                if grid is not None and own > 0:
                    gain = grid.at(rows, length) / own
                    scaled[stage.low : stage.high] = [value * gain for value in plain[stage.low : stage.high]]
            self._sums[key] = _sums(scaled)
        return self._sums[key]

    def _finest(self, device: str, threads: int) -> tuple[StageProfile, ...]:
        """Stages that were measured and make up the whole, as many as there are."""
        stages = [stage for stage in self.device(device).stages if stage.threads <= threads]
        by_low: dict[int, list[StageProfile]] = {}
        for stage in stages:
            by_low.setdefault(stage.low, []).append(stage)
        best: dict[int, tuple[StageProfile, ...]] = {self.steps: ()}
        for low in sorted(by_low, reverse=True):
            options = [(stage, *best[stage.high]) for stage in by_low[low] if stage.high in best]
            if options:
                best[low] = max(options, key=len)
        return best.get(0, ())

    def _uncompiled(self, rows: int, length: int, device: str) -> list[float]:
        """Seconds of each step; those of another device where none were measured on this one."""
        steps = self.device(device).steps or next(
            (other.steps for other in self.profile.devices.values() if other.steps), ()
        )
        if not steps:
            return [1.0] * self.steps
        low_rows, high_rows = min(entry.rows for entry in steps), max(entry.rows for entry in steps)
        short, long = min(entry.length for entry in steps), max(entry.length for entry in steps)
        known = {(entry.rows, entry.length): entry.seconds for entry in steps}
        row_share = _share(low_rows, high_rows, rows)
        length_share = _share(short, long, length)
        corners = (
            (known[low_rows, short], (1 - row_share) * (1 - length_share)),
            (known[low_rows, long], (1 - row_share) * length_share),
            (known[high_rows, short], row_share * (1 - length_share)),
            (known[high_rows, long], row_share * length_share),
        )
        return [max(0.0, sum(seconds[step] * weight for seconds, weight in corners)) for step in range(self.steps)]

    def travels(self, point: int, rows: int, length: int) -> int:
        """Bytes over the cut before step `point`: 0 is what the client sends, the number of steps what it gets."""
        return rows * _bytes_at(self._crossing[point], length)

    @cached_property
    def _crossing(self) -> Mapping[int, Sequence[Sized]]:
        ends = {0: self.profile.input_bytes, self.steps: self.profile.output_bytes}
        return {cut.point: cut.row_bytes for cut in self.profile.cuts} | ends

    def _living(self, length: int) -> Sequence[int]:
        """Bytes alive during each step, for one row."""
        if length not in self._alive:
            known = sorted(self.profile.living, key=lambda entry: entry.length)
            place, share = _between([entry.length for entry in known], length)
            beyond = max(1.0, length / known[-1].length)
            after = known[min(place + 1, len(known) - 1)].nbytes
            self._alive[length] = [
                math.ceil((a * (1 - share) + b * share) * beyond)
                for a, b in zip(known[place].nbytes, after, strict=True)
            ]
        return self._alive[length]

    def weight_bytes(self, low: int, high: int) -> int:
        """Of the weights that a stage holds; one that two stages use counts in both."""
        return sum(weight.nbytes for weight in self.profile.weights if any(low <= step < high for step in weight.steps))

    def memory(self, low: int, high: int, rows: int, length: int, *, device: str) -> int:
        """Bytes that one replica takes when it computes such batches: process, weights, activations, and some room."""
        known = self.device(device)
        stages = known.stages_of(low, high)
        living = max(self._living(length)[low:high]) * rows
        if stages:
            loaded = max(stage.loaded_bytes for stage in stages)
            peak = max(
                stage.peak_bytes * max(1.0, rows * length / (stage.largest.rows * stage.largest.length))
                for stage in stages
            )
            return math.ceil(known.process_bytes + (loaded + max(peak, living)) * HEADROOM)
        return math.ceil(known.process_bytes + (self.weight_bytes(low, high) + 2 * living) * HEADROOM)


def _sums(values: Sequence[float]) -> list[float]:
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return sums


def _share(low: int, high: int, wanted: float) -> float:
    """How far `wanted` is from `low` to `high`; more than 1 beyond."""
    return (wanted - low) / (high - low) if high > low else 0.0


def _bytes_at(sized: Sequence[Sized], length: int) -> int:
    """Between lengths linear, beyond the last in proportion."""
    ordered = sorted(sized, key=lambda entry: entry.length)
    if length <= ordered[0].length:
        return ordered[0].nbytes
    for below, above in pairwise(ordered):
        if length <= above.length:
            share = (length - below.length) / (above.length - below.length)
            return math.ceil(below.nbytes * (1 - share) + above.nbytes * share)
    last = ordered[-1]
    return math.ceil(last.nbytes * length / last.length)
