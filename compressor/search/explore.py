"""The order of a search: the whole model in one treatment each, then layers one by one, then mixes that beat those."""

from collections.abc import Callable, Sequence

from compressor.search.laboratory import Judged, Laboratory
from compressor.search.mixing import Mixing, Point, time_finalists, try_mixes
from compressor.search.parts import measure_parts
from compressor.search.wholes import try_wholes


def explore(
    lab: Laboratory,
    mixing: Mixing,
    base: Judged,
    treatments: Sequence[str],
    others: Callable[[], None] = lambda: None,
) -> None:
    """Tries what may be done to the groups, on calibration data; `treatments`: the most promising first.

    others: tries what only the whole model can take.

    Whatever the time limit, there is something to return as soon as the first treatment of the whole model keeps the
    budget; what follows only makes it faster. Afterwards `mixing` has every point that was judged; of those that keep
    the budget, the most promising are timed.
    """
    mixing.points[()] = Point("uncompressed", (), {}, mixing.drop(base), 0.0, base.bytes)
    try_wholes(lab, mixing, treatments)
    others()
    best = mixing.best_whole()
    lab.say(f"the best so far: {best.name}" if best else "no treatment of the whole model keeps the budget and gains")
    measure_parts(lab, mixing, treatments)
    try_mixes(lab, mixing)
    time_finalists(lab, mixing)
