"""Calls the controller: what the command line uses. Blocking; every call has a bound."""

from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from cluster.state import Control
from protos import control_pb2, control_pb2_grpc
from worker.channel import DIRECT
from worker.errors import Unavailable, from_code


class ControlClient:
    """Holds one connection. Calls raise what the controller answered, as a ShardlineError."""

    def __init__(self, control: Control) -> None:
        self._address = control.address
        self._channel = grpc.insecure_channel(control.address, options=(DIRECT,))
        self._stub = control_pb2_grpc.ControllerStub(self._channel)  # type: ignore[no-untyped-call]
        self._metadata = (("authorization", f"Bearer {control.token}"),)

    def __enter__(self) -> "ControlClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def status(self, timeout_s: float = 10.0) -> control_pb2.ClusterStatus:
        with self._translated():
            status: control_pb2.ClusterStatus = self._stub.GetStatus(
                control_pb2.GetStatusRequest(), timeout=timeout_s, metadata=self._metadata
            )
            return status

    def scale(self, model: str, stage: int | None, replicas: int, timeout_s: float = 10.0) -> None:
        """`stage` None: every stage."""
        with self._translated():
            request = control_pb2.ScaleRequest(model=model, stage=-1 if stage is None else stage, replicas=replicas)
            self._stub.Scale(request, timeout=timeout_s, metadata=self._metadata)

    def rollout(self, request: control_pb2.RolloutRequest, timeout_s: float = 10.0) -> int:
        """The new revision's number."""
        with self._translated():
            response = self._stub.Rollout(request, timeout=timeout_s, metadata=self._metadata)
            return int(response.revision)

    def rollback(self, model: str, revision: int, timeout_s: float = 10.0) -> int:
        """`revision` 0: the one before. Returns the number of the one that serves, or will."""
        with self._translated():
            request = control_pb2.RollbackRequest(model=model, revision=revision)
            return int(self._stub.Rollback(request, timeout=timeout_s, metadata=self._metadata).revision)

    def history(self, model: str, timeout_s: float = 10.0) -> control_pb2.History:
        """`model` empty: of every model."""
        with self._translated():
            request = control_pb2.GetHistoryRequest(model=model)
            found: control_pb2.History = self._stub.GetHistory(request, timeout=timeout_s, metadata=self._metadata)
            return found

    def stop(self, timeout_s: float) -> None:
        """Returns when every replica has drained and stopped."""
        with self._translated():
            self._stub.Stop(control_pb2.StopRequest(), timeout=timeout_s, metadata=self._metadata)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            code, details = error.code(), error.details() or "no details"
            if code is grpc.StatusCode.UNAVAILABLE:
                raise Unavailable(f"the controller at {self._address} does not answer: {details}") from error
            raise from_code(code.value[0], details) from error
