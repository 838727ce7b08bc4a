"""The `shardline` command: parses, and calls the module that does the work.

Exit codes are in `exits`.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gateway.flags import MESSAGE_BYTES, host_port, seconds, whole
from shardline import exits
from shardline.gateway_process import DEFAULT_BOUNDS, GatewayBounds
from shardline.os_errors import told
from shardline.planning_options import planning_commands
from shardline.rollout_options import rollout_commands
from shardline.tune_options import tune_command
from worker.errors import ShardlineError

MODEL = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
LISTEN = "127.0.0.1:8001"

_COUNT = whole(1, 1024)
_HOST_PORT = host_port(f"HOST:PORT, such as {LISTEN}")

Run = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    run: Run = given.run
    try:
        code = run(given)
        sys.stdout.flush()
        return code
    except exits.NotServing as error:
        sys.stderr.write(f"shardline: {error}\n")
        return exits.NOT_SERVING
    except ShardlineError as error:
        sys.stderr.write(f"shardline: {error}\n")
        return exits.FAILED
    except KeyboardInterrupt:
        return exits.FORCED
    except BrokenPipeError:
        _output_is_written()  # who reads our output has gone
        return exits.FAILED
    except OSError as error:
        sys.stderr.write(f"shardline: {told(error, '' if _output_is_written() else 'standard output')}\n")
        return exits.FAILED


def _output_is_written() -> bool:
    """What cannot be is dropped: Python would complain once more when it flushes at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(
        prog="shardline",
        description="Serve a PyTorch model as a pipeline of shards, over the Open Inference Protocol.",
        epilog="example: shardline package my_module:my_factory --out models/mine && shardline serve models/",
    )
    root.add_argument("--version", action="version", version=f"shardline {_version()}")
    commands = root.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Run, summary: str, example: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=summary, epilog=f"example: {example}")
        added.set_defaults(run=run)
        return added

    _package_options(
        command(
            "package",
            _package,
            "Make an artifact of a model: capture, compress, cut, compile.",
            "shardline package sentence_encoder:load --out models/encoder --quantize int8 --stages 2",
        )
    )
    _compress_options(
        command(
            "compress",
            _compress,
            "Make an artifact of a model by a recipe of compression steps.",
            "shardline compress sentence_encoder:load --recipe recipe.yaml --out models/encoder",
        )
    )
    tune_command(command)
    _compile_options(
        command(
            "compile",
            _compile,
            "Compile a version for this machine, as a new version.",
            "shardline compile models/encoder/1",
        )
    )
    planning_commands(command)
    _serve_options(
        command(
            "serve",
            _serve,
            "Serve a folder of models until Ctrl-C, which drains.",
            "shardline serve models/ --listen 0.0.0.0:8001 --processes 2",
        )
    )
    status = command("status", _status, "Show models, stages, replicas and decisions.", "shardline status --watch")
    status.add_argument("--json", action="store_true", help="for machines: the same facts as one JSON object")
    status.add_argument("--watch", action="store_true", help="again every second until Ctrl-C")
    infer = command("infer", _infer, "Send one request.", 'shardline infer minilm --text "a cat" --text "a dog"')
    _infer_options(infer)
    scale = command("scale", _scale, "Change the number of replicas.", "shardline scale minilm/1=3")
    scale.add_argument(
        "target", type=scale_target, metavar="MODEL[/STAGE]=N", help="N replicas of one stage, or of each"
    )
    scale.add_argument(
        "--wait", type=seconds, default=0.0, metavar="SECONDS", help="wait so long until it is so (default: do not)"
    )
    rollouts = rollout_commands(command)
    stop = command("stop", _stop, "Drain and end a running serve.", "shardline stop")
    stop.add_argument(
        "--within", type=seconds, default=300.0, metavar="SECONDS", help="give up waiting after (default: %(default)g)"
    )
    for added in (status, infer, scale, *rollouts, stop):
        _state_dir_option(added)
    return root


def _version() -> str:
    try:
        return version("shardline")
    except PackageNotFoundError:
        return "(not installed)"


def _package_options(package: argparse.ArgumentParser) -> None:
    package.add_argument("--quantize", choices=["int8"], help="linear layers with 8-bit weights and activations")
    _artifact_options(package)


