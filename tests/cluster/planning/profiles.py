"""Profiles made up for tests: chains of steps whose costs are exactly linear in rows and length."""

import itertools
from collections.abc import Sequence

from worker.profile import (
    CutProfile,
    DeviceProfile,
    Living,
    Profile,
    Sized,
    StageProfile,
    StepsTimed,
    Timed,
    WeightProfile,
)

MIB = 2**20
ROWS = (1, 2, 4, 8, 16, 32)
LENGTHS = (16, 128)


def chain(
    step_ms: Sequence[float],
    *,
    packaged: Sequence[tuple[int, ...]] = ((),),
    weight_mib: float = 1.0,
    per_batch_ms: float = 0.0,
    threads: Sequence[int] = (1,),
    devices: Sequence[tuple[str, float]] = (("cpu", 1.0),),
    crowded: float = 1.0,
    row_bytes: int = 1000,
    process_mib: float = 100.0,
) -> Profile:
    """Step i takes `step_ms[i]` milliseconds a row of length 64, and has a weight of its own.

    per_batch_ms: of a whole run, shared by its steps. devices: name, and how many times as fast it is.
    """
    count = len(step_ms)

    def seconds(low: int, high: int, rows: int, length: int) -> float:
        fixed = per_batch_ms * (high - low) / count
        return (sum(step_ms[low:high]) * rows * length / 64 + fixed) / 1e3

    def device(speed: float) -> DeviceProfile:
        stages = []
        for points in packaged:
            edges = [0, *points, count]
            for low, high in itertools.pairwise(edges):
                for number in threads:
                    timed = tuple(
                        Timed(rows=rows, length=length, seconds=seconds(low, high, rows, length) / speed / number)
                        for rows in ROWS
                        for length in LENGTHS
                    )
                    stages.append(
                        StageProfile(
                            low=low,
                            high=high,
                            runtime="eager",
                            threads=number,
                            seconds=timed,
                            loaded_bytes=int((high - low) * weight_mib * MIB),
                            peak_bytes=0,
                        )
                    )
        return DeviceProfile(
            machine="made up",
            cores=8,
            instruction_set="none",
            torch="none",
            process_bytes=int(process_mib * MIB),
            crowded=crowded,
            steps=tuple(
                StepsTimed(
                    rows=rows,
                    length=length,
                    seconds=tuple(seconds(step, step + 1, rows, length) for step in range(count)),
                )
                for rows in (1, 8)
                for length in LENGTHS
            ),
            stages=tuple(stages),
        )

    sized = tuple(Sized(length=length, nbytes=row_bytes) for length in LENGTHS)
    return Profile(
        format=1,
        artifact="0" * 64,
        steps=tuple(f"step {place}" for place in range(count)),
        input_bytes=sized,
        output_bytes=sized,
        cuts=tuple(CutProfile(point=point, tensors=1, row_bytes=sized) for point in range(1, count)),
        weights=tuple(WeightProfile(nbytes=int(weight_mib * MIB), steps=(place,)) for place in range(count)),
        living=tuple(Living(length=length, nbytes=(row_bytes,) * count) for length in LENGTHS),
        packaged=tuple(packaged),
        paddable=True,
        devices={name: device(speed) for name, speed in devices},
    )
