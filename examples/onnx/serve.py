"""A web service that starts from an .ilwp file: numpy and onnxruntime, no torch and no onnx.

python examples/onnx/serve.py model.ilwp --port 8000
curl --data-binary @batch.npy http://localhost:8000/

A request is an array as numpy.save writes it; the answer is JSON, the first output of the model. GET says what is
served. A file that is replaced while the service runs is taken from the next request on: `ilwp` writes files
atomically, and one that is damaged is refused, so that the old model goes on serving.
"""

import argparse
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from ilwp_integrations.onnx import load_session

from ilwp_plugin.errors import IlwpError

MOST_BYTES = 16 << 20
"""Of a request."""


class Served:
    """The model of a file, read again when the file is another one."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock, self._stamp = path, threading.Lock(), self._read_stamp(path)
        self._session = load_session(path)
        self.fault = ""

    @staticmethod
    def _read_stamp(path: Path) -> tuple[int, int]:
        found = path.stat()
        return found.st_mtime_ns, found.st_ino

    def session(self) -> Any:
        with self._lock:
            stamp = self._read_stamp(self._path)
            if stamp != self._stamp:
                self._stamp = stamp
                try:
                    self._session, self.fault = load_session(self._path), ""
                except IlwpError as error:
                    self.fault = str(error)
            return self._session


class Handler(BaseHTTPRequestHandler):
    """See the module; `served` is set by `service`."""

    served: Served

    def do_GET(self) -> None:
        session = self.served.session()
        shapes = {value.name: value.shape for value in session.get_inputs()}
        self._answer(200, {"inputs": shapes, "fault": self.served.fault})

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        if length > MOST_BYTES:
            return self._answer(413, {"error": f"at most {MOST_BYTES:,} bytes"})
        session = self.served.session()
        try:
            array = np.load(io.BytesIO(self.rfile.read(length)), allow_pickle=False)
            outputs = session.run(None, {session.get_inputs()[0].name: array})
        except Exception as error:  # whatever a client sends
            return self._answer(400, {"error": str(error).splitlines()[0]})
        return self._answer(200, outputs[0].tolist())

    def _answer(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *values: Any) -> None:
        """Quiet."""


def service(path: Path, port: int) -> ThreadingHTTPServer:
    """A server that is not started yet; port 0 takes any that is free."""
    handler = type("Serving", (Handler,), {"served": Served(path)})
    return ThreadingHTTPServer(("127.0.0.1", port), handler)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    server = service(options.model, options.port)
    print(f"serving {options.model} at http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
