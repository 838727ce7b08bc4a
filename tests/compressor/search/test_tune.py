import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from compressor.evaluation.evaluation import find_evaluation
from compressor.package import package
from compressor.recipe_file import read_recipe
from compressor.search.budget import Budget
from compressor.search.objective import read_objective
from compressor.search.report import Report
from compressor.search.treatments import treatment
from compressor.search.tune import WORK, Request, read_data, search_key, tune
from compressor.training.training_data import Rows
from tests.compressor.search.tiny import WIDTH, broad, classifier, single, small_classifier, write_data
from worker.artifact import load_artifact, versions
from worker.errors import InvalidRequest, Overloaded
from worker.shard import load_shard

SOURCE = "tests.compressor.search.tiny:classifier"
SMALL = "tests.compressor.search.tiny:small_classifier"
HALF = treatment({"kind": "prune_neurons", "share": 0.5})
MOST = treatment({"kind": "prune_neurons", "share": 0.75})
BINARY = treatment({"kind": "binary"})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "data.npz", classifier(), 1200, seed=1)


@pytest.fixture
def request_of(tmp_path: Path, data: Path) -> Callable[..., Request]:
    def make(**changed: object) -> Request:
        request = Request(
            source=SOURCE,
            out=tmp_path / "tuned",
            evaluate="accuracy",
            data=data,
            max_drop=Budget(2.0),
            objective=read_objective("latency@64"),
            treatments=(HALF, MOST),
            runtime="eager",
            key=tmp_path / "key",
        )
        return replace(request, **changed)  # type: ignore[arg-type]

    return make


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.outside: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.outside += [value for name, value in attrs if name in {"src", "href"} and value]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_an_interrupted_search_goes_on_and_finds_the_fastest_mix_proven_and_replayable(
    request_of: Callable[..., Request], tmp_path: Path
) -> None:
    request = request_of()

    def interrupt(step: str) -> None:
        if step.startswith("one treatment everywhere"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(request, interrupt)
    assert versions(request.out) == ()
    kept = {path: path.stat().st_mtime_ns for path in (request.out / WORK / "trials").iterdir()}
    assert len(kept) >= 4
    report = tune(replace(request, keep=True))
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert versions(request.out) == (1,)

    assert report.found, report.reason
    assert report.drop.high <= report.allowed == 2.0
    assert report.calibration_records + report.held_out_records <= 1200
    chosen = {row.group: row.treatment for row in report.layers if row.chosen}
    assert set(chosen.values()) == {HALF.name}  # half of the neurons do nothing; more would be missed
    times = {row.name: row.seconds["64"] for row in report.rivals if row.seconds}
    assert times["returned"] < times["uncompressed artifact"]

    folder = Path(report.artifact)
    x = torch.randn(5, WIDTH)
    (answer,) = load_shard(load_artifact(folder), stage=0, stages=1).run([x])
    with torch.no_grad():
        assert (classifier().module(x) - answer).abs().max() < 0.1

    again = package(SOURCE, tmp_path / "again", compression=read_recipe(request.out / "recipe.yaml"), runtime="eager")
    assert (again / "program.pt2").read_bytes() == (folder / "program.pt2").read_bytes()

    told = json.loads((request.out / "report.json").read_text())
    assert told == report.as_json()
    page = Page((request.out / "report.html").read_text())
    assert page.tags.count("svg") == 1
    assert page.tags.count("circle") == sum(point.seconds is not None for point in report.points)
    assert not page.outside
    assert "script" not in page.tags
    assert HALF.name in page.text


def test_where_nothing_keeps_the_budget_the_uncompressed_model_is_returned_and_it_says_so(
    request_of: Callable[..., Request], tmp_path: Path
) -> None:
    data = write_data(tmp_path / "single.npz", single(), 1200, seed=1)
    source, size = "tests.compressor.search.tiny:single", read_objective("size")
    request = request_of(source=source, data=data, treatments=(BINARY,), max_drop=Budget(0.5), objective=size)
    report = tune(request)
    assert not report.found
    assert "nothing keeps the budget" in report.reason
    assert report.drop.high == 0
    assert load_artifact(Path(report.artifact)).manifest.recipe.compression is None
    assert not (request.out / "recipe.yaml").exists()
    assert "stays as it was" in (request.out / "report.html").read_text()
    assert not (request.out / WORK).exists()


def test_where_size_counts_what_saves_weights_and_leaves_a_larger_artifact_is_not_returned(
    request_of: Callable[..., Request],
) -> None:
    int8 = treatment({"kind": "int8_weight_only"})
    thin = "tests.compressor.search.tiny:thin"
    report = tune(request_of(source=thin, treatments=(int8,), max_drop=Budget(90), objective=read_objective("size")))
    (point,) = (each for each in report.points if each.recipe)
    assert point.bytes < report.points[0].bytes
    assert not report.found
    assert "MB on disk, and the uncompressed one" in point.verdict


def test_what_is_served_in_two_stages_is_judged_and_timed_in_two(request_of: Callable[..., Request]) -> None:
    report = tune(request_of(stages=(2,), treatments=(HALF,)))
    assert report.found, report.reason
    assert report.stages == 2
    manifest = load_artifact(Path(report.artifact)).manifest
    assert [len(cut.stages) for cut in manifest.cuts] == [2]
    times = {row.name: row.seconds["64"] for row in report.rivals if row.seconds}
    assert times["returned"] < times["uncompressed artifact"]
    assert "2 stages one after the other" in (report_folder(report) / "report.html").read_text()


def report_folder(report: Report) -> Path:
    return Path(report.artifact).parent


def test_what_learns_and_what_only_the_whole_model_takes_is_tried_made_once_and_replayable(
    request_of: Callable[..., Request], data: Path, tmp_path: Path
) -> None:
    training = write_data(tmp_path / "training.npz", classifier(), 600, seed=7)
    taught = treatment(
        {"kind": "prune_neurons", "share": 0.75}, {"kind": "distill", "epochs": 3, "rate": 0.001, "optimiser": "adamw"}
    )
    tiles = {"block": [16, 16]}
    sparse = treatment(
        {"kind": "prune_weights", "sparsity": 0.5, **tiles}, {"kind": "sparse", "layout": "bsr", **tiles}
    )
    said: list[str] = []
    request = request_of(treatments=(MOST, taught, sparse), training=str(training), max_drop=Budget(90))
    report = tune(request, said.append)
    assert sum(step.startswith("epoch 3 of 3") for step in said) == 1
    points = {point.name: point for point in report.points}
    alone, learnt = points[f"{MOST.name} everywhere"], points[f"{taught.name} everywhere"]
    assert learnt.drop.value < alone.drop.value - 5  # what was learnt is what three quarters of the neurons had known
    assert learnt.seconds is not None
    assert not learnt.treatments
    assert f"{sparse.name} everywhere" in points or "ms for the whole model" in report.left_out[sparse.name]

    best = tune(replace(request, treatments=(taught,), max_drop=Budget(20), out=tmp_path / "taught"))
    assert best.found, best.reason
    recipe = read_recipe(tmp_path / "taught" / "recipe.yaml")
    assert recipe.training == str(training)
    again = package(SOURCE, tmp_path / "again", compression=recipe, runtime="eager")
    assert (again / "program.pt2").read_bytes() == (Path(best.artifact) / "program.pt2").read_bytes()


def rows() -> Rows:
    """What a function gives to learn from."""
    x = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(3))
    return Rows((x,), torch.zeros(64, dtype=torch.int64), seed=0)


