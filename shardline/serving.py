"""Starts a cluster, a controller and a gateway, and takes them down again in the order that loses nothing."""

import contextlib
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.control_client import ControlClient
from cluster.controller import CONFIRM_WITHIN_S
from cluster.health import DRAIN_MARGIN_S
from cluster.repository import read_repository, with_signatures
from cluster.state import ServedModel, State, StateDir, StateError
from protos import control_pb2
from shardline.gateway_process import DEFAULT_BOUNDS, GatewayBounds, GatewayError, GatewayPlace, GatewayProcess
from shardline.progress import Say
from shardline.running import answers
from shardline.signals import Forced, StopSignals
from worker.errors import ShardlineError, Unavailable

POLL_S = 0.5
ASK_EVERY_S = 2.0
"""How often the controller is asked whether it is there."""
FROZEN_S = 20.0
"""A controller that does not answer for so long is taken for frozen."""
AWAY_S = 90.0
"""A controller that does not answer for so long will not come back."""
MOMENTS_S = 10.0
"""For all that comes between the waits that have bounds of their own: looks, kills, answers."""
MIN_TOKEN = 32
GATEWAY_STARTS = 5
"""So many gateways in a minute, and `serve` gives up."""


class PortBusy(ShardlineError):
    """Something else listens where the gateway should."""


class TokenError(ShardlineError):
    """The cluster's token cannot be had."""


class CannotLeave(ShardlineError):
    """An embedded Ray cannot outlive its `serve`."""


class ClusterLost(ShardlineError):
    """The cluster went away while it served."""


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """models: the folder of models. listen: the gateway's host:port.

    address: a running Ray cluster to join; None: an embedded one. cpus: of the embedded one; None: this machine's.
    in_ray: the controller's state lies in Ray's storage, not in the state dir.
    token_file: holds the cluster's token; None: one is made up. control_port: of the controller; 0: a free one.
    leave_running: what ends is this process and its gateway; the joined cluster's controller and workers go on.
    """

    models: Path
    state_dir: Path
    listen: str = "127.0.0.1:8001"
    processes: int = 1
    address: str | None = None
    cpus: int | None = None
    in_ray: bool = False
    token_file: Path | None = None
    control_port: int = 0
    gateway: GatewayBounds = DEFAULT_BOUNDS
    leave_running: bool = False


@dataclass(frozen=True, slots=True)
class ControllerActions:
    """What is done about a controller that does not answer. address: asks Ray where it listens now."""

    restart: Callable[[], None]
    address: Callable[[], str]


