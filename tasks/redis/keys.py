"""Every Redis key of ours, with its type and life. (Celery's own begin with the same prefix.)"""

PREFIX = "strandline:"


def progress(scan_id: str) -> str:
    """Hash: what the workers of a running scan have done so far. Expires an hour after the last word."""
    return f"{PREFIX}progress:{scan_id}"
