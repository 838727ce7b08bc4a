from cluster.state import ServedModel
from shardline.serving import drain_bound_s
from worker.model_yaml import ModelYaml


def served(stages: int, drain_s: float) -> ServedModel:
    config = ModelYaml(stages=stages, drain_s=drain_s)
    return ServedModel(config=config, replicas={1: config.stage_replicas})


def test_a_drain_has_time_for_each_stage_and_for_the_moment_until_its_worker_is_given_up() -> None:
    assert drain_bound_s([]) == 20
    assert drain_bound_s([served(2, 30)]) == 20 + 2 * (30 + 5)
    assert drain_bound_s([served(2, 30), served(1, 1)]) == 20 + 2 * (30 + 5) + (1 + 5)
