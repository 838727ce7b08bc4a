"""`shardline status`: what the controller sees, for people or for machines."""

import json
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from google.protobuf.message import Message
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from protos import control_pb2
from shardline import exits
from shardline.running import answers, controller_of
from worker.errors import DeadlineExceeded, Unavailable
from worker.per_stage import MEMORY

SHOWN_DECISIONS = 8
EVERY_S = 1.0
PLAIN_WIDTH = 160
SHORT_ID = 8
"""So much of a node's id names it."""
GIB = 2**30
HIDDEN_KINDS = (MEMORY, "object_store_memory")
"""Resources that every node has; shown only where replicas take some."""
_NO_NODE = (Text("no node is known yet", style="dim"),)


def run(folder: Path, *, as_json: bool, watch: bool) -> int:
    """OK where every model answers, otherwise FAILED. `watch`: again until Ctrl-C, which is OK."""
    if watch:
        with suppress(KeyboardInterrupt):
            _watch(folder, as_json=as_json)
        return exits.OK
    with controller_of(folder) as client:
        status = client.status()
    if as_json:
        sys.stdout.write(as_line(status) + "\n")
    else:
        console = Console()
        console.print(rendered(status), width=None if console.is_terminal else PLAIN_WIDTH, highlight=False)
    return exits.OK if all(answers(model) for model in status.models) else exits.FAILED


def _watch(folder: Path, *, as_json: bool) -> None:
    """A controller that dies and comes back is followed: what it said last stays, with a note.

    What is not a terminal (a log) gets one status after the other.
    """
    console, last = Console(), Group()
    on_screen = sys.stdout.isatty() and not console.is_dumb_terminal and not as_json
    with Live(console=console, refresh_per_second=4) if on_screen else nullcontext() as live:
        while True:
            try:
                with controller_of(folder) as client:
                    while True:
                        status = client.status()
                        if live is not None:
                            last = rendered(status)
                            live.update(last)
                        elif as_json:
                            sys.stdout.write(as_line(status) + "\n")
                        else:
                            console.print(rendered(status), width=PLAIN_WIDTH, highlight=False)
                        sys.stdout.flush()
                        time.sleep(EVERY_S)
            except (DeadlineExceeded, Unavailable) as error:
                note = Text(f"{error}; trying again", style="red")
                if live is not None:
                    live.update(Group(note, last))
                elif not as_json:
                    console.print(note, width=PLAIN_WIDTH)
                    sys.stdout.flush()
            time.sleep(EVERY_S)


def as_line(status: control_pb2.ClusterStatus) -> str:
    """The message as JSON on one line: `control.proto`'s names, every field present, numbers as numbers."""
    return json.dumps(_plain(status))


def _plain(message: Message) -> dict[str, Any]:
    return {field.name: _plain_value(getattr(message, field.name)) for field in message.DESCRIPTOR.fields}


def _plain_value(value: Any) -> Any:
    if isinstance(value, Message):
        return _plain(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, str | int | float):
        return value
    return [_plain_value(each) for each in value]


def rendered(status: control_pb2.ClusterStatus) -> Group:
    """Decisions come last, the newest first: where a terminal has too few lines, the oldest are not seen."""
    where = {node.id: _short(node) for node in status.nodes} if len(status.nodes) > 1 else {}
    return Group(*(_model(model, where) for model in status.models), _nodes(status), _decisions(status))


