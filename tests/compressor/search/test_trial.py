from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compressor.evaluation.evaluation import find_evaluation
from compressor.evaluation.records import Records, read_records
from compressor.search.budget import Budget
from compressor.search.objective import read_objective
from compressor.search.store import Store
from compressor.search.trial import Setting, build, fresh_model, judge
from tests import stories
from tests.compressor.search.tiny import small_classifier, steep, write_data
from worker.errors import Internal


def setting_of(folder: Path, name: str = "small_classifier", **more: Any) -> Setting:
    model = steep() if name == "steep" else small_classifier()
    data = write_data(folder / "data.npz", model, 60, seed=1)
    source = f"tests.compressor.search.tiny:{name}"
    return Setting(source, "accuracy", read_records(data), read_objective("size"), key=f"{folder} {name}", **more)


def test_what_gives_no_numbers_any_more_is_a_problem_and_not_a_result(tmp_path: Path) -> None:
    setting = setting_of(tmp_path, "steep")
    assert "problem" not in judge(setting, ())
    found = judge(setting, [{"kind": "fp16"}])  # what lies between the layers is too large for it
    assert "values: nan in record" in found["problem"]
    Store(tmp_path).put("fp16", found)


def test_answers_of_which_no_figure_can_be_made_are_a_problem(tmp_path: Path) -> None:
    found = judge(replace(setting_of(tmp_path), evaluation=f"{__name__}:endless"), ())
    assert "values: inf in record 3" in found["problem"]


def test_a_model_that_fails_under_a_users_evaluation_is_no_result_and_not_the_users_fault(tmp_path: Path) -> None:
    setting = setting_of(tmp_path)
    with pytest.raises(
        Internal, match=r"too_wide': the model failed on what it was given: RuntimeError: mat1 and mat2"
    ):
        judge(replace(setting, evaluation=f"{__name__}:too_wide"), ())
    assert "broken' failed: KeyError: 'z'" in judge(replace(setting, evaluation=f"{__name__}:broken"), ())["problem"]


def test_a_source_that_fails_only_in_a_trial_is_no_result(tmp_path: Path) -> None:
    setting = replace(setting_of(tmp_path), source=f"{__name__}:starved", key="starved")
    with pytest.raises(Internal, match=r"starved' failed: MemoryError"):
        judge(setting, ())
    with pytest.raises(Internal, match=r"starved' failed: MemoryError"):
        build(setting, (), tmp_path / "built.pt2")


def starved() -> None:
    raise MemoryError


def too_wide(run: Callable[..., Any], columns: dict[str, Any]) -> list[float]:
    run(torch.zeros(2, 3))
    return [0.0] * len(columns["x"])


def broken(run: object, columns: dict[str, Any]) -> list[float]:
    return list(columns["z"])


def endless(run: object, columns: dict[str, Any]) -> list[float]:
    return [0.0, 0.0, 0.0, float("inf"), *[0.0] * (len(columns["x"]) - 4)]


def test_the_perplexity_of_a_real_decoder_tells_a_mild_treatment_from_a_harsh_one() -> None:
    if not stories.STORIES.is_dir():
        pytest.skip(f"needs the decoder in {stories.STORIES}")
    encode = stories.tokenizer().encoded
    lines = [encode(line)[:17] for line in stories.SHAKESPEARE.read_text().splitlines()[:200]]
    ids = np.array([line for line in lines if len(line) == 17])
    data = Records({"ids": ids, "mask": np.ones_like(ids)}, "shakespeare")
    setting = Setting("tests.stories:decoder", "perplexity", data, read_objective("size"), key="decoder")
    plain, int8, binary = (
        judge(setting, steps) for steps in ((), [{"kind": "int8_weight_only"}], [{"kind": "binary"}])
    )
    evaluation = find_evaluation("perplexity")
    base = np.array(plain["answers"])
    mild, harsh = (evaluation.proven_drop(np.array(each["answers"]), base, data) for each in (int8, binary))
    allowed = Budget(1, relative=True).allowed(evaluation.interval(base, data).value)
    assert abs(mild.value) < allowed
    assert mild.high < allowed < harsh.low  # of a perplexity, more is worse
    assert int8["bytes"] < plain["bytes"] / 2


def test_a_trial_on_another_device_leaves_the_source_where_it_is(tmp_path: Path) -> None:
    # "meta" is on every machine, and like CUDA it is where a module is moved to in place; it only gives no numbers.
    setting = setting_of(tmp_path, device="meta")
    with pytest.raises(NotImplementedError, match="meta"):
        judge(setting, ())
    assert {weight.device.type for weight in fresh_model(setting).module.parameters()} == {"cpu"}
