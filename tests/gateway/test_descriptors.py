import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from gateway.descriptors import KEPT, for_connections

HOLD = "import resource; from gateway.descriptors import raised; print(raised(), *resource.getrlimit(7))"


@given(st.integers(1, 1 << 20), st.integers(2, 1 << 20))
def test_connections_never_take_what_replicas_need(wanted: int, descriptors: int) -> None:
    given = for_connections(wanted, descriptors)
    assert 1 <= given <= wanted
    assert descriptors - given >= min(KEPT, descriptors // 2)
    assert given == wanted or given >= min(descriptors - KEPT, descriptors // 2)


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    limited = f"ulimit -Sn 300; ulimit -Hn 700; exec {sys.executable} -c '{HOLD}'"
    told = subprocess.run(["/bin/bash", "-c", limited], capture_output=True, text=True, check=True, timeout=60).stdout
    assert told.split() == ["700", "700", "700"]
