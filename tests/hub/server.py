"""A Hub on the loopback: the part of the Hugging Face Hub's HTTP interface that pushing and pulling needs.

Models and data sets share their names here, which they do not on the real Hub.
Large and binary files travel by Git LFS, all others inside the commit, as on the real Hub without Xet. Nothing is
stored on disk. Clients are pointed to it by HF_ENDPOINT, which is read when huggingface_hub is imported:

    python -m tests.hub.server 8765 &
    HF_ENDPOINT=http://127.0.0.1:8765 HF_HUB_DISABLE_XET=1 HF_TOKEN=hf_alice python script.py
"""

import base64
import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKENS = {"hf_alice": "alice", "hf_bob": "bob"}
"""Each token's user."""


class Refused(Exception):
    """An answer other than success."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass(frozen=True)
class File:
    """One version of a file."""

    data: bytes
    by_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def etag(self) -> str:
        """What names this content: the SHA-256 of an LFS file, else Git's hash of the blob."""
        return self.sha256 if self.by_lfs else hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    def entry(self, path: str) -> dict[str, Any]:
        """The file as the Hub lists it."""
        lfs = {"lfs": {"oid": self.sha256, "size": len(self.data), "pointerSize": 134}} if self.by_lfs else {}
        return {"type": "file", "path": path, "size": len(self.data), "oid": self.etag} | lfs


@dataclass(frozen=True)
class Commit:
    """A state of a repository."""

    sha: str
    parent: str | None
    title: str
    files: dict[str, File]
    date: str


@dataclass
class Repository:
    """Commits, and the names of some of them."""

    owner: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, revision: str) -> Commit:
        """The commit of a branch, tag or hash."""
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        if sha not in self.commits:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[sha]

    def add(self, branch: str, title: str, files: dict[str, File]) -> str:
        """Put a commit on a branch; its hash is returned."""
        parent = self.branches.get(branch)
        content = [parent, title, *((path, file.etag) for path, file in sorted(files.items()))]
        sha = hashlib.sha1(repr(content).encode()).hexdigest()
        date = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
        self.commits[sha] = Commit(sha, parent, title, files, date)
        self.branches[branch] = sha
        return sha

    def log(self, revision: str) -> Iterator[Commit]:
        """A commit and those before it, the newest first."""
        commit: Commit | None = self.commit(revision)
        while commit is not None:
            yield commit
            commit = self.commits[commit.parent] if commit.parent else None


