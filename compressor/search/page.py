"""report.html: the report on one page that needs nothing from elsewhere."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import yaml

from compressor.search.plot import pareto_plot

Told = Mapping[str, Any]

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --line: #dfe4ea; --paper: #ffffff; --card: #f5f7f9;
  --good: #0b7a53; --bad: #b4331f; --mark: #2b5fd9; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7ebf0; --soft: #9aa6b5; --line: #303946; --paper: #14191f;
  --card: #1c232b; --good: #4cc79a; --bad: #f08a74; --mark: #84a9ff; } }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 60rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
p { max-width: 46rem; } .soft, caption { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .75rem; margin: 1.5rem 0; }
.card { background: var(--card); border-radius: .5rem; padding: .75rem 1rem; }
.card b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; } .card span { color: var(--soft); }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .35rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child, .words { text-align: left; white-space: normal; min-width: 6rem; }
caption { text-align: left; padding-bottom: .4rem; } th { color: var(--soft); font-weight: 600; }
tr.chosen td { background: color-mix(in srgb, var(--good) 12%, transparent); }
pre { background: var(--card); border-radius: .5rem; padding: 1rem; overflow-x: auto; font-size: .85rem; }
svg { width: 100%; height: auto; font: 12px system-ui, sans-serif; } svg text { fill: var(--soft); }
.grid { stroke: var(--line); } .front { fill: none; stroke: var(--mark); stroke-width: 1.5; stroke-dasharray: 5 4; }
.budget { stroke: var(--bad); stroke-width: 1.5; } svg .budget-text { fill: var(--bad); }
.bar { stroke: var(--soft); opacity: .5; } .tried circle { fill: var(--mark); } .baseline circle { fill: var(--soft); }
.returned circle { fill: var(--good); } svg .label { fill: var(--ink); font-weight: 600; }
.good { color: var(--good); } .bad { color: var(--bad); }
"""


def page(report: Told) -> str:
    """The report (as `Report.as_json` gives it) as one HTML document without scripts, links or fonts from elsewhere."""
    title = f"{report['source']}: {report['objective']}, at most {report['budget']} {report['unit']} lost"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{_text(report['source'])}</h1>",
            f'<p class="{"good" if report["found"] else "bad"}">{_text(_verdict(report))}</p>',
            _cards(report),
            "<h2>What was tried</h2>",
            _plot(report),
            _points(report),
            "<h2>Time</h2>",
            _rivals(report),
            "<h2>Size, memory and accuracy</h2>",
            _sizes(report),
            "<h2>Layers</h2>",
            _layers(report),
            "<h2>Recipe</h2>",
            _recipe(report),
            "<h2>How this was measured</h2>",
            _method(report),
            "</body></html>",
            "",
        ]
    )


def _verdict(report: Told) -> str:
    return str(report["reason"]) if report["found"] else f"The model stays as it was: {report['reason']}"


def _cards(report: Told) -> str:
    rows = {row["name"]: row for row in report["rivals"]}
    ours = rows.get("returned") or rows.get("uncompressed artifact") or {}
    batch = next(reversed(ours.get("seconds") or {"": None}))
    wanted = report["objective"].partition("@")[2]
    batch = wanted if wanted in (ours.get("seconds") or {}) else batch
    cards = [
        (
            f"{report['figure']['value']:.2f}",
            f"{report['evaluation']} on held-out data; {_figure(report['baseline'])} before",
        ),
        (
            f"{report['drop']['value']:.3f}",
            f"lost, at most {report['drop']['high']:.3f}; {report['allowed']:.3g} allowed",
        ),
    ]
    for name, told in (
        ("uncompressed artifact", "than the uncompressed artifact"),
        ("PyTorch, uncompiled", "than PyTorch, uncompiled"),
    ):
        other = (rows.get(name) or {}).get("seconds", {}).get(batch)
        mine = ours.get("seconds", {}).get(batch)
        if report["found"] and other and mine:
            cards.append((f"{other / mine:.2f}x", f"faster {told}, batch {batch}"))
    body = "".join(f'<div class="card"><b>{_text(value)}</b><span>{_text(told)}</span></div>' for value, told in cards)
    return f'<div class="cards">{body}</div>'


def _plot(report: Told) -> str:
    timed = any(point["seconds"] is not None for point in report["points"])
    return pareto_plot(
        report["points"],
        cost="seconds" if timed else "bytes",
        cost_name=f"milliseconds at {report['objective']}" if timed else "MB of weights",
        loss_name=f"lost on calibration data ({report['unit']})",
        allowed=report["allowed"],
    )


def _points(report: Told) -> str:
    rows = [
        (
            _row(
                [
                    point["name"],
                    _milliseconds(point["seconds"]),
                    _megabytes(point["bytes"]),
                    _drop(point["drop"]),
                    _drop(point["held_out"]),
                    point["verdict"] or ("on the front" if point["front"] else ""),
                ],
                words=(5,),
            ),
            point["verdict"] == "returned",
        )
        for point in report["points"]
    ]
    heads = ["recipe", "ms", "MB of weights", "lost, calibration", "lost, held out", ""]
    left_out = "".join(f"<p>{_text(name)} everywhere: {_text(why)}.</p>" for name, why in report["left_out"].items())
    return _table("Each as a whole. Losses: the figure and its interval.", heads, rows) + left_out


