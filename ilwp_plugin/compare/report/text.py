"""Numbers as a reader wants them."""

from __future__ import annotations

from ilwp_plugin.compare.report.summary import Change, Estimate, Summary

__all__ = [
    "bytes_and_deviation",
    "change_text",
    "fraction",
    "judgement",
    "of_method",
    "percent",
    "plural",
    "share",
    "size",
]


def size(count: float) -> str:
    """Bytes with three digits; 1 kB is 1000 bytes.

    >>> size(950), size(345_123), size(3_338_000)
    ('950 B', '345 kB', '3.34 MB')
    """
    for unit, scale in (("B", 1.0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9)):
        value = count / scale
        if value < 999.5 or unit == "GB":
            break
    if unit == "B":
        return f"{value:.0f} B"
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"


def bytes_and_deviation(value: Estimate | None) -> str:
    """All digits of a number of bytes, and its standard deviation over seeds; a dash for none."""
    if value is None:
        return "-"
    return f"{value.mean:,.0f}" + (f" ± {value.deviation:,.0f}" if value.deviation else "")


def percent(value: Estimate) -> str:
    """An accuracy, and its standard deviation over seeds."""
    return f"{value.mean:.2f}" + ("" if value.deviation is None else f" ± {value.deviation:.2f}")


def share(part: float) -> str:
    """A share in whole per cent; below ten with a digit more.

    >>> share(0.4321), share(0.0432)
    ('43 %', '4.3 %')
    """
    value = 100 * part
    return f"{value:.1f} %" if abs(value) < 9.95 else f"{value:.0f} %"


def fraction(ratio: float) -> str:
    """A ratio below 1 as 1/n.

    >>> fraction(0.0449), fraction(1.2)
    ('1/22.3', '1.20')
    """
    return f"1/{1 / ratio:.3g}" if 0 < ratio < 0.995 else f"{ratio:.2f}"


def change_text(change: Change) -> str:
    """Points with their standard error; says when that is noise."""
    return f"{change.points:+.2f} ± {change.standard_error:.2f} points" + (", noise" if change.noise else "")


def of_method(summary: Summary) -> str:
    """Whose method it is and which, unless the title says both."""
    own = summary.kind in ("fp32", "baseline", "ilwp") or summary.title.casefold().startswith(
        summary.toolkit.casefold()
    )
    return summary.title if own else f"{summary.toolkit}: {summary.title}"


def judgement(change: Change) -> str:
    """The same, and whether it is too much to count as keeping the accuracy."""
    return (
        change_text(change) if change.fits else f"{change.points:+.2f} ± {change.standard_error:.2f} points, too much"
    )


def plural(count: int, noun: str) -> str:
    """
    >>> plural(1, "seed"), plural(2, "seed")
    ('1 seed', '2 seeds')
    """
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
