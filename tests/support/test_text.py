"""Numbers as text."""

from __future__ import annotations

import math

from townlet.support import text


def test_numbers_as_text():
    assert [text.number(v) for v in (0.0, 1.23456, 9999, 12_345, 1.5e6, -2e9, math.nan, math.inf)] == [
        "0", "1.235", "9999", "12.35k", "1.5M", "-2G", "-", "-"
    ]  # fmt: skip
    assert [text.duration(v) for v in (1, 119.96, 120, 7199, 7200)] == [
        "1.0 s",
        "120.0 s",
        "2.0 min",
        "120.0 min",
        "2.0 h",
    ]
    assert [text.clock(v) for v in (0.4, 59.6, 3725)] == ["0:00", "1:00", "1:02:05"]
    assert text.clock(math.inf) == "unknown time"
    assert text.interval(1.0, 20_000.0) == "1 to 20k"
    assert [text.interval(*ends) for ends in ((None, 1.0), (1.0, None), (math.nan, 1.0), (-math.inf, math.inf))] == [
        "-"
    ] * 4
    assert text.interval(None, None, "unknown") == "unknown"
