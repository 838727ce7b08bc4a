"""The tables in docs/ that say what the code takes: `python -m tests.docs_tables` writes them anew.

Each stands between `<!-- NAME: … -->` and `<!-- end -->`; `tests/test_docs.py` holds them to the code.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from inspect import cleandoc
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from compressor.evaluation.evaluation import BUILT_IN, Function
from compressor.step import Step
from compressor.steps import KINDS
from worker.model_yaml import ModelYaml, known_keys

DOCS: Final = Path(__file__).parents[1] / "docs"
_TABLE: Final = re.compile(r"(<!-- ([a-z-]+): [^>]*-->)\n.*?(<!-- end -->)", re.DOTALL)
_BOUNDS: Final = {"ge": "from {}", "gt": "above {}", "le": "to {}", "lt": "below {}"}
_OF_EVERY_STEP: Final = {"kind", "layers"}


def model_yaml() -> Iterable[str]:
    yield from ("| key | default | |", "|---|---|---|")
    for key, meaning in known_keys().items():
        value: Any = ModelYaml()
        for part in key.split("."):
            value = getattr(value, part)
        yield f"| `{key}` | {_value(value)} | {meaning} |"


def steps() -> Iterable[str]:
    """What trainings have in common comes once."""
    trainings = [kind for kind in KINDS.values() if "epochs" in kind.model_fields]
    common = {name for name in trainings[0].model_fields if all(name in kind.model_fields for kind in trainings)}
    yield from ("| kind | keys | meanings |", "|---|---|---|")
    for name, kind in KINDS.items():
        own = [key for key in _keys(kind) if kind not in trainings or key not in common]
        told = ", ".join([*(_key(key, kind.model_fields[key]) for key in own), *["a training's"] * (kind in trainings)])
        yield f"| `{name}` | {told} | {_place(kind)} |"
    shared = [_key(key, trainings[0].model_fields[key]) for key in _keys(trainings[0]) if key in common]
    yield f"| a training | {', '.join(shared)} | {_place(_first_with(trainings[0], 'epochs'))} |"


def savings() -> Iterable[str]:
    yield from ("| kind | what it saves | device |", "|---|---|---|")
    for name, kind in KINDS.items():
        yield f"| `{name}` | {said(kind, 'Saves')} | {said(kind, 'Device')} |"


def said(kind: type[Step], heading: str) -> str:
    """What a step's docstring says under a heading; "" where it has none."""
    found = re.search(
        rf"^{heading}: (.*?)(?=\n\n|\n[A-Z][a-z]+: |\Z)", cleandoc(kind.__doc__ or ""), re.DOTALL | re.MULTILINE
    )
    return " ".join(found[1].split()).removesuffix(".") if found else ""


def evaluations() -> Iterable[str]:
    yield from ("| `--evaluate` | columns of `--data` |", "|---|---|")
    for name, kind in BUILT_IN.items():
        yield f"| `{name}` | {kind.data} |"
    yield f"| `module:function` | {Function.data} |"


TABLES: Final[Mapping[str, Callable[[], Iterable[str]]]] = {
    "model-yaml": model_yaml,
    "savings": savings,
    "steps": steps,
    "evaluations": evaluations,
}


def written(text: str) -> str:
    """The page with its tables as the code has them."""
    return _TABLE.sub(lambda found: "\n".join([found[1], *TABLES[found[2]](), found[3]]), text)


def tables_in(text: str) -> list[str]:
    return [found[2] for found in _TABLE.finditer(text)]


def _keys(kind: type[BaseModel]) -> list[str]:
    return [key for key in kind.model_fields if key not in _OF_EVERY_STEP]


def _key(name: str, field: FieldInfo) -> str:
    """**`needed`**, `optional`, or `name: default`, and what it may be."""
    if field.is_required():
        told = f"**`{name}`**"
    elif field.default_factory is not None or field.default is None:
        told = f"`{name}`"
    else:
        told = f"`{name}: {_plain(field.default)}`"
    limits = _limits(field)
    return f"{told} ({limits})" if limits else told


def _limits(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return ", ".join(str(choice) for choice in get_args(field.annotation))
    bounds = [
        text.format(f"{value:.10g}")
        for one in field.metadata
        for name, text in _BOUNDS.items()
        if (value := getattr(one, name, None)) is not None
    ]
    return " ".join(bounds) if len(bounds) != 2 or "to" in bounds[1] else ", ".join(bounds)


def _value(value: object) -> str:
    return f"`{_plain(value)}`"


def _plain(value: object) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(list(value) if isinstance(value, tuple) else value).replace('"', "")


def _place(kind: type) -> str:
    path = kind.__module__.replace(".", "/")
    return f"[`{path.rpartition('/')[2]}`](../{path}.py)"


def _first_with(kind: type[Step], key: str) -> type:
    """The class that brings the key."""
    return next(one for one in reversed(kind.__mro__) if key in getattr(one, "__annotations__", {}))


def main() -> int:
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text()
        if (new := written(text)) != text:
            page.write_text(new)
            sys.stdout.write(f"{page}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
