"""No web page can reach a session behind its visitor's back."""

import logging
from collections.abc import Iterator

import pytest

from serving.app import create_app
from serving.settings import Settings
from tests.server.conftest import Control, Running, Start, byte_tokenizer, run_server, tiny_model
from tests.server.test_errors import error

ROUTES = [
    *[("POST", "/generate"), ("GET", "/sessions/a"), ("DELETE", "/sessions/a")],
    *[("GET", "/healthz"), ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/nowhere")],
]
FOREIGN = [
    "evil.example",
    "localhost.evil.example",
    "evil.example:8000",
    "192.168.0.7",
    "[::2]",
    "",
]
PAGES = ["https://evil.example", "http://localhost.evil.example:8000", "null", "http://[::2]", ""]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    model = tiny_model()
    control = Control(model)
    app = create_app(Settings(port=0), model=model, tokenizer=byte_tokenizer())
    with run_server(app, control) as running:
        assert running.generate("Hello", session_id="a", max_new_tokens=1).status_code == 200
        yield running


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("host", [*FOREIGN, "a@localhost", "localhost/", "localhost:8000:1"])
def test_a_foreign_host_is_refused(server: Running, method: str, path: str, host: str) -> None:
    body = {"prompt": "x", "session_id": "a"} if method == "POST" else None
    response = server.http.request(method, path, headers={"host": host}, json=body)
    found = error(response, 403, "host_not_allowed")
    assert found["expected"] == "one of the names 127.0.0.1, [::1], localhost"
    assert found["got"] == host
    session = server.service.store.get("a")
    assert session is not None
    assert session.version == 1


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("origin", PAGES)
def test_a_foreign_origin_is_refused(server: Running, method: str, path: str, origin: str) -> None:
    body = {"prompt": "x", "session_id": "a"} if method == "POST" else None
    response = server.http.request(method, path, headers={"origin": origin}, json=body)
    assert error(response, 403, "origin_not_allowed")["got"] == origin
    session = server.service.store.get("a")
    assert session is not None
    assert session.version == 1


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]:8000"])
@pytest.mark.parametrize("scheme", [None, "http", "https"])
def test_loopback_names_are_answered(server: Running, host: str, scheme: str | None) -> None:
    headers = {"host": host} | ({"origin": f"{scheme}://{host}"} if scheme else {})
    body = {"prompt": "x", "max_new_tokens": 1}
    assert server.http.post("/generate", json=body, headers=headers).status_code == 200
    assert server.http.get("/docs", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "kind",
    [
        *("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"),
        *("text/plain; a=application/json", "application/jsonp", "application/json, text/plain"),
        *("", None),
    ],
)
def test_a_body_of_a_kind_that_a_form_can_send_is_refused(
    server: Running, kind: str | None
) -> None:
    headers = {} if kind is None else {"content-type": kind}
    body = b'{"prompt": "x", "session_id": "a"}'
    response = server.http.post("/generate", content=body, headers=headers)
    found = error(response, 415, "unsupported_media_type")
    assert found["expected"] == "application/json"
    session = server.service.store.get("a")
    assert session is not None
    assert session.version == 1


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON"])
def test_json_may_be_declared_in_other_words(server: Running, kind: str) -> None:
    body = b'{"prompt": "x", "max_new_tokens": 1}'
    response = server.http.post("/generate", content=body, headers={"content-type": kind})
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("allowed", "status"),
    [("a.example, B.example", 200), ("*", 200), ("a.example", 403), (None, 403)],
)
def test_other_names_can_be_allowed(start: Start, allowed: str | None, status: int) -> None:
    server = start(allowed_hosts=allowed)
    headers = {"host": "b.example:443", "origin": "https://b.example"}
    assert server.http.get("/docs", headers=headers).status_code == status


@pytest.mark.parametrize(
    ("host", "named"),
    [
        *[("127.0.0.1", None), ("0.0.0.0", None), ("::", None)],
        *[("Box.example", "box.example"), ("fe80::1", "[fe80::1]")],
    ],
)
def test_the_host_that_it_listens_on_is_answered(host: str, named: str | None) -> None:
    loopback = {"localhost", "127.0.0.1", "[::1]"}
    assert Settings(host=host).hosts == loopback | ({named} if named else set())


@pytest.mark.parametrize(("host", "said"), [("0.0.0.0", True), ("127.0.0.1", False)])
def test_the_start_says_which_hosts_are_answered(
    host: str, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "serving"):
        create_app(Settings(host=host), model=tiny_model(), tokenizer=byte_tokenizer())
    assert ("answers requests to 127.0.0.1, [::1], localhost only" in caplog.text) == said


@pytest.mark.parametrize("names", ["http://a.example", "a.example:80", "a,,b", "::1", "*.a", ""])
def test_allowed_hosts_are_names(names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BMOJO_ALLOWED_HOSTS", names)
    with pytest.raises(ValueError, match="expected names without scheme and port"):
        Settings()
