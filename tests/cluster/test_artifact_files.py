"""Artifacts that a node fetches from the controller: a real server, real files, and a cache of its own."""

import asyncio
import hashlib
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import grpc
import pytest
from grpc import aio

from cluster.artifact_files import MAX_OPEN
from cluster.control_server import Context, ControlServer
from cluster.kept_code import KeptCode
from protos import control_pb2, control_pb2_grpc
from tests.cluster.simulation import TOKEN, Simulation
from worker.artifact import ArtifactError, load_artifact
from worker.errors import NotFound, Unauthenticated, Unavailable
from worker.fetch import ATTEMPTS, ArtifactSource, local_artifact, local_code
from worker.handler_code import code_hash
from worker.model_yaml import ModelYaml

NOWHERE = Path("/nowhere/toy/1")


@dataclass
class Served:
    source: ArtifactSource
    origin: Path
    cache: Path
    asked_often: asyncio.Event
    server: "Counting"

    def serve_code(self, code: str) -> None:
        """As the code of toy's handler, which the controller keeps."""
        self.server.keep("toy", code)

    def again(self, model: str) -> ArtifactSource:
        """The same files as another model: its manifest is another, for the blanks at its end."""
        folder = self.origin.parent.parent / model / "1"
        shutil.copytree(self.origin, folder)
        with (folder / "manifest.json").open("a") as text:
            text.write(" " * len(model))
        manifest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
        return replace(self.source, model=model, manifest=manifest)

    async def fetched(self, token: str = TOKEN) -> Path:
        local = await asyncio.to_thread(local_artifact, NOWHERE, self.source, token, 0.01)
        return local.artifact.folder


class Counting(ControlServer):
    """`enough` is set when a node has asked for a manifest more often than a fetch may break off."""

    asked = 0

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.enough = asyncio.Event()

    def keep(self, model: str, code: str) -> None:
        state = self._controller.state
        config = ModelYaml(handler="words:Words", handler_code="code")
        served = state.models[model].model_copy(update={"config": config, "code": code})
        self._code.keep(model, served)
        self._controller.state = state.with_served(model, served)

    async def FetchFile(  # noqa: N802
        self, request: control_pb2.FetchFileRequest, context: Context
    ) -> AsyncIterator[control_pb2.FileChunk]:
        self.asked += request.path == "manifest.json"
        if self.asked > ATTEMPTS:
            self.enough.set()
        async for chunk in super().FetchFile(request, context):
            yield chunk


@asynccontextmanager
async def served(folder: Path, toy: Path) -> AsyncIterator[Served]:
    """`toy` as the model toy/1 of a controller that listens."""
    simulation = Simulation(folder, toy="{}", second="{}", third="{}")
    origin = folder / "models" / "toy" / "1"
    shutil.copytree(toy, origin)
    server = Counting(simulation.controller, TOKEN, KeptCode(folder / "kept", folder / "models"))
    port = await server.start("127.0.0.1", 0)
    manifest = hashlib.sha256((origin / "manifest.json").read_bytes()).hexdigest()
    cache = folder / "cache"
    source = ArtifactSource(f"127.0.0.1:{port}", "toy", 1, manifest, str(cache))
    try:
        yield Served(source, origin, cache, server.enough, server)
    finally:
        await server.close(0)


async def test_a_node_without_the_artifact_fetches_it_whole_and_only_once(tmp_path: Path, toy_folder: Path) -> None:
    async with served(tmp_path, toy_folder) as toy:
        folders = await asyncio.gather(*(toy.fetched() for _ in range(4)))
        assert len(set(folders)) == 1
        assert load_artifact(folders[0]).manifest == load_artifact(toy.origin).manifest
    assert await toy.fetched() == folders[0], "the controller is gone, and the cache is there"


async def test_a_node_that_shares_the_folder_fetches_nothing(tmp_path: Path, toy_folder: Path) -> None:
    async with served(tmp_path, toy_folder) as toy:
        local = await asyncio.to_thread(local_artifact, toy.origin, toy.source, TOKEN)
        assert local.artifact.folder == toy.origin
        assert not toy.cache.exists()


async def test_a_fetch_that_broke_off_goes_on_where_it_was(tmp_path: Path, toy_folder: Path) -> None:
    async with served(tmp_path, toy_folder) as toy:
        program = toy.origin / "program.pt2"
        part = toy.cache / f"{toy.source.manifest}.part"
        part.mkdir(parents=True)
        (part / "program.pt2").write_bytes(program.read_bytes()[:-100])
        program.write_bytes(bytes(program.stat().st_size - 100) + program.read_bytes()[-100:])
        folder = await toy.fetched()
        assert load_artifact(folder), "only the last bytes were asked for: the rest of the origin is zeros by now"


