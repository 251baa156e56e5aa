"""A Hugging Face hub on this machine, as far as its library asks for it: repositories of models, read and written."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_test"


class Hub:
    """What the hub has and was asked.

    Attributes:
        url: its address.
        repositories: the files of each by name; a name with '@' is one of its revisions.
        private: those that want `TOKEN`.
        gated: those that nobody may read.
        asked: methods and paths.
        up: whether it answers.
    """

    def __init__(self):
        self.url, self.up = "", True
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.asked: list[str] = []

    def answer(self, method, path, headers, body):
        """Return (status, headers, body)."""
        self.asked.append(f"{method} {path}")
        missing = lambda code: (404, {"X-Error-Code": code, "X-Error-Message": code}, b"{}")
        if method == "POST" and path == "/api/repos/create":
            wanted = json.loads(body)
            repo = "/".join(filter(None, [wanted.get("organization") or "me", wanted["name"]]))
            self.repositories.setdefault(repo, {})
            if wanted.get("private") or wanted.get("visibility") == "private":
                self.private.add(repo)
            return 200, {}, json.dumps({"url": f"{self.url}/{repo}"}).encode()
        found = re.fullmatch(
            r"/api/models/([^/]+/[^/]+)/(revision|tree|preupload|commit)/([^/?]+)(\?.*)?", path
        ) or re.fullmatch(r"/([^/]+/[^/]+)/(resolve)/([^/]+)/(.+)", path)
        if path == "/api/validate-yaml":
            return 200, {}, b'{"errors": [], "warnings": []}'
        if not found:
            return missing("EntryNotFound")
        repo, what, revision, rest = found.groups()
        if repo not in self.repositories or (repo in self.private and TOKEN not in headers.get("Authorization", "")):
            return missing("RepoNotFound")
        if repo in self.gated:
            return 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "ask for access"}, b"{}"
        named = repo if revision in ("main", _commit(repo)) else f"{repo}@{revision}"
        if named not in self.repositories:
            of_commit = [name for name in self.repositories if _commit(name) == revision]
            if not of_commit:
                return missing("RevisionNotFound")
            named = of_commit[0]
        held = self.repositories[named]
        if what == "revision":
            about = {"id": repo, "sha": _commit(named), "siblings": [{"rfilename": name} for name in held]}
            return 200, {}, json.dumps(about).encode()
        if what == "tree":
            return 200, {}, json.dumps([_entry(name, data) for name, data in held.items()]).encode()
        if what == "preupload":
            asked = json.loads(body)["files"]
            return 200, {}, json.dumps({"files": [_regular(file["path"]) for file in asked]}).encode()
        if what == "commit":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    held[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            done = {
                "success": True,
                "commitOid": _commit(repo),
                "commitUrl": f"{self.url}/{repo}/commit/{_commit(repo)}",
            }
            return 200, {}, json.dumps(done).encode()
        if rest not in held:
            return missing("EntryNotFound")
        tag = {"X-Repo-Commit": _commit(named), "ETag": f'"{hashlib.sha1(held[rest]).hexdigest()}"'}
        return 200, tag, held[rest]


def _commit(named: str) -> str:
    return hashlib.sha1(named.encode()).hexdigest()


def _entry(path: str, data: bytes) -> dict:
    return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}


def _regular(path: str) -> dict:
    return {"path": path, "uploadMode": "regular", "shouldIgnore": False}


@contextmanager
def serving():
    """Start a `Hub`, and stop it at the end."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _do(self):
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            status, headers, answer = hub.answer(self.command, self.path, self.headers, body)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(answer)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer)

        do_GET = do_HEAD = do_POST = _do  # noqa: N815 # as the base class has them

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
