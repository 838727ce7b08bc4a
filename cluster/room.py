"""Why a replica has no process yet. Pure arithmetic on what Ray says is there and free."""

from dataclasses import dataclass

SLACK = 1e-6


@dataclass(frozen=True, slots=True)
class Room:
    """What the cluster has: CPUs in all, CPUs that nobody holds, GPUs in all."""

    cpus: float
    free_cpus: float
    gpus: float = 0.0


def why_pending(cpus: float, gpu: bool, asked_cpus: float, room: Room) -> str:
    """`cpus`, `gpu`: what the replica takes. `asked_cpus`: what all our replicas take, with or without a process."""
    if gpu and not room.gpus:
        return "no node of the cluster has a GPU that Ray counts; set `device: cpu` in model.yaml or add such a node"
    held = room.cpus - room.free_cpus
    what = f"a replica takes {cpus:g} CPU, and {room.free_cpus:g} of the cluster's {room.cpus:g} are free"
    advice = "lower `cpus` or `replicas` in model.yaml, scale something down, or add a node"
    if room.free_cpus + SLACK < cpus and held + SLACK < asked_cpus:
        return f"no room: {what}; {advice}"
    if room.free_cpus + SLACK < cpus and held > asked_cpus + SLACK:
        return f"no process yet; there may be no room, since others hold CPUs too: {what}; {advice}"
    return "its process is being started"
