"""The controller as a named, detached Ray actor that Ray starts again when its process dies."""

import asyncio
import logging
import os
from logging.handlers import RotatingFileHandler
from pathlib import Path

import ray
import ray.util

from cluster.control_server import ControlServer
from cluster.controller import Controller
from cluster.kept_code import KeptCode
from cluster.ray_fleet import RayFleet
from cluster.ray_store import RayStore, store_name
from cluster.state import Control, StateDir
from cluster.store import FileStore, Store
from worker.channel import at

logger = logging.getLogger(__name__)

LOG_BYTES = 4 * 2**20
RETRY_S = 5.0


class ControllerActor:
    """Reads all it needs from the state dir, also when it comes back after a crash."""

    def __init__(self, state_folder: str, in_ray: bool = False) -> None:
        """`in_ray`: the state lies in Ray's storage, not in the state dir."""
        self._state_dir = StateDir(Path(state_folder))
        folder = self._state_dir.folder
        self._store: Store = RayStore(store_name(folder)) if in_ray else FileStore(self._state_dir)
        _log_to(self._state_dir.folder / "controller.log")
        self._listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._running = asyncio.create_task(self._run())

    async def where(self) -> tuple[str, str, bool]:
        """Its state dir, its address, and whether it is being stopped. Raises what kept it from starting."""
        address = await asyncio.shield(self._listening)
        return str(self._state_dir.folder), address, self._controller.state.stopping

    async def _run(self) -> None:
        """Keeps the cluster until it was stopped, then ends this actor for good. A failure ends only the process."""
        try:
            await self._start()
        except Exception as error:
            logger.exception("the controller cannot start; Ray tries again")
            self._listening.set_exception(error)
            await asyncio.sleep(RETRY_S)
            os._exit(1)
        await self._keep()

    async def _start(self) -> None:
        epoch = self._store.claim()
        state = self._store.read_state()
        self._fleet = RayFleet(state, epoch=epoch)
        self._controller = Controller(self._fleet, self._store, state, epoch=epoch)
        code = KeptCode(self._state_dir.handler_code, Path(state.repository))
        await asyncio.to_thread(code.keep_all, state)
        await asyncio.to_thread(code.forget_others, state)
        self._server = ControlServer(self._controller, state.token, code)
        host = state.host or ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        port = await self._server.start(host, state.port)
        if port != state.port:
            self._controller.state = self._controller.state.model_copy(update={"port": port})
            self._store.write_state(self._controller.state)
        address = at(host, port)
        self._fleet.control_address = address
        self._state_dir.write_control(Control(address=address, token=state.token))
        logger.info("controller %d of epoch %d listens on %s", os.getpid(), epoch, address)
        self._listening.set_result(address)

    async def _keep(self) -> None:
        keeping = asyncio.create_task(self._controller.run_forever())
        stopped = asyncio.create_task(self._server.until_stopped())
        await asyncio.wait((keeping, stopped), return_when=asyncio.FIRST_COMPLETED)
        if keeping.done():
            logger.critical("the controller gives up; Ray starts it anew: %s", keeping.exception())
            os._exit(1)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await self._server.close()
        await self._fleet.close()
        logger.info("controller %d ends: the cluster was stopped", os.getpid())
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)


def _log_to(path: Path) -> None:
    """Sends this process's log lines to `path`, which is kept small, besides where Ray puts them."""
    handler = RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=1)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in ("cluster", "worker"):
        log = logging.getLogger(name)
        log.setLevel(logging.INFO)
        log.addHandler(handler)