def _rivals(report: Told) -> str:
    batches = list(dict.fromkeys(batch for row in report["rivals"] for batch in row["seconds"]))
    base: Told = next((row["seconds"] for row in report["rivals"] if row["name"] == "uncompressed artifact"), {})
    rows = [
        (
            _row(
                [
                    row["name"] + (f" ({row['note']})" if row["note"] else ""),
                    *(_against(row["seconds"].get(batch), base.get(batch)) for batch in batches),
                ]
            ),
            row["name"] == "returned",
        )
        for row in report["rivals"]
    ]
    told = "Milliseconds of a batch on one thread, taken in turns; in brackets, times as fast as the uncompressed."
    return _table(told, ["", *batches], rows)


def _sizes(report: Told) -> str:
    rows = [
        (
            _row(
                [
                    row["name"],
                    _megabytes(row["bytes"]),
                    _megabytes(row["resident_bytes"]),
                    _figure(row["figure"]) if row["figure"] else "",
                    _drop(row["drop"]),
                ]
            ),
            row["name"] == "returned",
        )
        for row in report["rivals"]
        if row["bytes"] is not None
    ]
    heads = ["", "MB on disk", "MB resident", f"{report['evaluation']}, held out", "lost"]
    return _table("Resident: what a process grows by when it loads the model and computes a batch.", heads, rows)


def _layers(report: Told) -> str:
    rows = [
        (
            _row(
                [
                    row["group"],
                    row["treatment"],
                    "" if row["distance"] is None else f"{row['distance']:.2e}",
                    "" if row["drop"] is None else f"{row['drop']:.3f}",
                    _milliseconds(row["gain_seconds"]),
                    _megabytes(row["saved_bytes"]),
                    row["problem"] or ("chosen" if row["chosen"] else ""),
                ],
                words=(1, 6),
            ),
            row["chosen"],
        )
        for row in report["layers"]
    ]
    heads = ["layers", "treatment", "distance", "lost", "ms saved", "MB saved", ""]
    told = "Each treatment on these layers alone. Distance: of the outputs, squared and relative, on calibration data."
    return _table(told, heads, rows)


def _recipe(report: Told) -> str:
    if not report["recipe"]:
        return "<p>None: the model was not changed.</p>"
    given = {key: value for key, value in report["recipe"].items() if value is not None}
    text = yaml.safe_dump(given, sort_keys=False, allow_unicode=True)
    told = "Also in recipe.yaml: <code>shardline compress --recipe</code> makes the same program of it."
    return f"<p>{told}</p><pre>{_text(text)}</pre>"


def _stages(count: int) -> str:
    return "one stage" if count == 1 else f"{count} stages one after the other"


def _method(report: Told) -> str:
    machine = ", ".join(f"{name} {value}" for name, value in report["machine"].items())
    spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in report["seconds"].items())
    paragraphs = [
        f"Decided on {report['calibration_records']} records of {report['calibration']}; judged on "
        f"{report['held_out_records']} records of {report['held_out']}, which share none with them; these were asked "
        f"about {report['looks']} {'mix' if report['looks'] == 1 else 'mixes'}. {_intervals(report)}",
        f"{report['trials']} trials, seed {report['seed']}, device {report['device']}, {_stages(report['stages'])}. "
        f"{machine}.",
        f"Time spent: {spent}.",
    ]
    return "".join(f"<p>{_text(paragraph)}</p>" for paragraph in paragraphs)


def _intervals(report: Told) -> str:
    asked = {point["held_out"]["method"] for point in report["points"] if point["held_out"]}
    proof = f"; what was lost on held-out data, by which the budget is proven: {', '.join(asked)}" if asked else ""
    return f"Intervals: percentile bootstrap over records, paired for losses{proof}."


def _table(caption: str, heads: Sequence[str], rows: Iterable[tuple[str, bool]]) -> str:
    head = "".join(f"<th>{_text(name)}</th>" for name in heads)
    body = "\n".join(f"<tr{' class=chosen' if chosen else ''}>{row}</tr>" for row, chosen in rows)
    return (
        f'<div class="wide"><table><caption>{_text(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _row(cells: Sequence[str], words: Sequence[int] = ()) -> str:
    return "".join(
        f"<td{' class=words' if place in words else ''}>{_text(cell)}</td>" for place, cell in enumerate(cells)
    )


def _text(value: object) -> str:
    return html.escape(str(value))


def _figure(figure: Told) -> str:
    return f"{figure['value']:.2f} ({figure['low']:.2f} to {figure['high']:.2f})"


def _drop(figure: Told | None) -> str:
    return "" if figure is None else f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.3g}"


def _megabytes(size: float | None) -> str:
    return "" if size is None else f"{size / 1e6:.2f}"


def _against(seconds: float | None, base: float | None) -> str:
    if seconds is None:
        return ""
    return _milliseconds(seconds) + (f" ({base / seconds:.2f}x)" if base else "")
