"""`shardline compress`: applies a recipe to a model, and makes an artifact of what comes out."""

import contextlib
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from shardline import exits
from shardline.packaging import keep_or_write
from shardline.progress import steps
from shardline.signals import sigterm_as_ctrl_c
from worker.errors import InvalidRequest
from worker.model_yaml import ModelYaml

_OBJECT_STORE_BYTES: Final = 2**30
"""Of the Ray that trains: the model and its data are in it once."""

if TYPE_CHECKING:
    from worker.manifest import Manifest


def run(
    source: str,
    recipe: Path,
    out: Path,
    *,
    stages: Sequence[int] | None,
    handler: str | None,
    device: str,
    runtime: Literal["fastest", "eager"],
    workers: int,
    address: str | None,
    as_json: bool,
) -> int:
    sys.path.insert(0, "")  # a factory, or data from a function, may stand in the folder where the command is typed
    try:
        with sigterm_as_ctrl_c(), steps(f"reading {recipe}") as begin:
            from compressor.package import package  # noqa: PLC0415 -- torch takes seconds
            from compressor.recipe_file import read_recipe  # noqa: PLC0415
            from compressor.steps import KINDS  # noqa: PLC0415
            from compressor.training.training_steps import TrainingStep  # noqa: PLC0415
            from worker.artifact import read_manifest  # noqa: PLC0415

            compression = read_recipe(recipe)
            if workers and not any(step.needs_training() for step in compression.steps):
                kinds = ", ".join(name for name, kind in KINDS.items() if issubclass(kind, TrainingStep))
                raise InvalidRequest(
                    f"--workers {workers}: no step of the recipe trains, and nothing else uses workers: leave them "
                    f"out, or name one that does ({kinds})"
                )
            with _ray(workers, address):
                folder = package(
                    source,
                    out,
                    compression=compression,
                    stages=stages,
                    handler=handler,
                    device=device,
                    runtime=runtime,
                    progress=begin,
                    workers=workers or None,
                )
    except KeyboardInterrupt:
        kept = out / ".training"
        more = (
            f"; what was trained stays in {kept}: the same command goes on from there"
            if any(kept.rglob("*.pt"))
            else ""
        )
        sys.stderr.write(f"shardline: stopped; no artifact was written{more}\n")
        return exits.FORCED
    manifest = read_manifest(folder)
    keep_or_write(
        out / "model.yaml", ModelYaml(handler=manifest.handler, stages=stages[0] if stages else 1, device=device)
    )
    facts = told(folder, manifest)
    sys.stdout.write(json.dumps(facts) + "\n" if as_json else shown(facts))
    return exits.OK


def _ray(workers: int, address: str | None) -> contextlib.AbstractContextManager[None]:
    """What trainings on `workers` workers need: the cluster at `address`, or a Ray of this machine. 0: nothing."""
    if not workers:
        if address:
            raise InvalidRequest(f"--address {address}: trainings run there on --workers; give their number")
        return contextlib.nullcontext()
    from worker.joined_ray import joined_ray  # noqa: PLC0415 -- Ray takes a second
    from worker.local_ray import local_ray  # noqa: PLC0415

    if address:
        return joined_ray(address)
    scratch = Path(tempfile.mkdtemp(prefix="shardline-train-"))
    return local_ray(scratch, cpus=workers, object_store_bytes=_OBJECT_STORE_BYTES)


def told(folder: Path, manifest: "Manifest") -> dict[str, Any]:
    """What the command prints with --json. Sizes are bytes; `cosine` is to the model before, on its examples."""
    recipe = manifest.recipe
    made = recipe.compression
    if made is None:
        return {"folder": str(folder), "steps": []}
    return {
        "folder": str(folder),
        "program_bytes": manifest.files["program.pt2"].bytes,
        "cosine": recipe.cosine,
        "steps": [
            {
                "kind": step["kind"],
                "layers": len(changes),
                "before": sum(change.before for change in changes),
                "after": sum(change.after for change in changes),
                "changes": [change.model_dump() for change in changes],
            }
            for step, changes in zip(made.steps, made.changes, strict=True)
        ],
    }


def shown(facts: dict[str, Any]) -> str:
    lines = [
        f"{step['kind']}: {step['layers']} {'layer' if step['layers'] == 1 else 'layers'}, "
        f"{step['before']:,} → {step['after']:,} bytes"
        for step in facts["steps"]
    ]
    return "\n".join([*lines, f"cosine to the model before: {facts['cosine']:.4f}", facts["folder"], ""])
