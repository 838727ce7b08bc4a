import pytest

from cluster.room import Room, why_pending


@pytest.mark.parametrize(
    ("cpus", "gpu", "asked", "room", "why"),
    [
        (0.5, False, 2.0, Room(2.0, 0.0), "its process is being started"),
        (0.5, False, 2.0, Room(2.0, 1.0), "its process is being started"),
        (0.5, False, 2.5, Room(2.0, 0.0), "no room: a replica takes 0.5 CPU, and 0 of the cluster's 2 are free; lower"),
        (4.0, False, 4.0, Room(2.0, 2.0), "no room: a replica takes 4 CPU, and 2 of the cluster's 2 are free; lower"),
        (
            1.0,
            False,
            1.0,
            Room(2.0, 0.0),
            "no process yet; there may be no room, since others hold CPUs too: a replica",
        ),
        (1.0, True, 1.0, Room(2.0, 2.0), "no node of the cluster has a GPU that Ray counts; set `device: cpu`"),
        (1.0, True, 1.0, Room(2.0, 2.0, gpus=1.0), "its process is being started"),
        (0.1, False, 0.3, Room(0.3, 0.3 - 0.1 - 0.1 - 0.1), "its process is being started"),
    ],
)
def test_why_a_replica_waits_follows_from_what_is_there_and_free(
    cpus: float, gpu: bool, asked: float, room: Room, why: str
) -> None:
    assert why_pending(cpus, gpu, asked, room).startswith(why)