class Filling(Rows):
    """Whoever learns from it has the disk filled at `FULL`."""

    def batches(self, epoch: int) -> Iterator[tuple[tuple[torch.Tensor, ...], torch.Tensor]]:
        if "FULL" in os.environ:
            with suppress(OSError), Path(os.environ["FULL"]).open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        return super().batches(epoch)


def filling() -> Rows:
    return Filling(rows().inputs, rows().targets)


def test_a_disk_that_is_full_when_a_treatment_is_packaged_ends_the_search_which_goes_on_where_there_is_room(
    request_of: Callable[..., Request], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught = treatment({"kind": "fine_tune", "epochs": 1})
    out = small_disk / "tuned"
    request = request_of(source=SMALL, out=out, treatments=(taught,), training=f"{__name__}:filling")
    monkeypatch.setenv("FULL", str(small_disk / "other"))
    with pytest.raises(OSError, match="No space left on device"):
        tune(request)
    assert [path.name for path in out.iterdir()] == [WORK]
    assert not list(out.rglob(".packaging-*"))
    monkeypatch.delenv("FULL")
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True, timeout=10)  # noqa: S607
    report = tune(request)
    assert f"{taught.name} everywhere" in {point.name for point in report.points} or report.left_out[taught.name]
    assert versions(out) == (1,)