def _compress_options(compress: argparse.ArgumentParser) -> None:
    compress.add_argument(
        "--recipe",
        type=Path,
        required=True,
        metavar="FILE",
        help="the steps (YAML), or a manifest.json that holds them",
    )
    compress.add_argument(
        "--workers",
        type=whole(0, 1024),
        default=0,
        metavar="N",
        help="steps that train do so on so many Ray workers, a CPU each, with --device cuda a GPU each (default: in "
        "this process)",
    )
    compress.add_argument(
        "--address",
        metavar="ADDRESS",
        help="of the Ray cluster that --workers are on (default: an embedded one); all its nodes must reach --out",
    )
    compress.add_argument(
        "--json", action="store_true", help="for machines: what each step changed, as one JSON object"
    )
    _artifact_options(compress)


def _artifact_options(package: argparse.ArgumentParser) -> None:
    """What every command takes that makes an artifact of a source."""
    package.add_argument("source", metavar="SOURCE", help="module:function, a Hugging Face folder, or a .pt2 file")
    package.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the model's folder: models/NAME")
    package.add_argument(
        "--stages",
        type=_COUNT,
        nargs="+",
        metavar="N",
        help="numbers of stages to cut and compile for; model.yaml serves the first (default: 1 and 2)",
    )
    package.add_argument(
        "--handler", metavar="MODULE:CLASS", help="turns a client's tensors into the program's and back"
    )
    package.add_argument("--device", default="cpu", help="that it will run on: cpu, cuda or cuda:N (default: cpu)")
    package.add_argument("--runtime", choices=["fastest", "eager"], default="fastest", help="eager: compile nothing")


def _compile_options(compile_: argparse.ArgumentParser) -> None:
    compile_.add_argument("version", type=Path, metavar="FOLDER", help="of the version: models/NAME/1")
    compile_.add_argument("--device", default="cpu", help="that it will run on: cpu, cuda or cuda:N (default: cpu)")


def _serve_options(serve: argparse.ArgumentParser) -> None:
    serve.add_argument("models", type=Path, metavar="FOLDER", help="holds a folder for each model")
    serve.add_argument("--listen", type=_HOST_PORT, default=LISTEN, metavar="HOST:PORT", help="default: %(default)s")
    serve.add_argument(
        "--processes", type=_COUNT, default=1, metavar="N", help="gateway processes on the port (default: %(default)s)"
    )
    serve.add_argument("--address", metavar="ADDRESS", help="join this Ray cluster (default: an embedded one)")
    serve.add_argument(
        "--leave-running",
        action="store_true",
        help="with --address: Ctrl-C and SIGTERM end this process and its gateway; the controller and the workers run "
        "on, and the next serve finds them",
    )
    serve.add_argument("--cpus", type=_COUNT, metavar="N", help="CPUs of the embedded Ray (default: this machine's)")
    serve.add_argument(
        "--state-in",
        choices=["dir", "ray"],
        default="dir",
        help="where the controller's state is kept: in the state dir, or in Ray's storage (default: %(default)s)",
    )
    serve.add_argument(
        "--token-file", type=Path, metavar="FILE", help="the cluster's token, for gateways elsewhere (default: made up)"
    )
    serve.add_argument(
        "--control-port", type=_port, default=0, metavar="PORT", help="of the controller (default: a free one)"
    )
    gateway = serve.add_argument_group("the gateway (docs/gateway.md)")
    gateway.add_argument(
        "--max-message-bytes",
        type=MESSAGE_BYTES,
        default=DEFAULT_BOUNDS.max_message_bytes,
        metavar="N",
        help="of one request; a larger one is refused before it is read (default: %(default)s)",
    )
    gateway.add_argument(
        "--notice-s",
        type=seconds,
        default=DEFAULT_BOUNDS.notice_s,
        metavar="SECONDS",
        help="from the signal to stop until no new calls are taken (default: %(default)g)",
    )
    gateway.add_argument(
        "--finish-s",
        type=seconds,
        default=DEFAULT_BOUNDS.finish_s,
        metavar="SECONDS",
        help="then for the calls at work (default: %(default)g)",
    )
    _state_dir_option(serve)


