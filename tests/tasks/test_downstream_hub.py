"""Whether the hub answers: a small server in its place, one that is gone, and an environment that forbids to ask."""

import http.server
import socket
import threading

import pytest

from dmabench.tasks.downstream import hub


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers everything with the server's status."""

    def do_HEAD(self):
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_):
        """Nothing."""


@pytest.fixture
def serve(monkeypatch):
    """A call that starts a server with a status and names it as the hub; it is stopped after the test."""
    servers = []
    for name in ("HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)

    def start(status):
        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        server.status = status
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("status", [200, 403, 500])
def test_any_answer_is_one(serve, status):
    serve(status)
    assert hub.answers(seconds=60)


def test_nobody_there(serve, monkeypatch):
    serve(200)
    with socket.socket() as deaf:  # held, so that no other program listens there meanwhile
        deaf.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        assert not hub.answers(seconds=2)


def test_told_to_stay_offline_it_asks_nobody(serve, monkeypatch):
    serve(200)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "0")
    assert hub.answers(seconds=60)
    hub.go_offline()
    assert not hub.answers()