@pytest.mark.parametrize("from_file", [True, False])
def test_a_treatment_that_learns_ends_with_the_time_that_there_is_for_it(
    request_of: Callable[..., Request], tmp_path: Path, from_file: bool
) -> None:
    file = write_data(tmp_path / "training.npz", classifier(), 600, seed=7)
    training = str(file) if from_file else f"{__name__}:rows"
    taught = treatment({"kind": "fine_tune", "epochs": 10_000})
    report = tune(request_of(treatments=(HALF, taught), training=training, time_limit_s=30))
    assert "its training takes longer than its share of the time that was left" in report.left_out[taught.name]
    assert report.found, report.reason
    assert report.objective == "latency@64"


def test_what_no_treatment_can_do_is_told_and_data_to_learn_from_belong_to_one_that_learns(
    request_of: Callable[..., Request], data: Path
) -> None:
    taught = treatment({"kind": "fine_tune"})
    with pytest.raises(InvalidRequest, match="'fine_tune' trains: give it data to learn from with --training"):
        tune(request_of(treatments=(taught,)))
    with pytest.raises(InvalidRequest, match="no treatment trains"):
        tune(request_of(training=str(data)))
    with pytest.raises(InvalidRequest, match=r"no-data\.npz"):
        tune(request_of(treatments=(taught,), training="no-data.npz"))
    with pytest.raises(InvalidRequest, match=r"are held out .*; what teaches must not judge: take them out"):
        tune(request_of(treatments=(taught,), training=str(data)))
    heads = treatment({"kind": "prune_heads", "share": 0.5})
    with pytest.raises(InvalidRequest, match=r"no treatment can be done \(prune_heads"):
        tune(request_of(treatments=(heads,)))
    report = tune(request_of(source=SMALL, treatments=(heads, HALF)))
    assert "prune_heads" in report.left_out[heads.name]


@pytest.mark.slow
def test_where_memory_counts_it_is_measured(request_of: Callable[..., Request], tmp_path: Path) -> None:
    data = write_data(tmp_path / "broad.npz", broad(), 300, seed=1)
    source, objective = "tests.compressor.search.tiny:broad", read_objective("memory")
    report = tune(request_of(source=source, data=data, treatments=(HALF,), max_drop=Budget(5), objective=objective))
    assert report.found, report.reason
    assert "of the uncompressed artifact's bytes of memory" in report.reason
    resident = {row.name: row.resident_bytes or 0 for row in report.rivals}
    assert resident["returned"] < 0.8 * resident["uncompressed artifact"]


def test_a_treatment_that_leaves_no_numbers_is_left_out_and_the_search_goes_on(
    request_of: Callable[..., Request],
) -> None:
    steep, fp16 = "tests.compressor.search.tiny:steep", treatment({"kind": "fp16"})
    report = tune(request_of(source=steep, treatments=(fp16, BINARY), objective=read_objective("size")))
    assert "values: nan in record" in report.left_out[fp16.name]
    assert f"{BINARY.name} everywhere" in {point.name for point in report.points}


def test_what_cannot_be_judged_on_held_out_data_is_not_returned_and_the_search_ends_in_order(
    request_of: Callable[..., Request], data: Path, tmp_path: Path
) -> None:
    arrays = dict(np.load(data))
    calibration = tmp_path / "calibration.npz"
    np.savez(calibration, x=arrays["x"][:400], label=arrays["label"][:400])
    arrays["x"][400, 0] = MARK
    np.savez(tmp_path / "marked.npz", x=arrays["x"][400:], label=arrays["label"][400:])
    report = tune(
        request_of(
            evaluate=f"{__name__}:fragile",
            data=tmp_path / "marked.npz",
            calibration=calibration,
            max_drop=Budget(0.1),
            treatments=(HALF,),
        )
    )
    assert not report.found
    told = [point.verdict for point in report.points if point.verdict]
    assert told
    assert all("cannot be judged on held-out data: values: nan in record 0" in verdict for verdict in told)


MARK = 9.0


def fragile(run: Callable[..., tuple[torch.Tensor, ...]], columns: dict[str, np.ndarray]) -> list[float]:
    """Whether classes are right; no number for a marked record, except by the model as it was."""
    x = torch.from_numpy(columns["x"])
    (logits,) = run(x)
    with torch.no_grad():
        exact = classifier().module(x)
    lost = (x[:, 0] == MARK) & ((logits - exact).abs().amax(1) > 1e-5)
    right = (logits.argmax(1).numpy() == columns["label"]).astype(float)
    return np.where(lost.numpy(), np.nan, right).tolist()  # type: ignore[no-any-return]


