"""Numbers as a reader wants to see them."""

import math


def percent(value: float | None, digits: int = 1) -> str:
    """A number of per cent with its sign, "–" for None."""
    return "–" if value is None else f"{value:.{digits}f} %"


def points(value: float | None) -> str:
    """A difference with its sign."""
    return "–" if value is None else f"{value:+.1f}".replace("-", "−")


def integer(value: int | None) -> str:
    """A whole number with commas between the thousands."""
    return "–" if value is None else f"{value:,}"


_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def significant(value: float) -> str:
    """A number with three significant digits, without exponent where that is readable."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if 1e-4 <= abs(value) < 1e7:
        return f"{float(f'{value:.3g}'):,.10g}"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPTS)}"


def duration(seconds: float) -> str:
    """A time in the two largest units that it has."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
