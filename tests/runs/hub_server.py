"""A stand-in of the Hugging Face hub on localhost: the parts of its HTTP API that downloads and
uploads of models use."""

import base64
import contextlib
import hashlib
import http.server
import json
import pathlib
import re
import threading
from urllib.parse import unquote, urlparse

TOKEN = "hf_test"
LARGE = 20_000  # bytes from which a file is uploaded as a large one


class Hub:
    """Repositories by name, and what has been asked.

    Attributes:
      commits: for each repository its commits, oldest first: (sha, {path: bytes}).
      private, gated: names of such repositories.
      cut: {path: bytes}: the next download of the file ends after this number of bytes.
      asked: (method, path) of every request.
      large: bytes of large files by SHA-256.
    """

    def __init__(self):
        self.commits, self.private, self.gated = {}, set(), set()
        self.cut, self.asked, self.large, self.url = {}, [], {}, ""

    def commit(self, name, files):
        """Add a commit of all files of a repository; return its sha."""
        sha = hashlib.sha1(repr((name, sorted(files), len(self.commits.get(name, ())))).encode())
        self.commits.setdefault(name, []).append((sha.hexdigest(), dict(files)))
        return sha.hexdigest()

    def add_folder(self, name, folder):
        """Add a commit of what is in a folder."""
        folder = pathlib.Path(folder)
        files = {
            str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        return self.commit(name, files)

    def find(self, name, revision):
        """Return (sha, files) of a revision, or None."""
        for sha, files in reversed(self.commits.get(name, ())):
            if revision in ("main", sha):
                return sha, files
        return None


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self._answer()

    do_GET = do_POST = do_PUT = do_HEAD

    def _answer(self):
        length = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = b"".join(iter(self._chunk, b""))
        else:
            self.body = self.rfile.read(length)
        path = unquote(urlparse(self.path).path)
        self.hub.asked.append((self.command, path))
        for pattern, method in (
            (r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", self._info),
            (r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", self._tree),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._resolve),
            (r"/api/repos/create", self._create),
            (r"/api/validate-yaml", self._validate),
            (r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", self._preupload),
            (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
            (r"/large/([0-9a-f]+)", self._put),
            (r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", self._commit),
        ):
            if match := re.fullmatch(pattern, path):
                method(*match.groups())
                return
        self._send(404, {"error": path})

    def _chunk(self):
        size = int(self.rfile.readline(), 16)
        data = self.rfile.read(size)
        self.rfile.readline()
        return data

    def _send(self, code, value=None, headers=None, body=None, cut=None):
        body = json.dumps(value).encode() if body is None else body
        self.send_response(code)
        for name, text in {"Content-Length": len(body), **(headers or {})}.items():
            self.send_header(name, str(text))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.close_connection = True

    def _logged_in(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _found(self, name, revision):
        """Return (sha, files), or None after an answer that says why not."""
        hidden = name in self.hub.private and not self._logged_in()
        if name not in self.hub.commits or hidden:
            self._send(401, {"error": "x"}, {"X-Error-Code": "RepoNotFound"})
        elif name in self.hub.gated:
            self._send(403, {"error": "x"}, {"X-Error-Code": "GatedRepo"})
        elif found := self.hub.find(name, revision or "main"):
            return found
        else:
            self._send(404, {"error": "x"}, {"X-Error-Code": "RevisionNotFound"})
        return None

    def _info(self, name, revision):
        if found := self._found(name, revision):
            siblings = [{"rfilename": path} for path in found[1]]
            self._send(200, {"id": name, "sha": found[0], "siblings": siblings, "tags": []})

    def _tree(self, name, revision):
        if found := self._found(name, revision):
            rows = [
                {"type": "file", "path": path, "size": len(data), "oid": _oid(data)}
                for path, data in found[1].items()
            ]
            self._send(200, rows)

    def _resolve(self, name, revision, path):
        if not (found := self._found(name, revision)):
            return
        if path not in found[1]:
            self._send(404, {"error": "x"}, {"X-Error-Code": "EntryNotFound"})
            return
        data = found[1][path]
        headers = {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": found[0], "Accept-Ranges": "bytes"}
        cut = self.hub.cut.pop(path, None) if self.command == "GET" else None
        if given := re.match(r"bytes=(\d+)-", self.headers.get("Range", "")):
            first = int(given[1])
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
            self._send(206, headers=headers, body=data[first:], cut=cut)
        else:
            self._send(200, headers=headers, body=data, cut=cut)

    def _create(self):
        if not self._logged_in():
            self._send(401, {"error": "Invalid username or password."})
            return
        wanted = json.loads(self.body)
        name = f"{wanted['organization']}/{wanted['name']}"
        there = name in self.hub.commits
        self.hub.commits.setdefault(name, [("0" * 40, {})])
        if wanted.get("visibility") == "private" and not there:
            self.hub.private.add(name)
        self._send(409 if there else 200, {"url": f"{self.hub.url}/{name}"})

    def _validate(self):
        header = json.loads(self.body)["content"].split("---")[1]
        wrong = [] if "library_name: xgen_jax" in header else [{"message": "no library_name"}]
        self._send(400 if wrong else 200, {"errors": wrong, "warnings": []})

    def _preupload(self, name, revision):
        found = self._found(name, revision)
        if found:
            files = []
            for file in json.loads(self.body)["files"]:
                mode = "lfs" if file["size"] >= LARGE else "regular"
                held = found[1].get(file["path"])
                files.append(
                    {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
                    | ({} if held is None else {"oid": _known(held, mode)})
                )
            self._send(200, {"files": files})

    def _batch(self, name):
        objects = []
        for each in json.loads(self.body)["objects"]:
            upload = {"href": f"{self.hub.url}/large/{each['oid']}", "header": {}}
            missing = each["oid"] not in self.hub.large
            objects.append({**each, **({"actions": {"upload": upload}} if missing else {})})
        self._send(200, {"transfer": "basic", "objects": objects})

    def _put(self, oid):
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.large[oid] = self.body
        self._send(200, {})

    def _commit(self, name, revision):
        if not self._logged_in():
            self._send(401, {"error": "Invalid credentials"})
        elif found := self._found(name, revision):
            files = dict(found[1])
            for line in self.body.splitlines():
                row = json.loads(line)
                value = row["value"]
                if row["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif row["key"] == "lfsFile":
                    files[value["path"]] = self.hub.large[value["oid"]]
            sha = self.hub.commit(name, files)
            url = f"{self.hub.url}/{name}/commit/{sha}"
            self._send(200, {"commitUrl": url, "commitOid": sha, "pullRequestUrl": None})


def _known(data, mode):
    """The identity of a file that is there, by which one that has not changed is left out."""
    return hashlib.sha256(data).hexdigest() if mode == "lfs" else _oid(data)


def _oid(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextlib.contextmanager
def serving():
    """Serve a hub on a free port of localhost; give it."""
    hub = Hub()
    handler = type("HubHandler", (Handler,), {"hub": hub})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
