"""A Hub on 127.0.0.1 that the real huggingface_hub client talks to, with faults on demand and a log of requests.

It speaks both upload modes: classic LFS, and xet, whose store is a folder (``local://``) that hf_xet itself reads and
writes. One process may hold several; HF_ENDPOINT is read when huggingface_hub is imported, so clients are subprocesses.
"""

import base64
import fnmatch
import hashlib
import json
import os
import re
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from doubles.commands import Ended
from doubles.paths import ROOT

PATIENCE_SECONDS = 300
FAST = """
import time
sleep = time.sleep
time.sleep = lambda seconds: sleep(seconds / 100)
from hftoolkit.cli import main
main()
"""
ATTRIBUTES = b"*.bin filter=lfs diff=lfs merge=lfs -text\n*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
XET_TOKEN = "xet-canary-0d1c7a"  # what the Hub hands out for its store: a secret of its own
Headers = dict[str, str]


@dataclass(frozen=True)
class Account:
    """Who a token belongs to, and what it may do: ``read``, ``write`` or ``fineGrained``."""

    name: str
    role: str = "write"
    organizations: tuple[str, ...] = ()

    def owns(self, repository: str) -> bool:
        return repository.partition("/")[0] in (self.name, *self.organizations)


@dataclass(frozen=True)
class Blob:
    """One file of a commit. A large one has a sha256, and its bytes are in the LFS store or in that of xet."""

    size: int
    oid: str
    data: bytes | None = None
    sha256: str | None = None
    xet_hash: str | None = None