def test_a_version_is_there_only_when_nothing_can_fail_any_more_but_writing_the_report(
    request_of: Callable[..., Request],
) -> None:
    source, size = "tests.compressor.search.tiny:single", read_objective("size")
    request = request_of(source=source, treatments=(BINARY,), objective=size)
    there: dict[str, tuple[int, ...]] = {}

    def look(step: str) -> None:
        there.setdefault(step.partition(":")[0], versions(request.out))

    tune(request, look)
    assert there["comparing what is returned with others"] == ()
    assert there["writing"] == ()
    assert versions(request.out) == (1,)


@pytest.mark.slow
def test_what_is_smaller_but_slower_is_not_returned(request_of: Callable[..., Request]) -> None:
    # Uncompiled, int8 is slower on small layers: it is never returned, not even where only size counts.
    int8 = treatment({"kind": "int8_dynamic"})
    report = tune(request_of(source=SMALL, treatments=(int8,), max_drop=Budget(50), objective=read_objective("size")))
    assert not report.found
    assert "its artifact takes" in report.reason


@pytest.mark.slow
def test_the_same_seed_gives_the_same_recipe_and_the_same_figures(
    request_of: Callable[..., Request], tmp_path: Path
) -> None:
    first, second = (tune(request_of(out=tmp_path / name, seed=3)) for name in ("first", "second"))
    assert first.recipe == second.recipe
    assert (first.figure, first.drop, first.baseline) == (second.figure, second.drop, second.baseline)
    assert [row.distance for row in first.layers] == [row.distance for row in second.layers]


def test_when_the_time_is_up_the_uncompressed_model_is_returned(request_of: Callable[..., Request]) -> None:
    report = tune(request_of(source=SMALL, time_limit_s=0.001))
    assert not report.found
    assert "time limit" in report.reason
    assert Path(report.artifact).is_dir()


def test_calibration_data_that_are_also_held_out_are_refused(
    request_of: Callable[..., Request], data: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match="1200 of 1200 records are also in"):
        tune(request_of(calibration=data))
    other = write_data(tmp_path / "other.npz", small_classifier(), 50, seed=2)
    arrays = dict(np.load(other))
    np.savez(tmp_path / "renamed.npz", x=arrays["x"], labels=arrays["label"])
    with pytest.raises(InvalidRequest, match="its columns are x, labels; those of the data are x, label"):
        tune(request_of(calibration=tmp_path / "renamed.npz"))


def test_a_figure_that_is_not_a_number_stops_the_search_and_leaves_no_version(
    request_of: Callable[..., Request],
) -> None:
    with pytest.raises(InvalidRequest, match="values: nan in record 0"):
        tune(request_of(evaluate=f"{__name__}:not_a_number"))
    assert versions(request_of().out) == ()


def not_a_number(run: object, columns: dict[str, np.ndarray]) -> list[float]:
    return [float("nan")] * len(columns["x"])


def test_an_evaluation_whose_code_changed_is_another_search(
    request_of: Callable[..., Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    code = tmp_path / "mine_to_judge.py"
    code.write_text("def right(run, columns):\n    return [1.0] * len(columns['x'])\n")
    request = request_of(source=SMALL, evaluate="mine_to_judge:right")
    calibration, _ = read_data(request, find_evaluation(request.evaluate))
    key = search_key(request, small_classifier(), calibration)
    assert search_key(request, small_classifier(), calibration) == key
    code.write_text("def right(run, columns):\n    return [0.25] * len(columns['x'])\n")
    assert search_key(request, small_classifier(), calibration) != key


def test_two_searches_do_not_share_a_folder(request_of: Callable[..., Request]) -> None:
    request = request_of()

    def another(step: str) -> None:
        if step.startswith("loading"):
            tune(request)

    with pytest.raises(Overloaded, match="another search is at work"):
        tune(request, another)


@pytest.mark.slow
def test_compiled_int8_is_found_with_trials_side_by_side(request_of: Callable[..., Request]) -> None:
    report = tune(
        request_of(
            treatments=(treatment({"kind": "int8_dynamic"}), BINARY),
            runtime="fastest",
            workers=2,
            objective=read_objective("latency@256"),
        )
    )
    assert report.found, report.reason
    assert any(row.treatment == "int8_dynamic" and row.chosen for row in report.layers)
    times = {row.name: row.seconds["256"] for row in report.rivals if row.seconds}
    assert times["returned"] < times["uncompressed artifact"]
