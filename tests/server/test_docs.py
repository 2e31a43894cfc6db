import re
from typing import Any

import pytest
from fastapi import FastAPI
from transformers import PreTrainedTokenizerFast

from serving.app import create_app
from serving.schemas import GenerateRequest
from serving.settings import Settings
from tests.server.conftest import Start, byte_tokenizer, tiny_model


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return create_app(Settings(), model=tiny_model(), tokenizer=byte_tokenizer())


def operations(app: FastAPI) -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": operation
        for path, item in app.openapi()["paths"].items()
        for method, operation in item.items()
    }


def test_routes(app: FastAPI) -> None:
    assert operations(app).keys() == {
        *("POST /generate", "GET /sessions/{session_id}", "DELETE /sessions/{session_id}"),
        "GET /healthz",
    }


def test_page(start: Start) -> None:
    page = start().http.get("/docs")
    assert page.status_code == 200
    assert "bmojo-neuron" in page.text


def test_page_needs_no_other_host(start: Start) -> None:
    http = start().http
    page = http.get("/docs").text
    assert "//" not in re.sub(r"<!--.*?-->", "", page)
    assert '"validatorUrl": null' in page, "Swagger UI would send the schema to its validator"
    parts = re.findall(r"(?:src|href)=\"(.*?)\"|\burl: '(.*?)'", page)
    paths = {path for part in parts for path in part if path}
    assert "/openapi.json" in paths
    assert len(paths) >= 3
    for path in paths:
        answer = http.get(path)
        assert answer.status_code == 200, path
        assert answer.content, path


def test_every_field_is_explained(app: FastAPI) -> None:
    schemas = dict(app.openapi()["components"]["schemas"])
    schemas["GenerateRequest"] = GenerateRequest.model_json_schema()
    silent = [
        f"{name}.{field}"
        for name, schema in schemas.items()
        for field, about in schema.get("properties", {}).items()
        if not {"description", "$ref", "const"} & about.keys() and "anyOf" not in about
    ]
    assert silent == []
    assert all(schema.get("description") for schema in schemas.values())


def test_every_operation_documents_its_errors(app: FastAPI) -> None:
    shape = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}}
    for name, operation in operations(app).items():
        assert operation["description"], name
        responses = operation["responses"]
        assert "422" not in responses, name
        errors = {status: r for status, r in responses.items() if not status.startswith("2")}
        assert "default" in errors, name
        assert all(r["content"] == shape for r in errors.values()), name
    generate = operations(app)["POST /generate"]
    assert generate["responses"].keys() >= {"200", "400", "408", "409", "413", "429", "500", "503"}
    assert generate["responses"]["200"]["content"].keys() == {
        *("application/json", "text/event-stream")
    }
    body = generate["requestBody"]["content"]["application/json"]["schema"]
    assert body["additionalProperties"] is False


def test_settings_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerFast
) -> None:
    monkeypatch.setenv("BMOJO_MAX_SESSIONS", "3")
    assert Settings().max_sessions == 3
    monkeypatch.setenv("BMOJO_MAX_SESSIONS", "0")
    with pytest.raises(ValueError, match="BMOJO_MAX_SESSIONS: expected greater"):
        Settings()