@dataclass
class Hub:
    """All that the server holds."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    lfs: dict[str, bytes] = field(default_factory=dict)
    """Uploaded large files by SHA-256, in a commit or not."""
    flowing: threading.Event = field(default_factory=threading.Event)
    """Cleared, it makes uploads of large files stop in their middle, as a network that hangs does."""
    stalled: threading.Event = field(default_factory=threading.Event)
    """Set once one has."""
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.flowing.set()

    def repository(self, name: str, user: str | None, write: bool = False) -> Repository:
        """A repository that the user may see, or change; one that is hidden answers like one that is not there."""
        repository = self.repositories.get(name)
        if repository is None or (repository.private and user != repository.owner):
            raise Refused(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and user != repository.owner:
            raise Refused(403 if user else 401, "Forbidden: write access required")
        return repository


Endpoint = Callable[..., None]
ROUTES: list[tuple[str, re.Pattern[str], Endpoint]] = []
REPOSITORY, REVISION = r"(?P<name>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
MODEL = f"/api/(?:models|datasets)/{REPOSITORY}"


def route(methods: str, path: str) -> Callable[[Endpoint], Endpoint]:
    """Let a method of the handler answer requests for a path."""

    def add(endpoint: Endpoint) -> Endpoint:
        ROUTES.append((methods, re.compile(path), endpoint))
        return endpoint

    return add


class Handler(BaseHTTPRequestHandler):
    """Answers one request; each endpoint gets the named groups of its route."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    hub: Hub

    def log_message(self, format: str, *arguments: Any) -> None:
        """Keep quiet."""

    def answer(self) -> None:
        """Find the endpoint and run it."""
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.body = self._read()
        try:
            with self.hub.lock:
                self.user = self._user()
                endpoint, groups = _find(self.command, url.path)
                endpoint(self, **groups)
        except Refused as refused:
            code = {"X-Error-Code": refused.code} if refused.code else {}
            self.send({"error": str(refused)}, refused.status, {"X-Error-Message": str(refused)} | code)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def send(
        self, content: Any = b"", status: int = 200, headers: dict[str, str] | None = None, kind: str = "json"
    ) -> None:
        """Send bytes as they are, and anything else as JSON."""
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        fixed = {"Content-Type": f"application/{kind}", "Content-Length": str(len(data))}
        for key, value in (fixed | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _read(self) -> bytes:
        if (self.headers.get("Transfer-Encoding") or "").lower() == "chunked":
            return b"".join(self._chunks())
        size = int(self.headers.get("Content-Length") or 0)
        if self.command == "PUT" and not self.hub.flowing.is_set():
            self.rfile.read(size // 2)
            self.hub.stalled.set()
            self.hub.flowing.wait()
            raise ConnectionAbortedError
        return self.rfile.read(size)

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _user(self) -> str | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in TOKENS:
            raise Refused(401, "Invalid credentials in Authorization header")
        return TOKENS.get(token)

    def _signed_in(self) -> str:
        if self.user is None:
            raise Refused(401, "Invalid username or password.")
        return self.user

    @property
    def _base(self) -> str:
        return f"http://{self.headers['Host']}"

    # ---- users and repositories

    @route("GET", "/api/whoami-v2")
    def who_am_i(self) -> None:
        name = self._signed_in()
        token = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
        self.send({"type": "user", "name": name, "fullname": name, "orgs": [], "auth": token})

    @route("POST", "/api/repos/create")
    def create(self) -> None:
        user, asked = self._signed_in(), json.loads(self.body)
        owner = asked.get("organization") or user
        name = f"{owner}/{asked['name']}"
        if owner != user:
            raise Refused(403, "You don't have the rights to create a model under this namespace")
        answer = {"url": f"{self._base}/{name}", "name": name, "id": name}
        if name in self.hub.repositories:
            return self.send(answer | {"error": "You already created this model repo"}, 409)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        repository = self.hub.repositories[name] = Repository(user, private)
        attributes = File(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n", by_lfs=False)
        repository.add("main", "initial commit", {".gitattributes": attributes})
        self.send(answer)

    @route("GET", f"{MODEL}(?:/revision/{REVISION})?")
    def info(self, name: str, revision: str | None) -> None:
        repository = self.hub.repository(name, self.user)
        commit = repository.commit(revision or "main")
        files = [{"rfilename": path} for path in sorted(commit.files)]
        about = {"id": name, "modelId": name, "author": repository.owner, "private": repository.private, "tags": []}
        self.send(about | {"sha": commit.sha, "lastModified": commit.date, "siblings": files})

    @route("GET", f"{MODEL}/refs")
    def refs(self, name: str) -> None:
        repository = self.hub.repository(name, self.user)

        def listed(kind: str, names: dict[str, str]) -> list[dict[str, str]]:
            return [{"name": one, "ref": f"refs/{kind}/{one}", "targetCommit": sha} for one, sha in names.items()]

        branches, tags = listed("heads", repository.branches), listed("tags", repository.tags)
        self.send({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})

    @route("POST", f"{MODEL}/branch/(?P<branch>.+)")
    def make_branch(self, name: str, branch: str) -> None:
        repository = self.hub.repository(name, self.user, write=True)
        if branch in repository.branches:
            raise Refused(409, "Reference already exists")
        start = json.loads(self.body or b"{}").get("startingPoint") or "main"
        repository.branches[branch] = repository.commit(start).sha
        self.send(status=201)

    @route("POST", f"{MODEL}/tag/{REVISION}")
    def make_tag(self, name: str, revision: str) -> None:
        repository = self.hub.repository(name, self.user, write=True)
        repository.tags[json.loads(self.body)["tag"]] = repository.commit(revision).sha
        self.send(status=201)

    # ---- writing

    @route("POST", "/api/validate-yaml")
    def validate(self) -> None:
        self.send({"errors": [], "warnings": []})

    @route("POST", f"{MODEL}/preupload/{REVISION}")
    def choose_transport(self, name: str, revision: str) -> None:
        self.hub.repository(name, self.user, write=True).commit(revision)
        files = json.loads(self.body)["files"]
        chosen = [{"path": file["path"], "uploadMode": _transport(file), "shouldIgnore": False} for file in files]
        self.send({"files": chosen})

    @route("POST", rf"/(?:datasets/)?{REPOSITORY}\.git/info/lfs/objects/batch")
    def lfs_batch(self, name: str) -> None:
        self.hub.repository(name, self.user, write=True)
        objects = json.loads(self.body)["objects"]
        for one in objects:
            if one["oid"] not in self.hub.lfs:
                one["actions"] = {"upload": {"href": f"{self._base}/lfs/{one['oid']}"}}
        self.send({"transfer": "basic", "objects": objects}, kind="vnd.git-lfs+json")

    @route("PUT", "/lfs/(?P<oid>[0-9a-f]{64})")
    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, "SHA-256 mismatch")
        self.hub.lfs[oid] = self.body
        self.send()

    @route("POST", f"{MODEL}/commit/{REVISION}")
    def commit(self, name: str, revision: str) -> None:
        repository = self.hub.repository(name, self.user, write=True)
        if revision not in repository.branches:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        lines = [json.loads(line) for line in self.body.splitlines()]
        files = dict(repository.commit(revision).files)
        for line in lines[1:]:
            self._apply(files, line["key"], line["value"])
        sha = repository.add(revision, lines[0]["value"]["summary"], files)
        self.send({"success": True, "commitOid": sha, "commitUrl": f"{self._base}/{name}/commit/{sha}"})

    def _apply(self, files: dict[str, File], key: str, value: dict[str, Any]) -> None:
        path = value["path"]
        if key == "file":
            files[path] = File(base64.b64decode(value["content"]), by_lfs=False)
        elif key == "lfsFile":
            if value["oid"] not in self.hub.lfs:
                raise Refused(400, f"LFS object {value['oid']} was not uploaded")
            files[path] = File(self.hub.lfs[value["oid"]], by_lfs=True)
        elif key == "deletedFile":
            del files[path]

    # ---- reading

    @route("GET", f"{MODEL}/commits/{REVISION}")
    def commits(self, name: str, revision: str) -> None:
        log = self.hub.repository(name, self.user).log(revision)
        self.send([{"id": c.sha, "title": c.title, "message": "", "date": c.date, "authors": []} for c in log])

    @route("GET", f"{MODEL}/tree/{REVISION}(?:/(?P<folder>.+))?")
    def tree(self, name: str, revision: str, folder: str | None) -> None:
        commit = self.hub.repository(name, self.user).commit(revision)
        prefix = f"{folder}/" if folder else ""
        inside = {path: file for path, file in sorted(commit.files.items()) if path.startswith(prefix)}
        if folder and not inside:
            raise Refused(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        recursive = self.query.get("recursive", ["false"])[0].lower() == "true"
        folders = {prefix + path[len(prefix) :].split("/")[0] for path in inside if "/" in path[len(prefix) :]}
        listed = [file.entry(path) for path, file in inside.items() if recursive or "/" not in path[len(prefix) :]]
        oid = hashlib.sha1(commit.sha.encode()).hexdigest()
        self.send([{"type": "directory", "path": path, "size": 0, "oid": oid} for path in sorted(folders)] + listed)

    @route("POST", f"{MODEL}/paths-info/{REVISION}")
    def paths_info(self, name: str, revision: str) -> None:
        files = self.hub.repository(name, self.user).commit(revision).files
        is_json = "json" in (self.headers.get("Content-Type") or "")
        paths = (json.loads(self.body) if is_json else parse_qs(self.body.decode()))["paths"]
        self.send([files[path].entry(path) for path in paths if path in files])

    @route("GET HEAD", f"/(?:datasets/)?{REPOSITORY}/resolve/{REVISION}/(?P<path>.+)")
    def resolve(self, name: str, revision: str, path: str) -> None:
        commit = self.hub.repository(name, self.user).commit(revision)
        if path not in commit.files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        file = commit.files[path]
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
        if file.by_lfs:
            headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(len(file.data))}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            return self.send(file.data, headers=headers, kind="octet-stream")
        start, stop = int(wanted[1]), min(int(wanted[2] or len(file.data)) + 1, len(file.data))
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(file.data)}"
        self.send(file.data[start:stop], 206, headers, kind="octet-stream")


def _find(method: str, path: str) -> tuple[Endpoint, dict[str, str | None]]:
    for methods, pattern, endpoint in ROUTES:
        match = pattern.fullmatch(path)
        if match and method in methods.split():
            return endpoint, {key: value and unquote(value) for key, value in match.groupdict().items()}
    raise Refused(404, f"no route {method} {path}")


def _transport(file: dict[str, Any]) -> str:
    binary = b"\0" in base64.b64decode(file["sample"]) or file["path"].endswith(".safetensors")
    return "lfs" if binary or file["size"] > 10_000_000 else "regular"


class Server(ThreadingHTTPServer):
    """The server of one Hub."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        self.hub = Hub()
        super().__init__(("127.0.0.1", port), type("HandlerOfHub", (Handler,), {"hub": self.hub}))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Pass over clients that went away."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        """What HF_ENDPOINT must be."""
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving(port: int = 0) -> Iterator[Server]:
    """Serve an empty Hub from a thread while the block runs; port 0 stands for any free one."""
    with Server(port) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


if __name__ == "__main__":
    with Server(int(sys.argv[1]) if len(sys.argv) > 1 else 0) as chosen:
        print(chosen.url, flush=True)
        chosen.serve_forever()