def _model(model: control_pb2.ModelStatus, where: Mapping[str, str]) -> Group:
    """`where`: the nodes' names by their ids; empty where there is but one, which then is not named."""
    revision = f" (revision {model.revision})" if model.revision > 1 else ""
    title = Text(f"{model.model}/{model.version}{revision} ", style="bold")
    title.append("ready" if model.ready else "not ready", style="green" if model.ready else "red")
    if model.reason:
        title.append(f": {model.reason}", style="yellow" if model.ready else "red")
    refused = f"{model.refused_per_s:.1f} refused/s"
    if model.refusal_p99_ms:
        refused += f" (p99 {model.refusal_p99_ms:.1f} ms)"
    asked = Text(
        f"{model.requests_per_s:.1f} requests/s  p50 {model.p50_ms:.1f} ms  p99 {model.p99_ms:.1f} ms  "
        f"{model.inflight} in flight  {model.failed_per_s:.1f} failed/s  {refused}"
    )
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim")
    for heading in ("stage", "replica", "state", "pid", *(["node"] if where else [])):
        table.add_column(heading, no_wrap=True)
    for heading in ("queued", "ms/row", "rows", "batch", "dropped", "failed", "MiB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for stage in model.stages:
        name = f"{stage.stage} ({len(stage.replicas)}/{stage.desired})"
        for replica in stage.replicas:
            table.add_row(name, *_cells(replica, where))
            name = ""
        if not stage.replicas:
            table.add_row(name, "none")
    notes = [
        *dict.fromkeys(
            f"stage {stage.stage} runs uncompiled: {replica.note}"
            for stage in model.stages
            for replica in stage.replicas
            if replica.note
        ),
        *(
            f"stage {stage.stage}: {stage.wanted} more are needed, and there is no room"
            for stage in model.stages
            if stage.wanted
        ),
    ]
    rollout = [Text(f"roll-out: {model.rollout}", style="cyan")] if model.rollout else []
    return Group(title, *rollout, asked, *_scaled(model), table, *(Text(note, style="yellow") for note in notes))


def _scaled(model: control_pb2.ModelStatus) -> list[Text]:
    return [
        Text(
            f"stage {stage.stage} is scaled between {stage.min} and {stage.max}: {stage.rows_per_s:.1f} rows/s, "
            f"{stage.queued_rows} rows queued, {stage.busy:.2f} replicas' worth of computing",
            style="dim",
        )
        for stage in model.stages
        if stage.max
    ]


def _cells(replica: control_pb2.ReplicaStatus, where: Mapping[str, str]) -> list[str]:
    return [
        replica.id.rpartition("/")[2],
        replica.state,
        str(replica.pid or ""),
        *([where.get(replica.node, replica.node[:SHORT_ID])] if where else []),
        str(replica.queued_rows),
        f"{replica.seconds_per_row * 1e3:.2f}",
        str(replica.computed_rows),
        f"{replica.computed_rows / max(1, replica.computed_batches):.1f}",
        str(replica.dropped_expired + replica.dropped_cancelled + replica.refused),
        str(replica.failed),
        f"{replica.resident_bytes / 2**20:.0f}",
    ]


def _decisions(status: control_pb2.ClusterStatus) -> Group:
    shown = reversed(status.decisions[-SHOWN_DECISIONS:])
    lines = [
        Text(
            f"{datetime.fromtimestamp(decision.unix_s).astimezone():%H:%M:%S}  {decision.what}, because {decision.why}"
        )
        for decision in shown
    ]
    return Group(Text("decisions", style="bold"), *lines)


def _nodes(status: control_pb2.ClusterStatus) -> Group:
    first = Text(f"route table {status.generation} of controller {status.epoch}", style="dim")
    lines = (Text(_node(node), style="yellow" if node.drained else "dim") for node in status.nodes)
    return Group(first, *lines, *(() if status.nodes else _NO_NODE))


def _node(node: control_pb2.NodeStatus) -> str:
    kinds = sorted(kind for kind in node.resources if kind not in HIDDEN_KINDS or node.taken.get(kind))
    room = ", ".join(_room(kind, node.taken.get(kind, 0), node.resources[kind]) for kind in kinds)
    labels = ", ".join(f"{name}={value}" for name, value in sorted(node.labels.items()))
    return f"node {_short(node)} {node.address}: {node.replicas} replicas take {room}{labels and f' [{labels}]'}"


def _short(node: control_pb2.NodeStatus) -> str:
    return node.id[:SHORT_ID] + (" (drained)" if node.drained else "")


def _room(kind: str, taken: float, there: float) -> str:
    return f"{taken / GIB:.1f} of {there / GIB:.1f} GiB {kind}" if kind == MEMORY else f"{taken:g} of {there:g} {kind}"
