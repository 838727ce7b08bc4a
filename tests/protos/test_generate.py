from pathlib import Path

import pytest

from protos import generate, inference_pb2
from protos.pool import POOL


def test_the_generated_code_is_what_the_contracts_say() -> None:
    assert generate.stale(Path(generate.__file__).parent.parent) == []


def test_a_stock_client_s_messages_of_the_same_names_live_beside_ours() -> None:
    from tritonclient.grpc import service_pb2

    theirs = service_pb2.ModelInferRequest(model_name="minilm", model_version="2")
    ours = inference_pb2.ModelInferRequest.FromString(theirs.SerializeToString())
    assert (ours.model_name, ours.model_version) == ("minilm", "2")
    assert type(ours) is not type(theirs)
    assert ours.DESCRIPTOR.file.pool is POOL


def test_code_that_would_land_in_the_common_pool_is_refused() -> None:
    with pytest.raises(RuntimeError, match="no default pool"):
        generate.with_own_pool("DESCRIPTOR = something_else()")
