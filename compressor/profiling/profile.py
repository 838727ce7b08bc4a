"""Profiles an artifact on this machine: steps, stages as they are served, cuts and memory; the planner reads it."""

import logging
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Final, Literal

import torch

from compressor.profiling.measure import example_inputs, step_seconds, threads
from compressor.profiling.road_seconds import road_seconds
from compressor.profiling.stage_profile import Measured, Request, crowded, measure_stage
from worker.artifact import Artifact, ArtifactError, load_artifact
from worker.collate import Collator
from worker.cores import cores
from worker.cut import travel
from worker.errors import InvalidRequest, ShardlineError
from worker.expression import Size
from worker.manifest import PROFILE
from worker.nouns import BATCH
from worker.operators import is_view
from worker.processor import cpu_info
from worker.profile import (
    LONGEST_ROAD_S,
    CutProfile,
    DeviceProfile,
    Living,
    Profile,
    Sized,
    StageProfile,
    StepsTimed,
    Timed,
    WeightProfile,
    artifact_key,
    read_profile,
    write_profile,
)
from worker.program import Program
from worker.runtime import check_device, instruction_set
from worker.seal import DEFAULT_KEY
from worker.shard import load_program
from worker.stages import axis_names

logger = logging.getLogger(__name__)

ROWS: Final = (1, 2, 4, 8, 16, 32)
LENGTHS: Final = (16, 32, 64, 128)
CROWD_SIZE: Final = (2, 64)
"""Rows, and the length of every other axis, of what is run to see how much cores disturb each other."""
MOST_CROWD: Final = 16
"""Processes that are started to see how much cores disturb each other."""

Progress = Callable[[str], None]


def profile_artifact(
    folder: Path,
    *,
    device: str = "cpu",
    label: str | None = None,
    rows: Sequence[int] = ROWS,
    lengths: Sequence[int] = LENGTHS,
    thread_counts: Sequence[int] | None = None,
    runtime: Literal["fastest", "eager"] = "fastest",
    key: Path = DEFAULT_KEY,
    turns: int = 3,
    progress: Progress = lambda _: None,
) -> Profile:
    """Measures the artifact in `folder` on `device` and writes the profile beside its manifest.

    Args:
        label: under which the device stands in the profile, and in the nodes file; None: "cpu" or "cuda".
        rows, lengths: the sizes to measure: every pair, up to those that take too long.
        thread_counts: threads to measure each stage with; None: 1 and, doubling, up to the machine's cores.
        runtime: as in `model.yaml`.
        turns: so often each stage is measured, a little each time: what makes the machine slower for a while meets all.

    Returns:
        The profile, other devices' measurements included where they are of the same artifact.

    Raises:
        ArtifactError: the artifact cannot be used. Unsupported: there is no such device.
        InvalidRequest: sizes below 1. Internal: a stage could not be run.
    """
    device = check_device(device)
    if not rows or not lengths or min(*rows, *lengths) < 1:
        raise InvalidRequest("rows and lengths: expected whole numbers from 1")
    if turns < 1:
        raise InvalidRequest(f"turns: expected a whole number from 1, got {turns}")
    artifact = load_artifact(folder)
    program = load_program(artifact)
    names = axis_names(program, artifact.manifest)
    within = _lengths_within(program, names, lengths)
    kind = device.partition(":")[0]
    progress("measuring what carrying a request costs")
    roads = [_road_seconds()]
    progress("measuring each step")
    steps = _steps(program, names, (min(rows), max(1, min(8, max(rows)))), (within[0], within[-1]))
    measured, process_bytes = _stages(
        artifact,
        device,
        sizes=[(count, length) for count in sorted(set(rows)) for length in within],
        thread_counts=[1] if kind != "cpu" else list(thread_counts or doubling(cores())),
        runtime=runtime,
        key=key,
        turns=turns,
        progress=progress,
    )
    roads.append(_road_seconds())
    crowd = 1.0
    if kind == "cpu" and cores() > 1:
        progress("measuring how much busy cores disturb each other")
        size = (min(CROWD_SIZE[0], max(rows)), min(within, key=lambda length: abs(length - CROWD_SIZE[1])))
        whole = Request(str(folder), 0, 1, device, 1, runtime, key=str(key), sizes=(size,))
        crowd = crowded(whole, min(cores(), MOST_CROWD))
    roads.append(_road_seconds())
    mine = DeviceProfile(
        machine=_machine(device),
        cores=cores(),
        instruction_set=instruction_set(device),
        torch=torch.__version__,
        process_bytes=process_bytes,
        crowded=crowd,
        road_s=min((road for road in roads if road is not None), default=None),
        steps=steps,
        stages=measured,
    )
    signature = artifact.manifest.signature
    profile = Profile(
        format=1,
        artifact=artifact_key(folder),
        steps=tuple(str(step.operator) for step in program.steps),
        input_bytes=_row_bytes(program, names, program.inputs, within),
        output_bytes=_row_bytes(program, names, program.outputs, within),
        cuts=_cuts(program, names, within),
        weights=_weights(program),
        living=_living(program, names, within),
        packaged=tuple(points for _, points in sorted(_packaged(artifact).items())),
        devices=_others(folder) | {label or kind: mine},
        paddable=Collator(signature.inputs, signature.outputs).pads,
    )
    write_profile(folder, profile)
    return profile


