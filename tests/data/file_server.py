"""A local HTTP server that breaks off, ignores ranges, fails, or serves another file."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import h5py
import numpy as np


def hdf5_bytes(size, seed=0):
    """Return an HDF5 file that holds `size` random bytes."""
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        file["x"] = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    return memory.getvalue()


class Handler(BaseHTTPRequestHandler):
    @property
    def plan(self):
        return self.server.plan

    def log_message(self, *words):
        pass

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        wanted = self.headers.get("Range", "")
        self.plan.asked.append((self.command, self.path, wanted))
        content = self.plan.files.get(self.path)
        code = self.plan.fails.pop(0) if with_body and self.plan.fails else 200
        if content is None or code != 200:
            self.send_error(404 if content is None else code)
            return
        start = self.begin(wanted)
        if start > len(content) or (start and start == len(content)):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            span = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.send_header("Content-Range", span)
        if self.plan.length:
            self.send_header("Content-Length", str(len(content) - start))
        if self.plan.encoding:
            self.send_header("Content-Encoding", self.plan.encoding)
        if self.plan.tag:
            self.send_header("ETag", self.plan.tag)
        # What the Hugging Face Hub says of a file in large-file storage.
        digest = hashlib.sha256(content).hexdigest()
        self.send_header("X-Linked-Etag", f'"{digest}"')
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if with_body:
            self.send(content[start:])

    def begin(self, wanted):
        condition = self.headers.get("If-Range")
        if not (self.plan.ranges and wanted) or (condition and condition != self.plan.tag):
            return 0
        return int(wanted.removeprefix("bytes=").partition("-")[0])

    def send(self, body):
        limit = self.plan.breaks.pop(0) if self.plan.breaks else len(body)
        for start in range(0, limit, 1 << 16):
            self.wfile.write(body[start : min(start + (1 << 16), limit)])
            time.sleep(self.plan.pause)
        if limit < len(body):
            self.close_connection = True


class FileServer:
    """Serves `files` (path to bytes) as told; a context manager.

    Attributes:
        ranges: Whether `Range` is honored.
        tag: The `ETag`, or "".
        length: Whether `Content-Length` is sent.
        encoding: The `Content-Encoding`, or "".
        breaks: For each coming GET, how many bytes to send before hanging up.
        fails: For each coming GET, a status code to answer with.
        asked: (method, path, Range header) of every request.
        pause: Seconds to wait after each 64 kB.
    """

    def __init__(self, files):
        self.files = files
        self.ranges = True
        self.tag = '"one"'
        self.length, self.encoding = True, ""
        self.breaks, self.fails, self.asked = [], [], []
        self.pause = 0.0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *whom: None  # clients hang up, as tests let them
        self._server.plan = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()
