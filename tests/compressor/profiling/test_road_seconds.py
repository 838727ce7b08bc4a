from compressor.profiling.road_seconds import road_seconds


def test_a_request_s_way_takes_some_microseconds_of_processor_time() -> None:
    assert 1e-6 < road_seconds() < 0.05
