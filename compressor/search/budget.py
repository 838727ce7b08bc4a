"""How much accuracy may be lost, and when that is proven."""

import math
import re
from dataclasses import dataclass
from typing import Final

from compressor.evaluation.evaluation import Evaluation
from compressor.evaluation.records import Records
from worker.errors import InvalidRequest

ERROR: Final = 0.05
"""The probability with which the returned model may lose more than the budget, over all looks at the held-out data.

It is kept exactly for shares of records (accuracy), and about so for figures that only the bootstrap has an interval
for (see `compressor.evaluation`).
"""

_FORM: Final = re.compile(r"(\d+(?:\.\d+)?)(%?)")


@dataclass(frozen=True, slots=True)
class Budget:
    """amount: in the figure's unit (points for accuracy and Spearman); where relative, in percent of the baseline's."""

    amount: float
    relative: bool = False

    def allowed(self, baseline: float) -> float:
        """The drop that is allowed from a baseline, in the figure's unit."""
        return abs(baseline) * self.amount / 100 if self.relative else self.amount

    def __str__(self) -> str:
        return f"{self.amount:g}{'%' if self.relative else ''}"


def read_budget(text: str) -> Budget:
    """ "0.5": in the figure's unit; "1%": of the baseline's figure. Raises InvalidRequest."""
    match = _FORM.fullmatch(text.strip())
    if match is None or not math.isfinite(float(match[1])):
        raise InvalidRequest(f"max-drop {text!r}: expected a number such as 0.5, or a share such as 1%")
    return Budget(float(match[1]), bool(match[2]))


def level_of_look(look: int) -> float:
    """The level of the two-sided interval at the `look`-th try (from 1) on the same held-out data.

    Its upper end is passed by chance with ERROR / 2^look, so with no more than ERROR over all looks (the union bound):
    the first look has the usual 95 % interval, later ones wider ones.
    """
    return 1 - 2 * ERROR / float(2**look)


def check_provable(evaluation: Evaluation, held_out: Records, allowed: float) -> None:
    """Raises InvalidRequest: so few records cannot prove such a budget, not even where no answer changes."""
    needed = evaluation.records_needed(allowed, level=level_of_look(1))
    if len(held_out) < needed:
        told = f"that takes {needed:.0f}; give more records, or" if math.isfinite(needed) else "no number can; give"
        raise InvalidRequest(
            f"{held_out.source}: {len(held_out)} held-out records cannot prove that at most {allowed:g} "
            f"{evaluation.unit} are lost, not even where no answer changes: {told} a larger --max-drop"
        )