def _infer_options(infer: argparse.ArgumentParser) -> None:
    infer.add_argument("model", metavar="MODEL", help="MODEL or MODEL/VERSION")
    what = infer.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--text", action="append", metavar="TEXT", help="one row of the model's text input; may be repeated"
    )
    what.add_argument("--input", type=Path, metavar="FILE.npz", help="an array for each input, under its name")
    infer.add_argument("--out", type=Path, metavar="FILE.npz", help="write the outputs there")
    infer.add_argument("--json", action="store_true", help="for machines: outputs and latency as one JSON object")
    infer.add_argument(
        "--url", type=_HOST_PORT, metavar="HOST:PORT", help="of the gateway (default: the running serve's)"
    )
    infer.add_argument(
        "--timeout", type=seconds, default=60.0, metavar="SECONDS", help="the deadline (default: %(default)g)"
    )


def _state_dir_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--state-dir",
        type=Path,
        default=default_state_dir(os.environ.get("XDG_STATE_HOME", "")),
        metavar="FOLDER",
        help="belongs to one serve; how the other commands find it (default: %(default)s)",
    )


def default_state_dir(state_home: str) -> Path:
    """`state_home`: XDG_STATE_HOME, or empty."""
    return (Path(state_home) if state_home else Path.home() / ".local" / "state") / "shardline" / "default"


def scale_target(text: str) -> tuple[str, int | None, int]:
    """MODEL[/STAGE]=N as model, stage (None: every stage) and number."""
    match = re.fullmatch(rf"({MODEL})(?:/(\d{{1,3}}))?=(\d{{1,4}})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not MODEL=N or MODEL/STAGE=N, such as minilm=2 or minilm/1=3")
    return match[1], int(match[2]) if match[2] else None, int(match[3])


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1 to 65535")
    return int(text)


# Each command imports what it needs: `shardline status` must not wait for torch or Ray.


def _package(given: argparse.Namespace) -> int:
    from shardline.packaging import run  # noqa: PLC0415

    return run(
        given.source,
        given.out,
        quantize=given.quantize,
        stages=given.stages,
        handler=given.handler,
        device=given.device,
        runtime=given.runtime,
    )


def _compress(given: argparse.Namespace) -> int:
    from shardline.compressing import run  # noqa: PLC0415

    return run(
        given.source,
        given.recipe,
        given.out,
        stages=given.stages,
        handler=given.handler,
        device=given.device,
        runtime=given.runtime,
        workers=given.workers,
        address=given.address,
        as_json=given.json,
    )


def _compile(given: argparse.Namespace) -> int:
    from shardline.packaging import compile_version  # noqa: PLC0415

    return compile_version(given.version, given.device)


def _serve(given: argparse.Namespace) -> int:
    from shardline.serve import run  # noqa: PLC0415
    from shardline.serving import ServeSettings  # noqa: PLC0415

    settings = ServeSettings(
        models=given.models,
        state_dir=given.state_dir,
        listen=given.listen,
        processes=given.processes,
        address=given.address,
        cpus=given.cpus,
        in_ray=given.state_in == "ray",
        token_file=given.token_file,
        control_port=given.control_port,
        gateway=GatewayBounds(given.max_message_bytes, given.notice_s, given.finish_s),
        leave_running=given.leave_running,
    )
    return run(settings)


def _status(given: argparse.Namespace) -> int:
    from shardline.status import run  # noqa: PLC0415

    return run(given.state_dir, as_json=given.json, watch=given.watch)


def _infer(given: argparse.Namespace) -> int:
    from shardline.infer import run  # noqa: PLC0415
    from shardline.running import gateway_of  # noqa: PLC0415

    url = given.url or gateway_of(given.state_dir)
    return run(url, given.model, given.text, given.input, out=given.out, as_json=given.json, timeout_s=given.timeout)


def _scale(given: argparse.Namespace) -> int:
    from shardline.running import scale  # noqa: PLC0415

    return scale(given.state_dir, *given.target, wait_s=given.wait)


def _stop(given: argparse.Namespace) -> int:
    from shardline.running import stop  # noqa: PLC0415

    return stop(given.state_dir, given.within)


if __name__ == "__main__":
    sys.exit(main())
