"""A local server that speaks the part of the Hugging Face Hub's API that a push and a pull need.

It keeps repositories as commits in memory: `create_repo`, `validate-yaml`, `preupload`, the LFS
batch with uploads and verification, commits as NDJSON, repository information by revision, and
`resolve` with ETag and ranges. Large files are served from another host, as the Hub's CDN is one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_TheSecretTokenOfTheTests"
READ_ONLY = "hf_ATokenThatMayOnlyRead"


@dataclass
class Repository:
    """Commits, newest last: commit to path to content; which paths are in large-file storage."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def newest(self) -> str:
        return list(self.commits)[-1]

    def find(self, revision: str) -> str | None:
        if revision in ("", "main"):
            return self.newest
        return self.tags.get(revision) or (revision if revision in self.commits else None)

    def commit(self, files: dict[str, bytes]) -> str:
        seed = f"{len(self.commits)} {sorted(files)}".encode()
        name = hashlib.sha1(seed).hexdigest()
        self.commits[name] = files
        return name


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> HubServer:
        return self.server.hub

    def log_message(self, *words):
        pass

    def do_HEAD(self):
        self.route()

    def do_GET(self):
        self.route()

    def do_POST(self):
        self.route()

    def do_PUT(self):
        self.route()

    def route(self):
        path = unquote(urlsplit(self.path).path)
        length = int(self.headers.get("Content-Length") or 0)
        limit = self.hub.breaks_off(self.command, path)
        if self.command == "PUT" and limit is not None:
            self.rfile.read(min(limit, length))
            self.close_connection = True
            self.connection.close()
            return
        body = self.rfile.read(length)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.hub.asked.append((self.command, path, self.headers.get("Range", ""), token))
        if path.startswith("/cdn/"):
            self.send_bytes(self.hub.stored.get(path.removeprefix("/cdn/")), path, limit)
            return
        code = self.hub.refuses(self.command, path)
        if code:
            code, error = code if isinstance(code, tuple) else (code, "")
            self.fail(code, f"the server says {code}", error)
            return
        if token and token not in (TOKEN, READ_ONLY):
            self.fail(401, "Invalid credentials in Authorization header")
            return
        self.token = token
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            self.create(json.loads(body))
        elif path == "/api/validate-yaml":
            self.validate(json.loads(body)["content"])
        elif path.startswith("/api/models/"):
            self.model("/".join(parts[2:4]), parts[4:], body)
        elif path.endswith("/info/lfs/objects/batch"):
            self.batch(json.loads(body))
        elif path.startswith("/upload/"):
            self.store(parts[1], body)
        elif path == "/verify":
            found = self.hub.stored.get(json.loads(body)["oid"])
            self.answer({} if found is not None else None)
        elif len(parts) > 4 and parts[2] == "resolve":
            self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]), limit)
        else:
            self.fail(404, "no such address")

    def answer(self, value, code=200, **headers):
        content = json.dumps(value).encode()
        self.send_response(code)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def fail(self, code, message, error=""):
        headers = {"X_Error_Message": message, **self.hub.failure_headers}
        if error:
            headers["X_Error_Code"] = error
        self.answer({"error": message}, code, **headers)

    def may_write(self) -> bool:
        if self.token == TOKEN:
            return True
        self.fail(403 if self.token else 401, "you need write access")
        return False

    def seen(self, name) -> Repository | None:
        found = self.hub.repositories.get(name)
        if found is not None and not (found.private and not self.token):
            return found
        # The Hub does not tell a stranger that a private repository exists.
        self.fail(404 if self.token else 401, "Repository not found", "RepoNotFound")
        return None

    def create(self, values):
        if not self.may_write():
            return
        name = f"{values['organization']}/{values['name']}"
        if name in self.hub.repositories:
            self.answer({"error": "You already created this model repo"}, 409)
            return
        private = values.get("visibility") == "private" or bool(values.get("private"))
        self.hub.repositories[name] = repository = Repository(private)
        repository.commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        self.answer({"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def validate(self, content):
        import yaml

        header = content.split("---")[1]
        try:
            values = yaml.safe_load(header)
            odd = [] if values.get("license") != "unknown-to-the-hub" else ["license is not valid"]
        except yaml.YAMLError as error:
            odd = [str(error)]
        errors = [{"message": one} for one in odd]
        self.answer({"errors": errors, "warnings": []}, 400 if odd else 200)

    def model(self, name, rest, body):
        repository = self.seen(name)
        if repository is None:
            return
        if not rest or rest[0] == "revision":
            self.information(name, repository, "/".join(rest[1:]))
        elif rest[0] == "preupload":
            if self.may_write():
                files = json.loads(body)["files"]
                self.answer({"files": [self.mode(repository, item) for item in files]})
        elif rest[0] == "commit" and self.may_write():
            self.commit(name, repository, body)

    def information(self, name, repository, revision):
        commit = repository.find(revision)
        if commit is None:
            self.fail(404, "Invalid rev id", "RevisionNotFound")
            return
        siblings = []
        for path, content in repository.commits[commit].items():
            item = {"rfilename": path, "size": len(content), "blobId": git_hash(content)}
            if path in repository.large:
                digest = hashlib.sha256(content).hexdigest()
                item["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
            siblings.append(item)
        self.answer({
            "id": name, "modelId": name, "sha": commit, "private": repository.private,
            "siblings": siblings, "tags": [], "downloads": 0, "likes": 0,
        })  # fmt: skip

    def mode(self, repository, item):
        large = item["path"].endswith(self.hub.large_endings)
        content = repository.commits[repository.newest].get(item["path"])
        oid = None
        if content is not None:
            oid = hashlib.sha256(content).hexdigest() if large else git_hash(content)
        return {
            "path": item["path"], "uploadMode": "lfs" if large else "regular",
            "shouldIgnore": False, "oid": oid,
        }  # fmt: skip

    def batch(self, values):
        if not self.may_write():
            return
        objects = []
        for item in values["objects"]:
            entry = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.stored:
                entry["actions"] = {
                    "upload": {"href": f"{self.hub.url}/upload/{item['oid']}"},
                    "verify": {"href": f"{self.hub.url}/verify"},
                }
            objects.append(entry)
        self.answer({"transfer": "basic", "objects": objects})

    def store(self, oid, body):
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.stored[oid] = body
        self.answer({})

    def commit(self, name, repository, body):
        files = dict(repository.commits[repository.newest])
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                parent = value.get("parentCommit")
                if parent and parent != repository.newest:
                    self.fail(412, "A commit has happened since")
                    return
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
                repository.large.add(value["path"])
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        commit = repository.commit(files)
        url = f"{self.hub.url}/{name}/commit/{commit}"
        self.answer({"success": True, "commitUrl": url, "commitOid": commit})

    def resolve(self, name, revision, path, limit):
        repository = self.seen(name)
        if repository is None:
            return
        commit = repository.find(revision)
        content = repository.commits[commit].get(path) if commit else None
        if content is None:
            self.fail(404, "Entry not found", "EntryNotFound" if commit else "RevisionNotFound")
            return
        content = self.hub.instead.get(path, content)
        if path in repository.large and path not in self.hub.instead:
            digest = hashlib.sha256(content).hexdigest()
            self.send_response(302)
            self.send_header("Location", f"{self.hub.cdn}/cdn/{digest}")
            self.send_header("X-Repo-Commit", commit)
            self.send_header("X-Linked-Etag", f'"{digest}"')
            self.send_header("X-Linked-Size", str(len(content)))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_bytes(content, path, limit, X_Repo_Commit=commit)

    def send_bytes(self, content, path, limit, **headers):
        if content is None:
            self.fail(404, "nothing is stored there")
            return
        wanted = self.headers.get("Range", "").removeprefix("bytes=").partition("-")[0]
        start = int(wanted) if wanted.isdecimal() else 0
        if start >= len(content) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        rest = content[start:]
        if path in self.hub.holds:
            self.wfile.write(rest[: self.hub.holds[path]])
            self.hub.released.wait(60)
            self.close_connection = True
            return
        self.wfile.write(rest if limit is None else rest[:limit])
        if limit is not None and limit < len(rest):
            self.close_connection = True


class HubServer:
    """The server; a context manager.

    Attributes:
        repositories: Name to repository.
        stored: Large files by SHA-256.
        asked: (method, path, Range header, token) of every request that was answered.
        breaks: (method, end of the path) to how many bytes to pass before hanging up, once each.
        refusals: (method, part of the path) to the status to answer with, or to it and the
            Hub's code for the error.
        holds: Path to how many bytes to send before waiting for `released`.
        instead: Path in a repository to the bytes to serve instead.
        large_endings: Endings of the files that go to large-file storage.
    """

    def __init__(self):
        self.repositories, self.stored, self.asked = {}, {}, []
        self.breaks, self.refusals, self.instead = {}, {}, {}
        self.failure_headers, self.holds, self.released = {}, {}, threading.Event()
        self.large_endings = (".safetensors", ".png")
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.hub = self
        self._server.handle_error = lambda *whom: None  # clients hang up, as tests let them
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.cdn = f"http://localhost:{self._server.server_port}"

    def breaks_off(self, method, path):
        for place, limits in self.breaks.items():
            if method == place[0] and path.endswith(place[1]) and limits:
                return limits.pop(0)
        return None

    def refuses(self, method, path):
        for place, code in self.refusals.items():
            if method == place[0] and place[1] in path:
                return code
        return 0

    def requests(self, method, part=""):
        """Return the paths of the requests of one method that contain a text."""
        return [item[1] for item in self.asked if item[0] == method and part in item[1]]

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
