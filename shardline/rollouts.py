"""`shardline rollout`, `rollback` and `history`: another version or another plan of a model, under load."""

import json
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cluster.control_client import ControlClient
from cluster.repository import read_model, with_signatures
from cluster.state import ServedModel, StateDir
from protos import control_pb2
from shardline import exits
from shardline.running import NotInTime, controller_of
from worker.errors import NotFound, ShardlineError

POLL_S = 0.2
PLAIN_WIDTH = 160


class TakenBack(ShardlineError):
    """The roll-out did not go well; what served before serves on."""


@dataclass(frozen=True, slots=True)
class RolloutSettings:
    """version: None: as model.yaml says. canary: percent at first, for `watch_s` seconds; 100: all at once.

    within_s: to come up. wait_s: for the end of it all; 0: not at all.
    """

    version: int | None = None
    canary: int = 100
    watch_s: float = 30.0
    within_s: float = 600.0
    even_without_room: bool = False
    wait_s: float = 0.0


def rollout(folder: Path, model: str, settings: RolloutSettings) -> int:
    """Has the model served as its model.yaml says now. Raises what is wrong with that; then nothing changed."""
    with controller_of(folder) as client:
        served = _as_it_is_now(Path(StateDir(folder).read_state().repository), model, settings)
        revision = client.rollout(
            control_pb2.RolloutRequest(
                model=model,
                served=served.model_dump_json(),
                canary_percent=settings.canary,
                watch_s=settings.watch_s,
                within_s=settings.within_s,
                even_without_room=settings.even_without_room,
            )
        )
        _say(f"rolling out revision {revision} of {model}")
        if settings.wait_s:
            _follow(client, model, revision, settings.wait_s)
    return exits.OK


def rollback(folder: Path, model: str, revision: int, *, wait_s: float) -> int:
    """`revision` 0: what served before, or, where a roll-out is on its way, what still serves."""
    with controller_of(folder) as client:
        now = client.rollback(model, revision)
        _say(f"revision {now} of {model} is what shall serve")
        if wait_s:
            _follow(client, model, now, wait_s)
    return exits.OK


def history(folder: Path, model: str, *, as_json: bool) -> int:
    with controller_of(folder) as client:
        entries = client.history(model).entries
    if model and not entries:
        raise NotFound(f"no model {model!r} has ever been served for this state dir")
    if as_json:
        lines = [
            {
                "unix_s": entry.unix_s,
                "model": entry.model,
                "revision": entry.revision,
                "versions": list(entry.versions),
                "stages": entry.stages,
                "what": entry.what,
                "why": entry.why,
            }
            for entry in entries
        ]
        sys.stdout.write(json.dumps(lines) + "\n")
        return exits.OK
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim")
    for heading in ("when", "model", "revision", "versions", "stages", "what", "why"):
        table.add_column(heading, no_wrap=heading != "why")
    for entry in entries:
        when = datetime.fromtimestamp(entry.unix_s).astimezone()
        versions = ", ".join(map(str, entry.versions))
        table.add_row(
            f"{when:%Y-%m-%d %H:%M:%S}",
            entry.model,
            str(entry.revision),
            versions,
            str(entry.stages),
            entry.what,
            entry.why,
        )
    console = Console()
    console.print(table, width=None if console.is_terminal else PLAIN_WIDTH, highlight=False)
    return exits.OK


def _as_it_is_now(repository: Path, model: str, settings: RolloutSettings) -> ServedModel:
    """Checks model.yaml and every artifact, here: the controller goes on undisturbed."""
    served = read_model(repository / model)
    if settings.version is not None:
        if not (repository / model / str(settings.version)).is_dir():
            raise NotFound(f"{repository / model} has no version {settings.version}")
        served = served.model_copy(update={"replicas": {settings.version: served.config.stage_replicas}})
    return with_signatures(repository, {model: served})[model]


def _follow(client: ControlClient, model: str, revision: int, wait_s: float) -> None:
    """Shows each step until it is over. Raises TakenBack, NotInTime."""
    until, told = time.monotonic() + wait_s, ""
    while time.monotonic() < until:
        status = client.status()
        ended = next((entry for entry in client.history(model).entries if entry.revision == revision), None)
        lanes = [one for one in status.models if one.model == model]
        underway = next((one.rollout for one in lanes if one.rollout), "")
        if ended is not None and ended.what == "taken back":
            raise TakenBack(f"revision {revision} of {model} was taken back: {ended.why}; what served before serves on")
        if ended is not None and not underway and _alone(lanes, revision):
            _say(f"revision {revision} of {model} serves: {ended.why}")
            return
        if underway and underway != told:
            _say(underway)
            told = underway
        time.sleep(POLL_S)
    raise NotInTime(f"the roll-out of {model} goes on after {wait_s:g} s: {told or 'see `shardline status`'}")


def _alone(lanes: list[control_pb2.ModelStatus], revision: int) -> bool:
    return all(lane.revision == revision and lane.ready for lane in lanes)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