@dataclass
class Repository:
    """Commits on one branch, the newest last; each is a whole tree."""

    private: bool
    commits: list[str] = field(default_factory=list)
    trees: dict[str, dict[str, Blob]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def add(self, tree: dict[str, Blob], message: str) -> str:
        oid = hashlib.sha1(f"{len(self.commits)} {message} {time.time_ns()}".encode()).hexdigest()
        self.commits.append(oid)
        self.trees[oid] = tree
        self.messages.append(message)
        return oid

    def tree(self, revision: str = "main") -> dict[str, Blob] | None:
        return self.trees.get(self.commits[-1] if revision == "main" else revision)


@dataclass
class Fault:
    """What to do to the next ``times`` requests whose "METHOD path" matches, instead of answering them.

    ``status`` answers with that; ``drop`` closes the connection ``before`` the request does anything, or ``after``;
    ``meanwhile`` is called first.
    """

    pattern: str
    times: int = 1
    status: int | None = None
    headers: Headers = field(default_factory=dict)
    drop: str | None = None
    meanwhile: Callable[[], object] | None = None


@dataclass(frozen=True)
class Request:
    """One request as it arrived."""

    method: str
    path: str
    headers: Headers
    body: bytes

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


@dataclass
class Answer:
    """What goes back."""

    content: Any = b""
    headers: Headers = field(default_factory=dict)
    status: int = 200


class LoopbackHub:
    """The state of the Hub, and its server. Use ``running``."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.store_per_upload = False  # on disk, unlike behind the real Hub, one process at a time may hold a store
        self.accounts: dict[str, Account] = {}
        self.repositories: dict[str, Repository] = {}  # models by id; data sets as datasets/ID
        self.large: dict[str, bytes] = {}  # the LFS store, by sha256
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    @classmethod
    @contextmanager
    def running(cls, store: Path) -> Iterator["LoopbackHub"]:
        """Serve until the end of the block."""
        hub = cls(store)
        thread = threading.Thread(target=hub.server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.server.shutdown()
            hub.server.server_close()

    def fail(self, pattern: str, **what: Any) -> None:
        """Make a fault that comes after those made before."""
        self.faults.append(Fault(pattern, **what))

    def fault(self, request: Request) -> Fault | None:
        """Use up one of the faults that match."""
        with self.lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault.times and re.search(fault.pattern, str(request)):
                    fault.times -= 1
                    return fault
        return None

    # --- the endpoints: each takes the request and the groups of its pattern, and returns an answer ---

    def whoami(self, request: Request) -> Answer:
        account = self._account(request)
        if account is None:
            raise Refused(401, "Invalid credentials in Authorization header")
        organizations = [{"name": name, "roleInOrg": "write"} for name in account.organizations]
        auth = {"type": "access_token", "accessToken": {"displayName": "laptop", "role": account.role}}
        return Answer({"type": "user", "name": account.name, "orgs": organizations, "auth": auth})

    def create(self, request: Request) -> Answer:
        asked = json.loads(request.body)
        account, organization = self._account(request), asked.get("organization")
        if account is None:
            raise Refused(401, "Invalid username or password.")
        name = f"{organization or account.name}/{asked['name']}"
        if not account.owns(name) or account.role == "read":
            raise Refused(403, f"You don't have the rights to create a model under the namespace {organization!r}")
        key = f"datasets/{name}" if asked.get("type") == "dataset" else name
        answer = {"url": f"{self.endpoint}/{key}", "name": name}
        if key in self.repositories:
            return Answer(answer | {"error": "You already created this model repo"}, status=409)
        private = asked.get("visibility") == "private" or asked.get("private") is True  # 1.8, 1.7
        self.repositories[key] = Repository(private=private)
        self.repositories[key].add({".gitattributes": small(ATTRIBUTES)}, "initial commit")
        return Answer(answer)

    def validate_yaml(self, request: Request) -> Answer:
        found = list(card_errors(json.loads(request.body)["content"]))
        errors = [{"message": message} for message in found]
        return Answer({"errors": errors, "warnings": []}, status=400 if errors else 200)

    def info(self, request: Request, key: str, revision: str | None = None) -> Answer:
        repository = self._readable(request, key)
        tree = self._tree(repository, revision or "main")
        sha = repository.commits[-1] if revision in (None, "main") else revision
        name = key.removeprefix("datasets/")
        siblings = [{"rfilename": path} for path in sorted(tree)]
        return Answer({"id": name, "sha": sha, "private": repository.private, "siblings": siblings, "tags": []})

    def tree(self, request: Request, key: str, revision: str, folder: str | None = None) -> Answer:
        tree = self._tree(self._readable(request, key), revision)
        prefix = f"{urllib.parse.unquote(folder)}/" if folder else ""
        recursive = "recursive=true" in request.path.lower()
        files = [_entry(path, blob) for path, blob in sorted(tree.items()) if path.startswith(prefix)]
        inside = {parent for path in tree if path.startswith(prefix) for parent in _parents(path)}
        folders = [{"type": "directory", "path": path, "oid": _sha1(path.encode()), "size": 0} for path in inside]
        entries = [*folders, *files]
        return Answer([entry for entry in entries if recursive or "/" not in entry["path"].removeprefix(prefix)])

    def auth_check(self, request: Request, key: str) -> Answer:
        self._writable(request, key)
        return Answer({})

    def preupload(self, request: Request, key: str, revision: str) -> Answer:
        tree = self._tree(self._writable(request, key), revision)
        asked = json.loads(request.body)
        kept = asked.get("gitIgnore") or (tree[".gitignore"].data or b"").decode() if ".gitignore" in tree else ""
        files = [self._upload_mode(tree, file, kept.split()) for file in asked["files"]]
        return Answer({"files": files})

    def _upload_mode(self, tree: dict[str, Blob], file: dict[str, Any], ignored: list[str]) -> dict[str, Any]:
        path = file["path"]
        name = path.rpartition("/")[2]
        is_large = file["size"] > 10_000_000 or name.endswith((".bin", ".safetensors"))
        there = tree.get(path)
        return {
            "path": path,
            "uploadMode": "lfs" if is_large else "regular",
            "shouldIgnore": any(fnmatch.fnmatch(name, pattern) for pattern in ignored),
            "oid": there and (there.sha256 or there.oid),
        }

    def batch(self, request: Request, key: str) -> Answer:
        self._writable(request, key)
        objects = []
        for each in json.loads(request.body)["objects"]:
            href = f"{self.endpoint}/large/{each['oid']}"
            actions = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            objects.append(each | ({} if each["oid"] in self.large else {"actions": actions}))
        return Answer({"transfer": "basic", "objects": objects})

    def put_large(self, request: Request, sha256: str) -> Answer:
        if hashlib.sha256(request.body).hexdigest() != sha256:
            raise Refused(400, "the content has another hash")
        self.large[sha256] = request.body
        return Answer()

    def verify_large(self, request: Request, sha256: str) -> Answer:
        if sha256 not in self.large:
            raise Refused(404, "not uploaded")
        return Answer({})

    def xet_token(self, request: Request, key: str, kind: str, revision: str) -> Answer:
        (self._writable if kind == "write" else self._readable)(request, key)
        expires = str(int(time.time()) + 3600)
        own = f"{len(self.requests)}" if self.store_per_upload else ""
        names = {"Cas-Url": f"local://{self.store / own}", "Access-Token": XET_TOKEN, "Token-Expiration": expires}
        return Answer(
            {"casUrl": names["Cas-Url"], "accessToken": XET_TOKEN, "exp": int(expires)},
            {f"X-Xet-{name}": value for name, value in names.items()},
        )

    def commit(self, request: Request, key: str, revision: str) -> Answer:
        repository = self._writable(request, key)
        lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        parent = header.get("parentCommit")
        if parent is not None and parent != repository.commits[-1]:
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        tree = dict(self._tree(repository, revision))
        for line in lines:
            self._apply(tree, line["key"], line["value"])
        oid = repository.add(tree, header["summary"])
        return Answer({"commitOid": oid, "commitUrl": f"{self.endpoint}/{key}/commit/{oid}", "success": True})

    def _apply(self, tree: dict[str, Blob], kind: str, value: dict[str, Any]) -> None:
        match kind:
            case "file":
                tree[value["path"]] = small(base64.b64decode(value["content"]))
            case "lfsFile":
                tree[value["path"]] = self._stored(value["oid"], value["size"])
            case "deletedFile":
                if value["path"] not in tree:
                    raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
                del tree[value["path"]]
            case "header":
                pass
            case _:
                raise Refused(400, f"unknown operation {kind}")

    def _stored(self, sha256: str, size: int) -> Blob:
        """Return a large file that was uploaded before."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        xet_hash = None if sha256 in self.large else xet_hashes(self.store).get(sha256)
        if sha256 not in self.large and xet_hash is None:
            raise Refused(400, f"LFS object {sha256} was not uploaded")
        return Blob(size, small(pointer).oid, self.large.get(sha256), sha256, xet_hash)

    def resolve(self, request: Request, key: str, revision: str, path: str) -> Answer:
        repository = self._readable(request, key)
        blob = self._tree(repository, revision).get(urllib.parse.unquote(path))
        commit = repository.commits[-1] if revision == "main" else revision
        if blob is None:
            raise Refused(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob.sha256 or blob.oid}"', "X-Linked-Size": str(blob.size)}
        if blob.xet_hash:
            route = f"{self.endpoint}/api/{key if '/datasets/' in key else 'models/' + key}/xet-read-token/{commit}"
            return Answer(b"", headers | {"X-Xet-Hash": blob.xet_hash, "X-Xet-Refresh-Route": route})
        assert blob.data is not None
        return Answer(blob.data, headers)

    def _account(self, request: Request) -> Account | None:
        return self.accounts.get(request.headers.get("authorization", "").removeprefix("Bearer "))

    def _readable(self, request: Request, key: str) -> Repository:
        repository, account = self.repositories.get(key), self._account(request)
        hidden = repository is not None and repository.private and not (account and account.owns(_bare(key)))
        if repository is None or hidden:
            raise Refused(404 if account else 401, "Repository not found", "RepoNotFound")
        return repository

    def _writable(self, request: Request, key: str) -> Repository:
        repository, account = self._readable(request, key), self._account(request)
        if account is None or not account.owns(_bare(key)) or account.role == "read":
            raise Refused(403, "You don't have write access to this repository")
        return repository

    def _tree(self, repository: Repository, revision: str) -> dict[str, Blob]:
        tree = repository.tree(revision)
        if tree is None:
            raise Refused(404, "Revision not found", "RevisionNotFound")
        return tree


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        request = Request(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, self._body())
        fault = self.hub.fault(request)
        if fault and fault.meanwhile:
            fault.meanwhile()
        if fault and fault.drop == "before":
            self.close_connection = True
            return
        if fault and fault.status:
            self._send(Answer(b'{"error": "a fault of the test"}', fault.headers, fault.status))
            return
        try:
            answer = self._route(request)
        except Refused as refused:
            answer = Answer({"error": str(refused)}, refused.headers, refused.status)
        if fault and fault.drop == "after":
            self.close_connection = True
            return
        self._send(answer)

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _route(self, request: Request) -> Answer:
        path = urllib.parse.urlsplit(request.path).path
        for pattern, name in ROUTES:
            if match := re.fullmatch(pattern, str(Request(request.method, path, {}, b""))):
                groups = {name: value and urllib.parse.unquote(value) for name, value in match.groupdict().items()}
                if "key" in groups:
                    groups["key"] = groups["key"].removeprefix("models/")
                with self.hub.lock:
                    answer: Answer = getattr(self.hub, name)(request, **groups)
                return answer
        raise Refused(404, f"the loopback Hub has no {request}")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, answer: Answer) -> None:
        content = answer.content if isinstance(answer.content, bytes) else json.dumps(answer.content).encode()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if not isinstance(answer.content, bytes):
            self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


