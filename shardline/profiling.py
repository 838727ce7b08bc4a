"""`shardline profile`: measures an artifact on this machine, and shows what was found."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from shardline import exits
from shardline.progress import steps
from shardline.signals import sigterm_as_ctrl_c
from worker.artifact import ArtifactError, versions
from worker.profile import DeviceProfile, Profile

SHOWN_STEPS = 8


def version_folder(folder: Path) -> Path:
    """`folder` where it is a version's; of a model's folder, its newest version's. Raises `ArtifactError`."""
    if (folder / "manifest.json").is_file():
        return folder
    found = versions(folder)
    if not found:
        raise ArtifactError(
            f"{folder}: neither a version (models/NAME/1) nor a model (models/NAME) with one; "
            "`shardline package` makes one"
        )
    return folder / str(found[-1])


def run(
    folder: Path,
    *,
    device: str,
    label: str | None,
    rows: Sequence[int] | None,
    lengths: Sequence[int] | None,
    threads: Sequence[int] | None,
    runtime: Literal["fastest", "eager"],
    as_json: bool,
) -> int:
    version = version_folder(folder)
    with sigterm_as_ctrl_c(), steps(f"loading {version}") as begin:
        from compressor.profiling import profile as measuring  # noqa: PLC0415 -- torch takes seconds

        found = measuring.profile_artifact(
            version,
            device=device,
            label=label,
            rows=rows or measuring.ROWS,
            lengths=lengths or measuring.LENGTHS,
            thread_counts=threads,
            runtime=runtime,
            progress=begin,
        )
    if as_json:
        sys.stdout.write(found.model_dump_json() + "\n")
    else:
        show(found, label or device.partition(":")[0], Console())
    return exits.OK


def show(profile: Profile, device: str, console: Console) -> None:
    """Tables of the stages, the costliest steps, and the cuts over which the least travels."""
    measured = profile.devices[device]
    road = f"; a small request's way takes {1e6 * measured.road_s:.0f} microseconds of CPU" if measured.road_s else ""
    console.print(
        f"{device}: {measured.machine}, {measured.cores} cores; a bare worker takes "
        f"{measured.process_bytes / 2**20:.0f} MiB; "
        f"with every core busy a stage takes {measured.crowded:.2f} times as long{road}",
        highlight=False,
    )
    console.print(_stages(profile, measured))
    console.print(_steps(profile, measured))
    console.print(_cuts(profile))


def _stages(profile: Profile, measured: DeviceProfile) -> Table:
    table = Table(title="stages as they are served: milliseconds of a run, by rows x length")
    table.add_column("steps")
    table.add_column("runtime")
    table.add_column("threads", justify="right")
    sizes = _few([(entry.rows, entry.length) for entry in measured.stages[0].seconds])
    for rows, length in sizes:
        table.add_column(f"{rows}x{length}", justify="right")
    table.add_column("loaded MiB", justify="right")
    table.add_column("peak MiB", justify="right")
    for stage in measured.stages:
        known = {(entry.rows, entry.length): entry.seconds for entry in stage.seconds}
        shown = [f"{1e3 * known[size]:.1f}" if size in known else "" for size in sizes]
        table.add_row(
            f"{stage.low}-{stage.high}",
            stage.runtime,
            str(stage.threads),
            *shown,
            f"{stage.loaded_bytes / 2**20:.0f}",
            f"+{stage.peak_bytes / 2**20:.0f}",
        )
    return table


def _few(sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Six at most, the first and the last among them."""
    if len(sizes) <= 6:
        return list(sizes)
    return [sizes[round(place * (len(sizes) - 1) / 5)] for place in range(6)]


def _steps(profile: Profile, measured: DeviceProfile) -> Table:
    timed = max(measured.steps, key=lambda entry: entry.rows * entry.length)
    together = sum(timed.seconds) or 1.0
    table = Table(title=f"costliest of {len(profile.steps)} steps, uncompiled, {timed.rows}x{timed.length}")
    for name, side in (("step", "right"), ("operator", "left"), ("ms", "right"), ("share", "right")):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    costly = sorted(range(len(timed.seconds)), key=lambda step: -timed.seconds[step])
    for step in costly[:SHOWN_STEPS]:
        seconds = timed.seconds[step]
        table.add_row(str(step), profile.steps[step], f"{1e3 * seconds:.2f}", f"{100 * seconds / together:.1f} %")
    return table


def _cuts(profile: Profile) -> Table:
    table = Table(title=f"lightest of {len(profile.cuts)} places for a cut")
    for name in ("before step", "tensors", "bytes of a row"):
        table.add_column(name, justify="right")
    light = sorted(profile.cuts, key=lambda cut: cut.row_bytes[-1].nbytes)[:SHOWN_STEPS]
    for cut in sorted(light, key=lambda cut: cut.point):
        sized = cut.row_bytes[-1]
        table.add_row(str(cut.point), str(cut.tensors), f"{sized.nbytes:,} at length {sized.length}")
    return table
