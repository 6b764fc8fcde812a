"""What the OpenAPI document says beyond what the routes say of themselves; and a page of it, without a script."""

from __future__ import annotations

import html
import json
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from orchestrator.api.models import ProblemDocument
from orchestrator.api.problems import MEDIA_TYPE

_PROBLEM = "ProblemDocument"
_SAID = {
    401: "no token that is known", 403: "not with this token, or not from here", 404: "there is none, or not for you",
    409: "not as things are", 410: "a cursor that cannot be honoured: read `files`, and follow from its cursor",
    413: "too large a body", 415: "a body that is no JSON", 421: "another server's name",
    422: "bad input, with the field",
    429: "too many requests", 503: "something that is needed does not do as asked now",
}  # fmt: skip
_ALWAYS = (401, 403, 413, 415, 421, 422, 429, 503)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with these problems, besides those that any may."""
    return {status: _answer(status) for status in sorted({*_ALWAYS, *statuses})}


def _answer(status: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "description": _SAID[status],
        "content": {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{_PROBLEM}"}}},
    }
    if status in (429, 503):
        found["headers"] = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
    return found


def events(*names: str) -> dict[str, Any]:
    """The content of an answer that may be a stream of these events."""
    return {"text/event-stream": {"schema": {"type": "string"}, "description": f"events: {', '.join(names)}"}}


def document(api: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, made once."""
    if api.openapi_schema is None:
        made = get_openapi(title="Strandline", version=version("strandline"), routes=api.routes,
                           description=api.description)  # fmt: skip
        parts = made.setdefault("components", {})
        parts.setdefault("schemas", {})[_PROBLEM] = ProblemDocument.model_json_schema(
            ref_template="#/components/schemas/{model}"
        )
        parts["schemas"] |= parts["schemas"][_PROBLEM].pop("$defs", {})
        parts["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        made["security"] = [{"token": []}]
        api.openapi_schema = made
    return api.openapi_schema


def page(api: FastAPI) -> str:
    """The document as a page of HTML: nothing is loaded from anywhere."""
    made = document(api)
    calls = [_call(made, path, method, one) for path, of in made["paths"].items() for method, one in of.items()]
    return _PAGE.format(title=html.escape(made["info"]["title"]), about=html.escape(made["info"]["description"]),
                        calls="\n".join(calls))  # fmt: skip


def _call(made: dict[str, Any], path: str, method: str, one: dict[str, Any]) -> str:
    parameters = "".join(
        f"<tr><td><code>{html.escape(p['name'])}</code></td><td>{p['in']}</td>"
        f"<td>{html.escape(p.get('description', ''))}</td></tr>"
        for p in one.get("parameters", ())
    )
    body = _example(made, one.get("requestBody", {}).get("content", {}))
    answers = "".join(
        f"<tr><td>{status}</td><td>{html.escape(found['description'])}</td></tr>"
        for status, found in one["responses"].items()
    )
    good: dict[str, Any] = next((found for status, found in one["responses"].items() if status[0] == "2"), {})
    return _CALL.format(
        method=method.upper(), path=html.escape(path), summary=html.escape(one.get("description", one["summary"])),
        parameters=f"<table>{parameters}</table>" if parameters else "", body=f"<h4>body</h4>{body}" if body else "",
        answers=answers, answer=_example(made, good.get("content", {})),
    )  # fmt: skip


def _example(made: dict[str, Any], content: dict[str, Any]) -> str:
    schema = content.get("application/json", {}).get("schema", {})
    found = _example_of(made, schema)
    return "" if found is None else f"<pre>{html.escape(json.dumps(found, indent=1, ensure_ascii=False))}</pre>"


def _example_of(made: dict[str, Any], schema: dict[str, Any]) -> Any:
    for one in schema.get("anyOf", ()):
        if "$ref" in one:
            schema = one
    if "$ref" in schema:
        schema = made["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if "examples" in schema:
        return schema["examples"][0]
    items = schema.get("properties", {}).get("items")
    return None if items is None else {"items": [_example_of(made, items.get("items", {}))], "next": None}


_CALL = """<section><h2><b>{method}</b> <code>{path}</code></h2><p>{summary}</p>{parameters}{body}
<h4>answer</h4>{answer}<table>{answers}</table></section>"""
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}: API</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}
section{{border-top:1px solid #ccc}} td{{padding:0 1rem 0 0;vertical-align:top}} h2{{font-size:1.1rem}}
pre{{background:#f4f4f4;padding:.5rem;overflow:auto}}</style>
<h1>{title}: API</h1><p>{about} The same for programs: <a href="openapi.json">openapi.json</a>.</p>
{calls}</html>"""