class Serving:
    """A cluster that serves. `address`: the gateway's host:port."""

    def __init__(
        self, place: GatewayPlace, state_dir: StateDir, controller: ControllerActions, stop: StopSignals, say: Say
    ) -> None:
        self._place = place
        self._state_dir = state_dir
        self._controller = controller
        self._stop = stop
        self._say = say
        self._gateway: GatewayProcess | None = None
        self._gateway_starts: list[float] = []
        self.address = place.listen

    def start_gateway(self) -> None:
        now = time.monotonic()
        self._gateway_starts = [at for at in self._gateway_starts if now - at < 60.0] + [now]
        if len(self._gateway_starts) > GATEWAY_STARTS:
            raise ClusterLost(f"the gateway ended {GATEWAY_STARTS} times within a minute; its log: {self._place.log}")
        self._gateway = GatewayProcess(self._place)
        self.address = self._gateway.wait_until_ready(self._stop.check)
        self._place = replace(self._place, listen=self.address)  # one that is started again listens there too

    def _start_gateway_again(self) -> None:
        """Its orphans may still hold the port for a moment: a start that fails is tried again, ever later."""
        try:
            self.start_gateway()
        except GatewayError as error:
            self._say(str(error))
            self._stop.asked.wait(2.0 ** (len(self._gateway_starts) - 1))

    def wait_until_ready(self, within_s: float | None = None, *, all_replicas: bool = False) -> bool:
        """Shows what is still missing until every model is ready; False where that takes longer than `within_s`.

        A model is ready with one replica of each stage; `all_replicas`: wait for the others too.
        """
        until = time.monotonic() + within_s if within_s is not None else float("inf")
        told = ""
        while time.monotonic() < until:
            self._stop.check()
            status = self._status()
            now = "\n".join(_progress(model) for model in status.models)
            if now != told:
                self._say(now)
                told = now
            if status.models and all(_is_ready(model, all_replicas=all_replicas) for model in status.models):
                return True
            self._stop.asked.wait(POLL_S)
        return False

    def keep(self) -> None:
        """Returns when a signal asks to stop. Starts again what died or froze. Raises ClusterLost."""
        heard = asked = time.monotonic()
        revived = False
        while not self._stop.asked.wait(POLL_S):
            if self._gateway is not None and self._gateway.exit_code is not None:
                self._say(f"the gateway ended with code {self._gateway.exit_code}; starting another")
                self._start_gateway_again()
            if time.monotonic() - asked < ASK_EVERY_S:
                continue
            try:
                self._ask(ASK_EVERY_S)
            except ShardlineError as error:
                away = time.monotonic() - heard
                if away > AWAY_S:
                    raise ClusterLost(f"the controller was away for {AWAY_S:g} s: {error}") from error
                if away > FROZEN_S and not revived:
                    # Ray starts a dead controller again, but it does not see one that is only frozen.
                    self._say(f"the controller has not answered for {FROZEN_S:g} s; starting it anew")
                    self._controller.restart()
                    revived = True
                else:
                    self._follow_controller()
            else:
                heard, revived = time.monotonic(), False
            asked = time.monotonic()

    def _follow_controller(self) -> None:
        """One that Ray started on another node listens elsewhere: gateways and commands look into the control file."""
        try:
            address = self._controller.address()
        except ShardlineError:
            return
        control = self._state_dir.read_control()
        if address != control.address:
            self._say(f"the controller moved to {address}")
            self._state_dir.write_control(control.model_copy(update={"address": address}))

    def drain(self, within_s: float) -> None:
        """Gateway first, then the workers. Each wait has a bound."""
        self.drain_gateway()
        self._say("draining the workers")
        try:
            with ControlClient(self._state_dir.read_control()) as client:
                client.stop(within_s)
        except ShardlineError as error:
            self._say(f"the workers did not drain: {error}")

    def drain_gateway(self) -> None:
        if self._gateway is not None:
            self._say("draining the gateway")
            self._gateway.drain()

    def kill_gateway(self) -> None:
        if self._gateway is not None and self._gateway.exit_code is None:
            self._gateway.kill()

    def _ask(self, timeout_s: float) -> control_pb2.ClusterStatus:
        """The control file is read each time: a controller that came back may listen elsewhere."""
        with ControlClient(self._state_dir.read_control()) as client:
            return client.status(timeout_s)

    def _status(self) -> control_pb2.ClusterStatus:
        until = time.monotonic() + AWAY_S
        while True:
            try:
                return self._ask(5.0)
            except Unavailable:
                if time.monotonic() > until:
                    raise
                self._stop.check()
                self._stop.asked.wait(POLL_S)


@contextlib.contextmanager
def serving(settings: ServeSettings, stop: StopSignals, say: Say) -> Iterator[Serving]:
    """Everything started when it is entered; everything drained and ended when it is left, killed if left by Forced.

    With `leave_running`, only the gateway is ended.

    Raises StopAsked where a signal came meanwhile, and ShardlineErrors that say what is wrong and what to do.
    """
    if settings.leave_running and settings.address is None:
        raise CannotLeave(
            "--leave-running: expected --address ADDRESS beside it, got none: an embedded Ray ends with its `serve`; "
            "join a Ray cluster (`ray start --head`), or leave the flag out"
        )
    state_dir = StateDir(settings.state_dir.resolve())
    repository = settings.models.resolve()
    with contextlib.ExitStack() as stack:
        announce = stack.enter_context(state_dir.owned(settings.listen, leaves=settings.leave_running))
        models = read_repository(repository)
        refuse_busy_port(settings.listen)
        models = with_signatures(repository, models)
        say(f"serving {', '.join(models)} from {settings.models}")
        state = State(
            repository=str(repository),
            host="127.0.0.1" if settings.address is None else None,
            port=settings.control_port,
            token=secrets.token_urlsafe(32) if settings.token_file is None else read_token(settings.token_file),
            models=models,
        )
        stop.check()
        controller = _start_cluster(settings, state_dir, state, stack, stop=stop, say=say)
        stop.install()  # Ray put handlers of its own in place
        stop.check()
        place = GatewayPlace(
            settings.listen, settings.processes, state_dir.control_file, state_dir.folder, settings.gateway
        )
        serving_now = Serving(place, state_dir, controller, stop, say)
        stack.callback(serving_now.kill_gateway)
        drain_s = drain_bound_s(models.values())

        def drain() -> None:
            if settings.leave_running:
                serving_now.drain_gateway()
            else:
                serving_now.drain(drain_s)

        try:
            serving_now.start_gateway()
            announce(serving_now.address)
            yield serving_now
        except Forced:
            raise
        except ClusterLost:
            serving_now.drain_gateway()
            raise
        except BaseException:
            drain()
            raise
        else:
            drain()


