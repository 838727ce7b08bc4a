"""What is tried is scored on one scale, however its most was found."""

import pytest

from cluster.planning.costs import Costs
from cluster.planning.deployment import Demand
from cluster.planning.judge import Judge, Objective
from cluster.planning.machines import Node
from cluster.planning.shapes import Limits, shapes
from cluster.planning.simulator import Setting, road_for
from tests.cluster.planning.profiles import chain


@pytest.mark.parametrize("p99_s", [None, 5.0, 0.05], ids=["as it comes", "kept at the most", "kept at less"])
def test_the_most_is_scored_by_what_is_predicted_with_and_without_a_latency_that_limits_it(p99_s: float | None) -> None:
    demand, nodes = Demand("m", Costs(chain([5.0, 5.0], per_batch_ms=10.0)), 7.0, p99_s), [Node("a", 2, 2**32)]
    road = road_for([demand], nodes)
    judge = Judge([demand], nodes, Objective("max_throughput"), Setting(nodes, seconds=1.0, road=road))
    for shape in shapes(demand, nodes, Limits(most_stages=2, max_rows=(1, 8), shares=(1.0,)), road):
        tried = judge.judge([shape])
        if tried.holds:
            assert tried.score[0] == pytest.approx(-tried.predictions[0].rate / demand.rate)