def _road_seconds() -> float | None:
    """None on a machine that is too busy to tell: the planner then takes the road to be as it knows it."""
    try:
        found = road_seconds()
    except ShardlineError:
        return None
    return found if 0 < found <= LONGEST_ROAD_S else None


def doubling(most: int) -> Iterator[int]:
    """1, 2, 4, … and `most`."""
    count = 1
    while count < most:
        yield count
        count *= 2
    yield most


def _sizes(program: Program, names: Mapping[str, str], rows: int, length: int) -> dict[str, int]:
    """Symbol to size."""

    def clipped(symbol: str) -> int:
        minimum, maximum = program.bounds.get(symbol, (1, None))
        wanted = rows if names[symbol] == BATCH else length
        return max(minimum, min(wanted, maximum or wanted))

    return {symbol: clipped(symbol) for symbol in names}


def _lengths_within(program: Program, names: Mapping[str, str], lengths: Sequence[int]) -> tuple[int, ...]:
    """Those of `lengths`, ascending, that are different sizes of the program; (1,) where it has no such axis."""
    others = [symbol for symbol, axis in names.items() if axis != BATCH]
    if not others:
        return (1,)
    found: dict[tuple[int, ...], int] = {}
    for length in sorted(set(lengths)):
        sizes = _sizes(program, names, 1, length)
        found.setdefault(tuple(sizes[symbol] for symbol in others), max(sizes[symbol] for symbol in others))
    return tuple(sorted(set(found.values())))


def _steps(
    program: Program, names: Mapping[str, str], rows: tuple[int, int], lengths: tuple[int, int]
) -> tuple[StepsTimed, ...]:
    found = []
    with threads(1):
        for count in sorted(set(rows)):
            for length in sorted(set(lengths)):
                inputs = example_inputs(program, _sizes(program, names, count, length))
                found.append(StepsTimed(rows=count, length=length, seconds=step_seconds(program, inputs, rounds=3)))
    return tuple(found)


def _stages(
    artifact: Artifact,
    device: str,
    *,
    sizes: Sequence[tuple[int, int]],
    thread_counts: Sequence[int],
    runtime: Literal["fastest", "eager"],
    key: Path,
    turns: int,
    progress: Progress,
) -> tuple[tuple[StageProfile, ...], int]:
    """Every stage of every packaged cut (and the whole, where no cut is packaged), and a bare process's bytes."""
    count = len(artifact.manifest.profile.seconds)
    places = [
        (low, high, stage, stages, number)
        for stages, points in sorted(_packaged(artifact).items())
        for stage, (low, high) in enumerate(pairwise((0, *points, count)))
        for number in thread_counts
    ]
    told: list[list[Measured]] = [[] for _ in places]
    for turn in range(turns):
        for known, (_, _, stage, stages, number) in zip(told, places, strict=True):
            which = f"stage {stage + 1} of {stages}, {number} thread{'s' * (number > 1)}"
            progress(f"measuring {which}, turn {turn + 1} of {turns}")
            several = tuple(sizes if number == 1 else _fewer(sizes))
            request = Request(str(artifact.folder), stage, stages, device, number, runtime, key=str(key), sizes=several)
            known.append(measure_stage(request))
    found = tuple(
        of_turns(low, high, number, known) for known, (low, high, _, _, number) in zip(told, places, strict=True)
    )
    return found, min(one.process_bytes for known in told for one in known)


def _packaged(artifact: Artifact) -> dict[int, tuple[int, ...]]:
    """The points of each packaged cut by its number of stages; that into one needs none."""
    return {1: ()} | {len(cut.stages): cut.points for cut in artifact.manifest.cuts}