async def test_what_is_damaged_on_the_way_is_fetched_again(tmp_path: Path, toy_folder: Path) -> None:
    async with served(tmp_path, toy_folder) as toy:
        part = toy.cache / f"{toy.source.manifest}.part"
        part.mkdir(parents=True)
        (part / "program.pt2").write_bytes(b"something else")
        (part / "stray").write_bytes(b"")
        assert load_artifact(await toy.fetched())


async def test_what_was_damaged_in_the_cache_is_fetched_once_more(tmp_path: Path, toy_folder: Path) -> None:
    async with served(tmp_path, toy_folder) as toy:
        folder = await toy.fetched()
        with (folder / "program.pt2").open("r+b") as file:
            file.write(b"x")
        (folder / "stray").write_bytes(b"")
        await asyncio.gather(*(toy.fetched() for _ in range(4)))
        assert load_artifact(folder)


async def test_what_was_fetched_is_on_the_disk_before_it_has_its_name(tmp_path: Path, toy_folder: Path) -> None:
    done: list[str] = []

    def watch(frame: FrameType, event: str, called: Any) -> None:
        if event == "c_call" and called is os.fsync:
            done.append(os.readlink(f"/proc/self/fd/{frame.f_locals['descriptor']}"))
        if event == "c_call" and called is os.rename:
            done.append("its name")

    def fetched() -> Path:
        sys.setprofile(watch)
        try:
            return local_artifact(NOWHERE, toy.source, TOKEN).artifact.folder
        finally:
            sys.setprofile(None)

    async with served(tmp_path, toy_folder) as toy:
        folder = await asyncio.to_thread(fetched)
    named = done.index("its name")
    part = f"{folder}.part"
    assert {part, *(f"{part}/{path.relative_to(folder)}" for path in folder.rglob("*"))} <= set(done[:named])
    assert str(toy.cache) in done[named:], "and so is its name"


