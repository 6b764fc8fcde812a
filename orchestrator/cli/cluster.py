"""`status`, `config`."""

from __future__ import annotations

from typing import Any

import click
from sqlalchemy import Engine

from db import glance, overview, progress, quarantine, scans, tenants
from db.engine import reading
from db.types import ScanState, StrandlineError
from orchestrator.amounts import human
from orchestrator.cli.common import (
    coordination,
    database,
    json_option,
    print_json,
    progress_reader,
    refuse_unknown_state,
    settings_of,
    shown,
    state_option,
)
from orchestrator.cli.hints import typed
from orchestrator.cli.live import progress_text
from orchestrator.documents import running_document, suspect_document
from orchestrator.progress import Progress, Reader
from orchestrator.stack.state import StateFolder
from tasks import settings as all_settings

# Running scans that are told of one by one, those longest under way; and suspect ones, the latest.
SHOWN = 100


@click.command()
@click.option("--memory", "with_memory", is_flag=True, help="How full the memory of each worker is, and of whom.")
@state_option
@json_option
def status(with_memory: bool, state: str | None, as_json: bool) -> None:
    """The cluster at a glance: what runs, what waits, who works.

    \b
    Example: strandline status --memory
    """
    settings = settings_of(state)
    refuse_unknown_state(settings)
    running = None if settings.redis_url else StateFolder(settings.state_dir).running()
    if running is None and not settings.redis_url:
        click.echo(f"strandline: no stack runs on {settings.state_dir}: nothing goes on; see --state", err=True)
    redis_url = settings.redis_url or (running.redis_url if running is not None else None)
    with database(settings) as engine:
        with reading(engine) as connection:
            known = tenants.list_all(connection)
            names = {tenant.id: tenant.name for tenant in known}
            document: dict[str, Any] = {
                "tenants": len(known),
                "paused": sum(not tenant.enabled for tenant in known),
                "running": [names[scan.tenant_id] for scan in scans.in_state(connection, ScanState.RUNNING)],
                "queued": [names[scan.tenant_id] for scan in scans.in_state(connection, ScanState.QUEUED)],
                "backlog": overview.backlog(connection),
                "quarantined": len(quarantine.listed_of_all(connection)),
                "suspect": [suspect_document(one) for one in glance.suspects(connection, SHOWN, None)],
            }
        with progress_reader(settings, engine) as reader:
            document["scans"] = running_scans(engine, reader, SHOWN)
    reached = settings.model_copy(update={"redis_url": redis_url}) if redis_url else None
    document["workers"] = _workers(reached) if reached else []
    document["redis"] = _redis(reached, list(names)) if reached else None
    document["api"] = running.api if running is not None else None
    document["flower"] = running.flower if running is not None else None
    if with_memory:
        document["memory"] = _memory(reached) if reached else []
    if as_json:
        print_json(document)
    else:
        _show(document)


def _show(document: dict[str, Any]) -> None:
    for key, value in document.items():
        if key in ("scans", "memory"):
            continue
        if isinstance(value, dict):
            value = ", ".join(_pair(name, one) for name, one in value.items())
        elif isinstance(value, list):
            value = ", ".join(map(_name, value)) or "none"
        click.echo(f"{key:<12} {'-' if value is None else value}")
    for one in document["scans"]:
        click.echo(f"{one['tenant']}: {one['age_s']:.0f} s, {progress_text(Progress(**one['progress']))}")
    for one in document["suspect"]:
        click.echo(typed(f"{one['tenant']}: {shown(one['doubt'])}. If that is right: strandline confirm {one['scan']}"))
    for one in document.get("memory", ()):
        _show_memory(one)


def running_scans(engine: Engine, reader: Reader, limit: int) -> list[dict[str, Any]]:
    """The running scans that are longest under way, each with its progress."""
    with reading(engine) as connection:
        running = progress.running(connection, limit)
    found = reader.of(running)
    return [running_document(one, found[one.scan_id]) for one in running]


def _name(one: Any) -> str:
    return str(one.get("name") or one["tenant"]) if isinstance(one, dict) else str(one)


def _pair(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return f"{name} " + " ".join(f"{count} {state}" for state, count in value.items())
    return f"{value} {name}" if isinstance(value, int) else f"{name} {value}"


def _redis(settings: all_settings.Settings, tenant_ids: list[int]) -> dict[str, Any] | None:
    """What Redis knows: since when, of how many watermarks, and how many entries of breakers are in which state."""
    from collections import Counter

    from tasks.redis import breaker, watermark

    try:
        with coordination(settings) as (client, keys):
            filled: Any = client.get(keys.filled())
            states = Counter[str]()
            for entries, now in breaker.read_all(client, keys, tenant_ids):
                states.update(str(entry.state(now)) for entry in entries.values())
            return {
                "filled_at": None if filled is None else filled.decode(),
                "watermarks": len(watermark.read(client, keys, tenant_ids)),
                "breaker": {state: states[state] for state in ("closed", "open", "half-open")},
            }
    except StrandlineError as error:
        click.echo(f"strandline: {error}", err=True)
        return None


def _memory(settings: all_settings.Settings) -> list[dict[str, Any]]:
    """What each worker told of its memory."""
    from tasks.redis import presence

    with coordination(settings) as (client, keys):
        return [{"worker": name, **found} for name, found in presence.memory(client, keys).items()]


def _show_memory(one: dict[str, Any]) -> None:
    click.echo(f"{one['worker']}: memory is {one['level']}: {one['why']}")
    told = [f"{human(one['used_bytes'])} of {human(one['limit_bytes'])}, by {one['limited_by']}"]
    if one["working_set_bytes"] is not None:
        told.append(f"a kubelet counts {human(one['working_set_bytes'])}")
    told.append(f"{one['oom_kills']} killed by the kernel")
    click.echo(
        "    " + ", ".join([*told, *(f"child {each['pid']} {human(each['bytes'])}" for each in one["children"])])
    )


def _workers(settings: all_settings.Settings) -> list[dict[str, Any]]:
    from orchestrator import workers
    from tasks.app import make_app
    from tasks.redis.connection import BROKER_ERRORS

    try:
        return [one._asdict() for one in workers.seen(make_app(settings))]
    except BROKER_ERRORS as error:
        click.echo(f"strandline: the broker does not answer, so no worker can be seen: {error}", err=True)
        return []


@click.group()
def config() -> None:
    """Settings.

    \b
    Example: strandline config list
    """


@config.command("list")
@state_option
@json_option
def list_(state: str | None, as_json: bool) -> None:
    """Every setting: its value, its default, where the value came from, and what it means.

    \b
    Example: strandline config list --json
    """
    values = settings_of(state)
    for name, field in all_settings.Settings.model_fields.items():
        default = field.get_default(call_default_factory=True, validated_data={})
        source = "option" if name == "state_dir" and state is not None else all_settings.source(name)
        document = {
            "name": all_settings.PREFIX + name.upper(),
            "value": hidden(name, getattr(values, name)),
            "default": default,
            "source": source,
            "description": field.description,
        }
        if as_json:
            print_json(document)
        else:
            click.echo(f"{document['name']}={document['value']}  ({source}; default {default!r})")
            click.echo(f"    {field.description}")


def hidden(name: str, value: Any) -> Any:
    """A value for people: without passwords."""
    if name in all_settings.SECRET:
        return "***" if value else value
    return all_settings.without_passwords(value) if name.endswith("_url") else value
