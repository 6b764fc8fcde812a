"""Numbers for people."""

from __future__ import annotations


def human(size: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def span(seconds: float | None) -> str:
    """A time for people: its two largest units."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    for unit, size, below, name in (("d", 86400, 3600, "h"), ("h", 3600, 60, "m"), ("m", 60, 1, "s")):
        if whole >= size:
            return f"{whole // size:,}{unit} {whole % size // below}{name}"
    return f"{whole}s"