async def test_what_no_worker_uses_goes_when_the_cache_is_full_and_what_one_uses_stays(
    tmp_path: Path, toy_folder: Path
) -> None:
    async with served(tmp_path, toy_folder) as toy:
        size = sum(path.stat().st_size for path in toy.origin.rglob("*") if path.is_file())
        toy.source = replace(toy.source, keep_bytes=2 * size + size // 2)
        sources = [toy.source, toy.again("second"), toy.again("third")]
        places = [toy.cache / source.manifest for source in sources]
        async with a_worker_that_loaded(sources[0]) as worker:
            for source in sources[1:]:
                await asyncio.to_thread(local_artifact, NOWHERE, source, TOKEN)
            assert [place.is_dir() for place in places] == [True, False, True], "the first is older, and in use"
            worker.kill()
            await worker.wait()
        await asyncio.to_thread(local_artifact, NOWHERE, sources[1], TOKEN)
        assert [place.is_dir() for place in places] == [False, True, True]


@asynccontextmanager
async def a_worker_that_loaded(source: ArtifactSource) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that has fetched and loaded `source`, and lives on."""
    code = (
        "import sys; from pathlib import Path; from worker.fetch import ArtifactSource, local_artifact\n"
        f"local = local_artifact(Path('/nowhere/toy/1'), {source!r}, {TOKEN!r})\n"
        "print('loaded', flush=True); sys.stdin.read()"
    )
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdin=pipe, stdout=pipe)
    try:
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 60) == b"loaded\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_an_artifact_that_changed_at_its_origin_is_refused(tmp_path: Path, toy_folder: Path) -> None:
    async with served(tmp_path, toy_folder) as toy:
        with (toy.origin / "program.pt2").open("r+b") as file:
            file.write(b"x")
        with pytest.raises(ArtifactError, match=r"program\.pt2 came twice with another content"):
            await toy.fetched()
        with (toy.origin / "manifest.json").open("a") as text:
            text.write("\n")
        with pytest.raises(ArtifactError, match="its manifest at the controller is not the one that is served"):
            await toy.fetched()


async def test_a_controller_that_serves_as_many_nodes_as_it_can_is_waited_for(tmp_path: Path, toy_folder: Path) -> None:
    async with served(tmp_path, toy_folder) as toy:
        program = toy.origin / "program.pt2"
        program.rename(toy.origin / "whole")
        with program.open("wb") as file:
            file.truncate(1 << 30)
        async with AsyncExitStack() as others:
            for _ in range(MAX_OPEN):
                channel = await others.enter_async_context(aio.insecure_channel(toy.source.address))
                stub = control_pb2_grpc.ControllerStub(channel)  # type: ignore[no-untyped-call]
                request = control_pb2.FetchFileRequest(model="toy", version=1, path="program.pt2")
                await stub.FetchFile(request, metadata=(("authorization", f"Bearer {TOKEN}"),)).read()
            (toy.origin / "whole").rename(program)
            fetching = asyncio.create_task(toy.fetched())
            asked_often = asyncio.create_task(toy.asked_often.wait())
            await asyncio.wait((fetching, asked_often), timeout=20, return_when=asyncio.FIRST_COMPLETED)
            assert not fetching.done(), "it waits, and as long as it must"
            asked_often.cancel()
        assert load_artifact(await fetching)


async def test_strangers_and_other_paths_get_nothing(tmp_path: Path, toy_folder: Path) -> None:
    async with served(tmp_path, toy_folder) as toy:
        with pytest.raises(Unauthenticated):
            await toy.fetched(token="wrong")
        toy.source = replace(toy.source, model="bert")
        with pytest.raises(NotFound, match="no 'bert'/1 is served"):
            await toy.fetched()
        (toy.origin / "stages").mkdir(exist_ok=True)
        async with aio.insecure_channel(toy.source.address) as channel:
            stub = control_pb2_grpc.ControllerStub(channel)  # type: ignore[no-untyped-call]
            for path in ("../../../state/state.json", "/etc/passwd", "model.yaml", "", "stages"):
                request = control_pb2.FetchFileRequest(model="toy", version=1, path=path)
                with pytest.raises(aio.AioRpcError) as caught:
                    await stub.FetchFile(request, metadata=(("authorization", f"Bearer {TOKEN}"),)).read()
                assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_handlers_code_is_fetched_by_its_hash_and_only_while_it_is_served(
    tmp_path: Path, toy_folder: Path
) -> None:
    async with served(tmp_path, toy_folder) as toy:
        model = toy.origin.parent
        (model / "code").mkdir()
        (model / "code" / "empty.py").touch()
        (model / "code" / "words.py").write_text("one = 1")
        toy.serve_code(code_hash(model, "code"))
        toy.source = replace(toy.source, code=code_hash(model, "code"))
        (model / "code" / "words.py").write_text("one = 2")
        local = await asyncio.to_thread(local_code, model, "code", toy.source, TOKEN)
        assert local.folder == toy.cache / toy.source.code / "code", "what is in the model's folder is another one"
        assert (local.folder / "words.py").read_text() == "one = 1"
        assert (local.folder / "empty.py").read_text() == ""
        with pytest.raises(Unauthenticated):
            await asyncio.to_thread(
                local_code, NOWHERE.parent, "code", replace(toy.source, cache=str(tmp_path / "other")), "wrong"
            )
        async with aio.insecure_channel(toy.source.address) as channel:
            stub = control_pb2_grpc.ControllerStub(channel)  # type: ignore[no-untyped-call]
            asked = [(code_hash(model, "code"), "manifest.json"), ("../models/toy/1", "manifest.json")]
            for code, path in (*asked, (toy.source.code, "../../state/state.json"), (toy.source.code, "code")):
                request = control_pb2.FetchFileRequest(model="toy", version=1, path=path, code=code)
                with pytest.raises(aio.AioRpcError) as caught:
                    await stub.FetchFile(request, metadata=(("authorization", f"Bearer {TOKEN}"),)).read()
                assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_code_that_the_controller_does_not_have_either_is_told_with_what_to_do(
    tmp_path: Path, toy_folder: Path
) -> None:
    async with served(tmp_path, toy_folder) as toy:
        model = toy.origin.parent
        (model / "code").mkdir()
        (model / "code" / "words.py").touch()
        toy.source = replace(toy.source, code=code_hash(model, "code"))
        toy.serve_code(toy.source.code)
        shutil.rmtree(tmp_path / "kept")
        told = f"no code of a handler of 'toy' .*{toy.source.code}.* is kept; `shardline rollout toy` takes"
        with pytest.raises(NotFound, match=told):
            await asyncio.to_thread(local_code, NOWHERE.parent, "code", toy.source, TOKEN)


async def test_a_controller_that_is_away_is_waited_for_and_then_named(tmp_path: Path, toy_folder: Path) -> None:
    async with served(tmp_path, toy_folder) as toy:
        pass
    with pytest.raises(Unavailable, match=r"manifest\.json of toy/1 cannot be fetched from the controller at 127"):
        await toy.fetched()
