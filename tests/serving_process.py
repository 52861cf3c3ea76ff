"""A running service for tests: starts it, waits until it is ready, asks it over a real socket, and knows its processes."""

import http.client
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

KEY = "a-test-key"
ROOT = Path(__file__).resolve().parents[1]


class Service:
    """`python -m serving serve ...` (or another command that says READY), with its answers as (status, document, headers)."""

    def __init__(
        self, arguments: Sequence[str], *, env: Mapping[str, str], log: Path, command: Sequence[str] = ()
    ) -> None:
        self.log = log
        # Most tests have no load balancer that must hear of the end.
        environment = {**os.environ, "ESTEIRA_API_KEY": KEY, "ESTEIRA_DRAIN_SECONDS": "0", **env}
        environment.pop("ESTEIRA_TEST_DATA", None)
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [*(command or (sys.executable, "-m", "serving", "serve")), *arguments],
                env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip
        self._said: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.address = ""

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._said.put(line)
        self._said.put("")

    def wait_ready(self, seconds: float = 60) -> "Service":
        line = self._said.get(timeout=seconds)
        assert line.startswith("READY http://"), f"{line!r}\n{self.log.read_text()[-3000:]}"
        self.address = urlsplit(line.split()[1]).netloc
        return self

    def ask(
        self,
        path: str,
        document: Any = None,
        *,
        key: str | None = KEY,
        method: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Any, Mapping[str, str]]:
        """One request; `document` is sent as JSON, bytes as they are. The answer is parsed when it is JSON."""
        body = document if isinstance(document, bytes) or document is None else json.dumps(document).encode()
        sent = {"Authorization": f"Bearer {key}"} if key is not None else {}
        if body is not None:
            sent["Content-Type"] = "application/json"
        connection = http.client.HTTPConnection(self.address, timeout=20)
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, body, {**sent, **(headers or {})})
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        found = {name.lower(): value for name, value in response.getheaders()}
        is_json = found.get("content-type", "").startswith("application/json") and content
        return response.status, json.loads(content) if is_json else content, found

    def predict(self, *rows: Mapping[str, Any], path: str = "/v1/predict") -> tuple[int, Any]:
        status, document, _ = self.ask(path, {"rows": list(rows)})
        return status, document

    def tree(self) -> list[int]:
        """Process ids of this service and of all its descendants."""
        return descendants(self.process.pid)

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(30)
        if self.process.stdout is not None:
            time.sleep(0.05)
            self.process.stdout.close()
        return code


def descendants(pid: int) -> list[int]:
    """The process and everything below it, by /proc."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def alive(pids: Sequence[int]) -> list[int]:
    """Those of the processes that still run; a zombie does not."""
    running = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if state not in "ZX":
            running.append(pid)
    return running


def gone(pids: Sequence[int], seconds: float = 10) -> bool:
    """True as soon as none of the processes runs; False when some still do after that time."""
    until = time.monotonic() + seconds
    while alive(pids):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True
