"""A small server that speaks as much of wandb's protocol as its client needs, and keeps what it was sent.

A program of the standard library alone: it listens on 127.0.0.1, writes its port, and after each request its state:
`runs` (id to the number of times it was declared), `files` (id to name to {line number: line}), `stored` (names of
uploaded files).  Lines of a file stream overwrite those of the same number, which is what wandb's own offsets say;
that wandb's real server does so is not shown here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

ENTITY, PROJECT = "birdwatchers", "speech2image"


class Receiver:
    """The program below, started.

    Args:
        folder: of its state.

    Attributes:
        env: what a client needs in its environment.
        pid: of the server.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._state, port = folder / "state.json", folder / "port"
        port.unlink(missing_ok=True)
        self._process = subprocess.Popen([sys.executable, str(Path(__file__).resolve()), str(folder)])
        self.pid = self._process.pid
        for _ in range(3000):
            if port.is_file() and port.read_text():
                break
            time.sleep(0.01)
        self.env = {"WANDB_BASE_URL": f"http://127.0.0.1:{port.read_text()}", "WANDB_API_KEY": "a" * 40}

    def state(self) -> dict[str, Any]:
        """Return what it was sent."""
        found: dict[str, Any] = json.loads(self._state.read_text())
        return found

    def history(self, run: str) -> list[dict[str, Any]]:
        """Return the history of a run as its line numbers say, without wandb's own keys but `_step`."""
        lines = self.state()["files"][run]["wandb-history.jsonl"]
        assert sorted(map(int, lines)) == list(range(len(lines))), "line numbers leave no gap"
        rows = [json.loads(lines[number]) for number in sorted(lines, key=int)]
        return [{key: value for key, value in row.items() if key == "_step" or key[0] != "_"} for row in rows]

    def close(self) -> None:
        """End the server."""
        self._process.kill()
        self._process.wait()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: ClassVar[dict[str, Any]] = {"runs": {}, "files": {}, "stored": []}
    folder: Path
    lock = threading.Lock()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer({})

    def do_PUT(self) -> None:
        self._body()
        self.state["stored"].append(self.path)
        self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        answer: dict[str, Any] = {}
        with self.lock:
            if self.path.startswith("/graphql"):
                answer = {"data": self._graphql(**json.loads(body))}
            elif "file_stream" in self.path:
                answer = {"exitcode": None, "limits": {}}
                self._stream(self.path.split("/")[-2], json.loads(body))
            beside = self.folder / "state.part"
            beside.write_text(json.dumps(self.state))
            os.replace(beside, self.folder / "state.json")
        self._answer(answer)

    def _stream(self, run: str, sent: dict[str, Any]) -> None:
        for name, chunk in (sent.get("files") or {}).items():
            lines = self.state["files"].setdefault(run, {}).setdefault(name, {})
            for place, line in enumerate(chunk["content"], chunk["offset"]):
                lines[str(place)] = line

    def _graphql(self, query: str, variables: dict[str, Any] | None = None, **_: Any) -> dict[str, Any]:
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name, told = found[1] if found else "", variables or {}
        project = {"id": "p", "name": PROJECT, "entity": {"id": "e", "name": ENTITY}}
        if name == "Viewer":
            return {"viewer": {"id": "u", "entity": ENTITY, "username": "b", "email": "b@x", "flags": "{}",
                               "teams": {"edges": []}}}  # fmt: skip
        if name == "UpsertBucket":
            run = told.get("name") or str(told.get("id")).removeprefix("id-")
            self.state["runs"][run] = self.state["runs"].get(run, 0) + 1
            bucket = {"id": f"id-{run}", "name": run, "displayName": run, "description": "", "sweepName": None,
                      "config": told.get("config"), "historyLineCount": 0, "project": project}  # fmt: skip
            return {"upsertBucket": {"bucket": bucket, "inserted": self.state["runs"][run] == 1}}
        if name == "CreateRunFiles":
            address = f"http://127.0.0.1:{self.server.server_address[1]}/store/{told['run']}"
            files = [{"name": file, "uploadUrl": f"{address}/{file}"} for file in told["files"]]
            return {"createRunFiles": {"runID": f"id-{told['run']}", "uploadHeaders": [], "files": files}}
        if name == "RunResumeStatus":
            return {"model": {**project, "bucket": self._known(told["name"])}}
        return {}

    def _known(self, run: str) -> dict[str, Any] | None:
        if run not in self.state["runs"]:
            return None
        files = self.state["files"].get(run, {})
        history = files.get("wandb-history.jsonl", {})
        last = [history[key] for key in sorted(history, key=int)][-1:]
        return {"id": f"id-{run}", "name": run, "summaryMetrics": "{}", "displayName": run, "config": "{}",
                "logLineCount": len(files.get("output.log", {})), "historyLineCount": len(history),
                "eventsLineCount": len(files.get("wandb-events.jsonl", {})), "historyTail": json.dumps(last),
                "eventsTail": "[]", "tags": [], "notes": None, "wandbConfig": '{"t": 1}'}  # fmt: skip

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hang up."""


def serve(folder: Path) -> None:
    """Answer until killed."""
    _Handler.folder = folder
    (folder / "state.json").write_text(json.dumps(_Handler.state))
    server = _Server(("127.0.0.1", 0), _Handler)
    (folder / "port").write_text(str(server.server_address[1]))
    server.serve_forever()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
