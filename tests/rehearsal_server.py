"""A small server that is asked as the real one is and behaves as its folder's behaviour.json says, or $BEHAVES_AS's:
`serve --bundle DIR --port 0`.

For what the real server cannot be made to do at will: hang, crash, answer slowly, with NaN, or with too few rows.
"""

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ.get("BEHAVES_AS") or sys.argv[sys.argv.index("--bundle") + 1])
SAID: dict[str, Any] = json.loads((FOLDER / "behaviour.json").read_text())
COUNT = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes, and would wait for each other

    def do_POST(self) -> None:
        global COUNT
        COUNT += 1
        rows = json.loads(self.rfile.read(int(self.headers["content-length"])))["rows"]
        assert self.headers["authorization"] == f"Bearer {os.environ['ESTEIRA_API_KEY']}"
        how = SAID["does"] if COUNT > SAID.get("after", 0) else "answers"
        if how == "hangs":
            threading.Event().wait(60)
        if how == "crashes":
            print(f"Segmentation fault at {rows}", file=sys.stderr, flush=True)
            os._exit(139)
        time.sleep(SAID.get("seconds", 0.0))
        status = {"refuses": 422, "fails": 500}.get(how, 200)
        # As the real one does, it quotes what it was given.
        says = {"code": "bad_row", "message": f"a must be a letter, but got {rows[0]}", "field": "a", "row": 0}
        document: dict[str, Any] = {"error": says}
        if status == 200:
            answers = [{"prediction": SAID.get("value", 1.0) + row.get("a", 0), "probabilities": {}} for row in rows]
            if how == "nan":
                answers[0]["prediction"] = float("nan")
            if how == "infinite":
                answers[0]["probabilities"] = {"yes": float("1e999")}
            if how == "null":
                answers[0]["prediction"] = None
            document = {"rows": answers[1:] if how == "short" else answers}
        content = f"<html>{rows}" if how in ("html", "fails") else json.dumps(document)
        self.send_response(status)
        self.send_header("content-length", str(len(content.encode())))
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *_: object) -> None:
        """Says nothing."""


if SAID["does"] == "ends":
    print("the model cannot be loaded", file=sys.stderr, flush=True)
    sys.exit(3)
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
if SAID["does"] != "is never ready":
    print(f"READY http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
