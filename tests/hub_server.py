"""A small Hugging Face Hub: repositories in memory behind the endpoints that fetching and pushing a model need."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


@dataclass
class Hub:
    """What the server holds and what it was asked.

    Args:
        url: of the server.
        commits: repository → its commits, the oldest first.
        gated: repositories that ask for consent.
        private: repository → whether it was created so.
        fetched: (repository, path) of each file that was downloaded.
        tokens: of whoever wrote.
    """

    url: str = ""
    commits: dict[str, list[Files]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    private: dict[str, bool] = field(default_factory=dict)
    fetched: list[tuple[str, str]] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)

    def revision(self, repository: str, name: str) -> str | None:
        """Returns the commit of `main`, of `v1` (the first), or of a commit's own name; None when there is none."""
        names = [sha(repository, number) for number in range(len(self.commits[repository]))]
        return {"main": names[-1] if names else None, "v1": names[0] if names else None, **{n: n for n in names}}.get(name)

    def files(self, repository: str, commit: str) -> Files:
        """Returns the files of a commit."""
        return next(files for number, files in enumerate(self.commits[repository]) if sha(repository, number) == commit)


def sha(repository: str, number: int) -> str:
    """Returns the name of a commit."""
    return hashlib.sha1(f"{repository} {number}".encode()).hexdigest()


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serves on a free port of this machine while the context lasts."""

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Is silent."""

    def do_HEAD(self) -> None:
        self._read()

    def do_GET(self) -> None:
        self._read()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.tokens.append(self.headers.get("Authorization"))
        path = unquote(urlsplit(self.path).path)
        if path == "/api/repos/create":
            wanted = json.loads(body)
            repository = f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
            if repository in self.hub.commits:
                return self._json({"url": f"{self.hub.url}/{repository}"}, status=409)
            self.hub.commits[repository] = [{".gitattributes": b""}]
            self.hub.private[repository] = wanted.get("private") is True or wanted.get("visibility") == "private"
            return self._json({"url": f"{self.hub.url}/{repository}", "id": repository})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        _, _, _, owner, name, action, *_ = path.split("/")
        repository = f"{owner}/{name}"
        if action == "preupload":
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            return self._json({"files": files})
        assert action == "commit", path
        files = dict(self.hub.commits[repository][-1])
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "deletedFile":
                del files[value["path"]]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
        self.hub.commits[repository].append(files)
        commit = sha(repository, len(self.hub.commits[repository]) - 1)
        return self._json({"commitUrl": f"{self.hub.url}/{repository}/commit/{commit}", "commitOid": commit, "success": True})

    def _read(self) -> None:
        path = unquote(urlsplit(self.path).path)
        parts = path.removeprefix("/api/models").split("/")[1:]
        repository, rest = "/".join(parts[:2]), parts[2:]
        if repository not in self.hub.commits:
            return self._error(404, "RepoNotFound", "Repository not found")
        if repository in self.hub.gated:
            return self._error(403, "GatedRepo", "Access to this model is restricted")
        commit = self.hub.revision(repository, rest[1] if len(rest) > 1 else "main")
        if commit is None:
            return self._error(404, "RevisionNotFound", "Invalid rev id")
        files = self.hub.files(repository, commit)
        if not path.startswith("/api/"):
            return self._file(repository, commit, "/".join(rest[2:]), files)
        if rest[:1] == ["tree"]:
            return self._json([{"type": "file", "path": name, "size": len(data), "oid": _oid(data)} for name, data in files.items()])
        return self._json({"id": repository, "sha": commit, "siblings": [{"rfilename": name} for name in files]})

    def _file(self, repository: str, commit: str, name: str, files: Files) -> None:
        if name not in files:
            return self._error(404, "EntryNotFound", "Entry not found")
        if self.command == "GET":
            self.hub.fetched.append((repository, name))
        self._answer(200, files[name], {"X-Repo-Commit": commit, "ETag": f'"{_oid(files[name])}"'})

    def _json(self, value: object, *, status: int = 200) -> None:
        self._answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, message: str) -> None:
        self._answer(status, b"{}", {"X-Error-Code": code, "X-Error-Message": message})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