def drain_bound_s(models: Iterable[ServedModel]) -> float:
    """The longest that all workers take to drain, one stage after the other, once gateways know (seconds)."""
    between = CONFIRM_WITHIN_S + MOMENTS_S
    return between + sum((one.config.drain_s + DRAIN_MARGIN_S) * one.config.stages for one in models)


def _start_cluster(
    settings: ServeSettings,
    state_dir: StateDir,
    state: State,
    stack: contextlib.ExitStack,
    *,
    stop: StopSignals,
    say: Say,
) -> ControllerActions:
    """Starts or joins Ray, and starts or finds the controller."""
    from cluster.launch import (  # noqa: PLC0415 -- slow
        Found,
        controller_address,
        embedded_ray,
        find_controller,
        joined_ray,
        keep_in_ray,
        restart_controller,
        start_controller,
    )

    # What Ray prints of itself goes to a file: this terminal shows ours.
    log = stack.enter_context(state_dir.log("ray.log"))
    if settings.address is None:
        say("starting an embedded Ray")
        stack.enter_context(contextlib.redirect_stdout(log))
        stack.enter_context(contextlib.redirect_stderr(log))
        stack.enter_context(embedded_ray(state_dir.folder, settings.cpus))
    else:
        say(f"joining the Ray cluster at {settings.address}")
        stack.enter_context(joined_ray(settings.address))
    found = find_controller(state_dir.folder)
    if found is Found.STOPS:
        say("found the controller of an earlier serve, which is being stopped; waiting for its end")
        bound_s = drain_bound_s((_earlier(state_dir) or state).models.values())
        _await_end(lambda: find_controller(state_dir.folder) is Found.NONE, bound_s, stop)
    elif found is Found.SERVES:
        say("found the controller of an earlier serve, and its workers, alive")
        if settings.token_file is not None and state_dir.read_control().token != state.token:
            say(f"it keeps the token that it began with; for {settings.token_file}'s: `shardline stop`, then serve")
        return ControllerActions(restart_controller, controller_address)
    state = _coming_after(_earlier(state_dir), state)
    state_dir.control_file.unlink(missing_ok=True)
    state_dir.write_state(state)
    if settings.in_ray:
        keep_in_ray(state_dir.folder, state)
    start_controller(state_dir.folder, in_ray=settings.in_ray)
    return ControllerActions(restart_controller, controller_address)


def _await_end(ended: Callable[[], bool], within_s: float, stop: StopSignals) -> None:
    """Raises ClusterLost where the controller that is being stopped does not end."""
    stop.install()  # Ray put handlers of its own in place
    until = time.monotonic() + within_s
    while not ended():
        if time.monotonic() > until:
            raise ClusterLost(f"the controller of an earlier serve has not stopped its workers within {within_s:g} s")
        stop.check()
        stop.asked.wait(POLL_S)


def _coming_after(earlier: State | None, state: State) -> State:
    """`state`, which goes on counting where `earlier` was."""
    if earlier is None:
        return state
    models = {
        name: model.model_copy(update={"revision": earlier.next_revision(name)}) for name, model in state.models.items()
    }
    return state.model_copy(update={"generation": earlier.generation, "history": earlier.history, "models": models})


def _earlier(state_dir: StateDir) -> State | None:
    """What an earlier serve of this state dir left."""
    try:
        return state_dir.read_state()
    except StateError:
        return None


def read_token(path: Path) -> str:
    """The one line of the file. Raises TokenError."""
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise TokenError(f"the token file {path} cannot be read: {error}") from error
    if len(token) < MIN_TOKEN or not token.isprintable() or " " in token:
        raise TokenError(
            f"the token file {path}: expected one line of at least {MIN_TOKEN} printable characters without blanks, "
            "such as `openssl rand -hex 32` makes"
        )
    return token


def refuse_busy_port(listen: str) -> None:
    """Raises PortBusy where somebody listens on host:port already."""
    host, _, port = listen.rpartition(":")
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        raise PortBusy(
            f"cannot listen on {listen}: {error.strerror}; stop what listens there "
            "(another `shardline serve`? `shardline stop`), or give another --listen HOST:PORT"
        ) from error


def _is_ready(model: control_pb2.ModelStatus, *, all_replicas: bool) -> bool:
    return answers(model) and (not all_replicas or all(_ready(stage) >= stage.desired for stage in model.stages))


def _ready(stage: control_pb2.StageStatus) -> int:
    return sum(replica.state == "ready" for replica in stage.replicas)


def _progress(model: control_pb2.ModelStatus) -> str:
    stages = "  ".join(f"stage {stage.stage}: {_ready(stage)} of {stage.desired}" for stage in model.stages)
    return f"{model.model}/{model.version}  {stages}" + ("  ready" if model.ready else f"  ({model.reason})")