ID = r"[\w.-]+/[\w.-]+"
API = rf"/api/(?P<key>(?:models|datasets)/{ID})"
KEY = rf"/(?P<key>(?:datasets/)?{ID})"
ROUTES = (
    ("GET /api/whoami-v2", "whoami"),
    ("POST /api/repos/create", "create"),
    ("POST /api/validate-yaml", "validate_yaml"),
    (rf"GET {API}(?:/revision/(?P<revision>[^/]+))?", "info"),
    (rf"GET {API}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", "tree"),
    (rf"GET {API}/auth-check/write", "auth_check"),
    (rf"POST {API}/preupload/(?P<revision>[^/]+)", "preupload"),
    (rf"GET {API}/xet-(?P<kind>read|write)-token/(?P<revision>[^/]+)", "xet_token"),
    (rf"POST {API}/commit/(?P<revision>[^/]+)", "commit"),
    (rf"POST {KEY}\.git/info/lfs/objects/batch", "batch"),
    (r"PUT /large/(?P<sha256>\w+)", "put_large"),
    (r"POST /large/(?P<sha256>\w+)/verify", "verify_large"),
    (rf"(?:GET|HEAD) {KEY}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
)


def small(data: bytes) -> Blob:
    """Return a file that git itself keeps."""
    return Blob(len(data), _sha1(b"blob %d\0" % len(data) + data), data)


def _sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def _bare(key: str) -> str:
    return key.removeprefix("datasets/")


def _parents(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[: depth + 1]) for depth in range(len(parts))]


