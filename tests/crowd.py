"""For tests of a running service: clients that never stop asking, its workers, and what they hold in memory."""

import http.client
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from tests.serving_process import KEY, Service, descendants
from tests.small_bundle import ROW


class Crowd:
    """Clients that ask one row over kept-alive connections until they are told to stop.

    Attributes:
        seen: (status, version, bundle_id, probability) of every answer.
        lost: requests without an answer.
    """

    def __init__(self, address: str, clients: int) -> None:
        self.seen: list[tuple[int, int | None, str, float]] = []
        self.lost: list[str] = []
        self._address = address
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def __enter__(self) -> "Crowd":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=20)
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        body = json.dumps({"rows": [ROW]})
        while not self._stop.is_set():
            try:
                connection.request("POST", "/v1/predict", body, headers)
                response = connection.getresponse()
                document = json.loads(response.read())
            except (OSError, http.client.HTTPException) as error:
                self.lost.append(type(error).__name__)
                connection.close()
                continue
            if response.status != 200:
                self.seen.append((response.status, None, "", 0.0))
                continue
            sure = document["rows"][0]["probabilities"]["yes"]
            self.seen.append((200, document["version"], document["bundle_id"], sure))
        connection.close()


def memory(pids: Sequence[int]) -> int:
    """Bytes that the processes hold in memory."""
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE")


def workers(service: Service) -> list[int]:
    """Process ids of the workers: children of Bento's master, which is the child of ours."""
    master = service.tree()[1]
    return [pid for pid in descendants(master)[1:] if b"--fd" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]
