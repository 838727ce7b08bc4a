"""Trains with several workers on a Ray cluster: Ray Train places and restarts them, torch's DDP joins them.

Each worker computes its rows of every batch (`compressor.training.peers`), so N workers give what one gives at the same
batch, up to rounding. When a worker dies, all of them start again from the last checkpoint. Needs the extra "train".
"""

import math
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import ray
from torch import nn

from compressor.step import Training
from compressor.training.checkpoint import FileCheckpoint, State
from compressor.training.peers import Group
from compressor.training.train import Course, Hook, Trained, train_
from worker.errors import DeadlineExceeded, Internal, InvalidRequest, Unsupported, from_code

FILE: Final = "training.pt"


@dataclass(frozen=True, slots=True)
class RayTrainer:
    """Runs trainings on the Ray cluster that this process has joined.

    workers: how many; each has one CPU, and one GPU where the training's device is "cuda" (NCCL between them, gloo
        between CPUs).
    storage: a folder, or a URI that Ray knows, which every node reaches; checkpoints are kept in it.
    name: the n-th training that this is called for, from 0 on, is `name`-n in `storage`. One that is there already is
        gone on with: whoever does a recipe again, with a new RayTrainer, goes on where it was.
    restarts: how often workers may die.
    every: steps between two checkpoints; 0: one after each epoch.
    seconds: after which the training stops with a checkpoint; None: it may take as long as it takes.
    """

    workers: int
    storage: str
    name: str = "training"
    restarts: int = 3
    every: int = 0
    seconds: float | None = None
    _names: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    def __call__(
        self,
        objective: nn.Module,
        data: Training,
        course: Course,
        *,
        hooks: Sequence[Hook] = (),
        seed: int = 0,
        device: str = "cpu",
        say: Callable[[str], None] = lambda _: None,
    ) -> Trained:
        """Trains `objective` in place. See `compressor.training.train.train_`; all that is given must be picklable.

        Raises:
            InvalidRequest: no Ray, or too small a cluster; and as `train_`.
            DeadlineExceeded: it ran out of time; what is in `storage` goes on.
            KeyboardInterrupt: Ctrl-C; what is in `storage` goes on.
            Internal: the workers died more often than they may.
        """
        gpu = device.startswith("cuda")
        self._check(gpu)
        try:
            from ray import train  # noqa: PLC0415  # its packages come with the extra
            from ray.train.torch import TorchConfig, TorchTrainer  # noqa: PLC0415
        except ImportError as error:
            raise Unsupported('training on Ray needs the extra "train": pip install "shardline[train]"') from error
        began = time.perf_counter()
        until = math.inf if self.seconds is None else time.time() + self.seconds
        work = _Work(objective, data, course, tuple(hooks), seed, self.every, until)
        name = f"{self.name}-{len(self._names)}"
        self._names.append(name)
        say(f"training on {self.workers} workers")
        trainer = TorchTrainer(
            _train,  # type: ignore[arg-type]  # what it returns is kept, though the stub says None
            train_loop_config={"work": ray.put(work)},
            torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=_TOGETHER_S),
            scaling_config=train.ScalingConfig(num_workers=self.workers, use_gpu=gpu),
            run_config=train.RunConfig(
                name=name,
                storage_path=self.storage,
                failure_config=train.FailureConfig(max_failures=self.restarts),
                checkpoint_config=train.CheckpointConfig(num_to_keep=2),
            ),
        )
        try:
            with _interruptible():
                result = trainer.fit()
        except train.TrainingFailedError as error:
            raise Internal(f"the training's workers failed more than {self.restarts} times: {error}") from error
        told: tuple[int, str] | None = result.return_value  # type: ignore[attr-defined]  # of Ray Train's second API
        if told is not None:
            code, message = told
            raise from_code(code, message)
        if result.checkpoint is None:
            raise Internal("the training ended without a checkpoint")
        with result.checkpoint.as_directory() as folder:
            saved = FileCheckpoint(Path(folder) / FILE).read()
        if saved is None:
            raise Internal("the training's last checkpoint is empty")
        objective.load_state_dict(saved["objective"])
        for hook, state in zip(hooks, saved["hooks"], strict=True):
            hook.restore(state)
        for number, loss in enumerate(saved["losses"]):
            say(f"epoch {number + 1} of {course.epochs}: loss {loss:.4f}")
        return Trained(saved["step"], tuple(saved["losses"]), time.perf_counter() - began)

    def _check(self, gpu: bool) -> None:
        if self.workers < 1:
            raise InvalidRequest(f"workers: expected at least 1, not {self.workers}")
        if not ray.is_initialized():
            raise InvalidRequest("this process has joined no Ray cluster; start or join one before training on it")
        there = ray.cluster_resources()  # type: ignore[no-untyped-call]
        for kind in ("CPU", *(["GPU"] if gpu else [])):
            if there.get(kind, 0) < self.workers:
                raise InvalidRequest(
                    f"{self.workers} workers need {self.workers} {kind}s and the Ray cluster has "
                    f"{there.get(kind, 0):g}; take fewer workers or add nodes"
                )


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ray Train handles Ctrl-C itself, ends the workers, then this process by SystemExit, and its handler stays. Here
    that is a KeyboardInterrupt, as everywhere, and the handler is again what it was.
    """
    main = threading.current_thread() is threading.main_thread()  # signals are nobody else's
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        if main and before is not None:
            signal.signal(signal.SIGINT, before)


_TOGETHER_S: Final = 600
"""How long a worker waits for another's gradients before it gives up."""


@dataclass(frozen=True, slots=True)
class _Work:
    """What each worker gets. `until`: by the wall's clock, which nodes share."""

    objective: nn.Module
    data: Training
    course: Course
    hooks: tuple[Hook, ...]
    seed: int
    every: int
    until: float


class _ReportedCheckpoint:
    """Ray Train's own: every worker reports, the first one's file is kept."""

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def __str__(self) -> str:
        return "the checkpoint in storage"

    def read(self) -> State | None:
        from ray import train  # noqa: PLC0415

        found = train.get_checkpoint()
        if found is None:
            return None
        with found.as_directory() as folder:
            return FileCheckpoint(Path(folder) / FILE).read()

    def write(self, state: State) -> None:
        from ray import train  # noqa: PLC0415

        if self._rank:
            train.report({"step": state["step"]})
            return
        with tempfile.TemporaryDirectory() as folder:
            FileCheckpoint(Path(folder) / FILE).write(state)
            train.report({"step": state["step"]}, checkpoint=train.Checkpoint.from_directory(folder))


def _train(config: dict[str, Any]) -> tuple[int, str] | None:
    """One worker's part: None, or what kept it from its end, which would keep it again if it were tried again."""
    from ray.train.torch import get_device  # noqa: PLC0415

    work: _Work = ray.get(config["work"])
    peers = Group()
    left = work.until - time.time()
    try:
        train_(
            work.objective,
            work.data,
            work.course,
            hooks=work.hooks,
            seed=work.seed,
            device=str(get_device()),
            checkpoint=_ReportedCheckpoint(peers.rank),
            every=work.every,
            deadline=time.monotonic() + left,
            peers=peers,
        )
    except (InvalidRequest, DeadlineExceeded) as error:
        # Everybody raises the same at the same step: what is looked at is what all of them agree on.
        return error.code, str(error)
    return None