def _entry(path: str, blob: Blob) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": blob.size, "oid": blob.oid}
    if blob.sha256:
        entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": 130}
    if blob.xet_hash:
        entry["xetHash"] = blob.xet_hash
    return entry


def card_errors(content: str) -> Iterator[str]:
    """Yield what the Hub would say of the metadata of a card."""
    parts = content.split("---\n")
    try:
        metadata = yaml.safe_load(parts[1]) if len(parts) > 2 and not parts[0] else {}
    except yaml.YAMLError as error:
        yield f"the metadata are no YAML: {error}"
        return
    for name, kind in {"license": str, "pipeline_tag": str, "library_name": str, "tags": list}.items():
        if not isinstance(metadata.get(name, kind()), kind):
            yield f'"{name}" must be a {kind.__name__}'
    for result in (result for model in metadata.get("model-index", []) for result in model["results"]):
        if not all((result["task"].get("type"), result["dataset"].get("name"), result["dataset"].get("type"))):
            yield '"model-index" needs the task type, and the type and name of the data set'
        if not all(metric.get("type") and "value" in metric for metric in result["metrics"]):
            yield '"model-index" needs the type and value of each metric'


def xet_hashes(store: Path) -> dict[str, str]:
    """Return the xet hash of each file in the store by its sha256, from the shards that hf_xet wrote."""
    found = {}
    for shard in store.rglob("*.mdb"):
        data = shard.read_bytes()
        position = 48  # after the header of a shard
        while position + 48 <= len(data) and data[position : position + 32] != b"\xff" * 32:
            flags, entries = struct.unpack_from("<II", data, position + 32)
            end = position + 48 * (1 + entries * (2 if flags >> 31 else 1))
            if flags >> 30 & 1:
                found[_merkle_hex(data[end : end + 32])] = _merkle_hex(data[position : position + 32])
                end += 48
            position = end
    return found


