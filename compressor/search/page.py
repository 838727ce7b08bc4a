"""report.html: the report on one page that needs nothing from elsewhere."""

from collections.abc import Mapping
from typing import Any

Told = Mapping[str, Any]


def page(report: Told) -> str:
    return "<!doctype html>"