def _fewer(sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Least, middle and greatest rows with least, middle and greatest length."""

    def three(of: set[int]) -> set[int]:
        ordered = sorted(of)
        return {ordered[0], ordered[len(ordered) // 2], ordered[-1]}

    rows, lengths = three({size[0] for size in sizes}), three({size[1] for size in sizes})
    return [size for size in sizes if size[0] in rows and size[1] in lengths]


def of_turns(low: int, high: int, number: int, turns: Sequence[Measured]) -> StageProfile:
    """What is known of steps `low` up to `high` with `number` threads, which were measured in so many turns.

    Of each size the least seconds count: what else runs on the machine, or beside it on the same host, only ever adds.
    """
    taken: dict[tuple[int, int], list[float]] = {}
    for turn in turns:
        for size, seconds in turn.seconds.items():
            taken.setdefault(size, []).extend(seconds)
    return StageProfile(
        low=low,
        high=high,
        runtime=turns[0].runtime,
        threads=number,
        seconds=tuple(Timed(rows=rows, length=length, seconds=min(of)) for (rows, length), of in taken.items()),
        loaded_bytes=max(turn.loaded_bytes for turn in turns),
        peak_bytes=max(turn.peak_bytes for turn in turns),
    )


def _row_bytes(
    program: Program, names: Mapping[str, str], values: Sequence[str], lengths: Sequence[int]
) -> tuple[Sized, ...]:
    return tuple(
        Sized(
            length=length,
            nbytes=sum(program.values[name].bytes_at(_sizes(program, names, 1, length)) for name in values),
        )
        for length in lengths
    )


def _cuts(program: Program, names: Mapping[str, str], lengths: Sequence[int]) -> tuple[CutProfile, ...]:
    """What travels at each point where the program can be cut. What is carried is decided at the captured sizes."""
    places = [point for point, crossing in enumerate(travel(program)) if crossing is not None]
    sized = {length: travel(replace(program, hints=_sizes(program, names, 1, length))) for length in lengths}
    found = []
    for point in places:
        crossings = [(length, sized[length][point]) for length in lengths]
        entries = tuple(Sized(length=length, nbytes=item[0]) for length, item in crossings if item is not None)
        tensors = max((item[1] for _, item in crossings if item is not None), default=0)
        if entries:
            found.append(CutProfile(point=point, tensors=tensors, row_bytes=entries))
    return tuple(found)


def _weights(program: Program) -> tuple[WeightProfile, ...]:
    users: dict[str, list[int]] = {name: [] for name in program.weights}
    for index, step in enumerate(program.steps):
        for name in step.uses:
            if name in users:
                users[name].append(index)
    return tuple(
        WeightProfile(nbytes=program.weights[name].nbytes, steps=tuple(steps)) for name, steps in users.items() if steps
    )


def _living(program: Program, names: Mapping[str, str], lengths: Sequence[int]) -> tuple[Living, ...]:
    """Bytes alive during each step. A view lives in the memory of what it looks at, which therefore lives as long."""
    home: dict[str, str] = {}
    born: dict[str, int] = dict.fromkeys(program.inputs, 0)
    for index, step in enumerate(program.steps):
        looks_at = [name for name in step.uses if name not in program.weights]
        view = is_view(step.operator) and len(looks_at) >= 1  # type: ignore[arg-type]
        for name in step.outputs:
            if name is None:
                continue
            if view:
                home[name] = home.get(looks_at[0], looks_at[0])
            else:
                born[name] = index
    dies = dict(born)
    for index, step in enumerate(program.steps):
        for name in step.uses:
            owner = home.get(name, name)
            if owner in dies:
                dies[owner] = max(dies[owner], index)
    for name in (*program.outputs, *program.inputs):
        owner = home.get(name, name)
        if owner in dies:
            dies[owner] = len(program.steps) - 1

    def at(length: int) -> tuple[int, ...]:
        sizes = _sizes(program, names, 1, length)
        change = [0] * (len(program.steps) + 1)
        for name, first in born.items():
            size = program.values[name].bytes_at(_fill(program.values[name].shape, sizes))
            change[first] += size
            change[dies[name] + 1] -= size
        total, found = 0, []
        for delta in change[:-1]:
            total += delta
            found.append(total)
        return tuple(found)

    return tuple(Living(length=length, nbytes=at(length)) for length in lengths)


def _fill(shape: Sequence[Size], sizes: Mapping[str, int]) -> dict[str, int]:
    """`sizes`, and 1 for a symbol of which they know nothing."""
    free = {str(name) for size in shape if not isinstance(size, int) for name in size.free_symbols}
    return {**dict.fromkeys(free, 1), **sizes}


def _others(folder: Path) -> dict[str, DeviceProfile]:
    """What was measured before, of the same artifact."""
    try:
        return dict(read_profile(folder).devices)
    except ArtifactError as error:
        if (folder / PROFILE).exists():
            logger.warning("what was profiled before is given up, of every device: %s", error)
        return {}


def _machine(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name(torch.device(device))
    return cpu_info("model name") or platform.processor() or platform.machine()