def _merkle_hex(raw: bytes) -> str:
    return "".join(f"{part:016x}" for part in struct.unpack("<4Q", raw))


@dataclass
class Client:
    """A machine with a home of its own that talks to the loopback Hub through the command line."""

    hub: LoopbackHub
    folder: Path
    token: str | None
    xet: bool = False
    said: list[str] = field(default_factory=list)  # all that its commands printed

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        own = {"HF_ENDPOINT": self.hub.endpoint, "HF_HOME": str(self.folder / "home"), "PYTHONPATH": str(ROOT)}
        own |= {"HF_HUB_DISABLE_XET": str(int(not self.xet)), "HF_HUB_DISABLE_TELEMETRY": "1"}
        return kept | own | ({"HF_TOKEN": self.token} if self.token else {}) | more

    def start(self, *arguments: object, script: str = FAST, **environment: str) -> "subprocess.Popen[str]":
        """Start ``hftoolkit``, with waits a hundredth as long."""
        command = [sys.executable, "-c", script, *map(str, arguments)]
        return subprocess.Popen(
            command,
            env=self.environment(**environment),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self, process: "subprocess.Popen[str]") -> Ended:
        """Wait for a command and return how it ended."""
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
        self.said += [out, err]
        return Ended(process.returncode, out, err)

    def run(self, *arguments: object, **environment: str) -> Ended:
        """Run ``hftoolkit`` to its end."""
        return self.end(self.start(*arguments, **environment))

    def python(self, code: str) -> str:
        """Run code in a fresh process where hftoolkit cannot be imported; return what it prints."""
        guarded = f"import sys; sys.modules['hftoolkit'] = None\n{code}"
        ended = subprocess.run(
            [sys.executable, "-c", guarded],
            env=self.environment(),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        self.said += [ended.stdout, ended.stderr]
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def leaks(self) -> list[str]:
        """Return where the token, or that of the xet store, is and should not be."""
        secrets = [secret for secret in (self.token, XET_TOKEN) if secret]
        texts = {f"output {number}": text.encode() for number, text in enumerate(self.said)}
        texts |= {str(path): path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}
        for number, request in enumerate(self.hub.requests):
            headers = {name: value for name, value in request.headers.items() if name != "authorization"}
            texts[f"request {number}, {request}"] = request.body + f"{request}{headers}".encode()
        return [name for name, text in texts.items() if any(secret.encode() in text for secret in secrets)]
