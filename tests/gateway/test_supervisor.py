import time
from pathlib import Path

from gateway.settings import GatewaySettings, ServerLimits
from gateway.supervisor import Supervisor, held_port, statistics_file


async def test_a_process_that_begins_while_the_others_drain_is_not_waited_for(tmp_path: Path) -> None:
    settings = GatewaySettings(
        listen="127.0.0.1:0",
        processes=2,
        control_file=tmp_path / "control.json",
        ready_file=tmp_path / "ready",
        notice_s=60.0,
        finish_s=60.0,
        log_level="INFO",
        limits=ServerLimits(),
    )
    with held_port(settings.listen) as address, statistics_file(settings.processes) as file:
        supervisor = Supervisor(settings, address, file)
        supervisor.stop()
        began = time.monotonic()
        assert await supervisor.run(), "it was asked to end, and did"
        assert time.monotonic() - began < 30
        assert not (tmp_path / "ready").exists()
