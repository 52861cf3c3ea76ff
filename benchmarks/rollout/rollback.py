"""How long a rollback takes for those who are being answered: `esteira rollback`, the real command, beside a real service.

    python -m benchmarks.rollout.rollback --rounds 10

Two releases of family `tabular` are trained in a temporary home, and a service of two workers is asked over four connections all
the time. Told are milliseconds from the start of the command to the first answer of the version that is returned to: until the alias or the
split moved, most of which is Python that starts, and from there to the answer. MLflow is shown the move after that, before the
command ends.
"""

import argparse
import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[2]
LINE = "tabular"
KEY = "a-benchmark-key"
CONNECTIONS = 4


@dataclass
class Clients:
    """Ask all the time, each over a connection of its own.

    Attributes:
        seen: (seconds since the epoch, version) of each answer.
        failed: answers other than 200, and connections that broke.
    """

    address: str
    row: dict[str, Any]
    seen: list[tuple[float, int]] = field(default_factory=list)
    failed: int = 0

    def __enter__(self) -> "Clients":
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(CONNECTIONS)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        headers = {
            "Authorization": f"Bearer {KEY}",
            "Content-Type": "application/json",
            "X-Unit-Id": f"client-{number}",
        }
        body = json.dumps({"rows": [self.row]})
        connection = http.client.HTTPConnection(self.address, timeout=20)
        while not self._stop.is_set():
            try:
                connection.request("POST", f"/v1/{LINE}/predict", body, headers)
                response = connection.getresponse()
                document = json.loads(response.read())
            except OSError:
                self.failed += 1
                connection.close()
                continue
            if response.status == 200:
                self.seen.append((time.time(), int(document["version"])))
            else:
                self.failed += 1
            time.sleep(0.008)
        connection.close()

    def until(self, version: int, seconds: float = 30.0) -> None:
        """Wait until only this version has answered for half a second."""
        end = time.time() + seconds
        while time.time() < end:
            time.sleep(0.1)
            lately = {one for at, one in list(self.seen) if at > time.time() - 0.5}
            if lately == {version}:
                return
        raise SystemExit(f"version {version} does not answer")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--home", type=Path, help="folder that keeps the two releases, to measure again with them")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="esteira-rollback-") as folder:
        made, home = (options.home or Path(folder) / "made").absolute(), Path(folder) / "home"
        environment = {**os.environ, "ESTEIRA_HOME": str(made), "ESTEIRA_API_KEY": KEY, "ESTEIRA_WORKERS": "2"}
        for seed in (1, 2) if not (made / "esteira.db").exists() else ():
            print(f"training release {seed} of 2 ...", file=sys.stderr)
            _esteira(environment, "run", LINE, "--seed", str(seed))
        # A copy, because a candidate that was rolled back rests for a day.
        shutil.copytree(made, home)
        environment |= {"ESTEIRA_HOME": str(home), "ESTEIRA_ARTIFACTS": str(made / "artifacts")}
        with _service(environment) as address:
            found = _measure(environment, home, address, options.rounds)
    print(table(found))
    print(json.dumps(found))


def _measure(environment: dict[str, str], home: Path, address: str, rounds: int) -> dict[str, Any]:
    from esteira import access
    from esteira.registry import Registry
    from esteira.settings import Settings

    settings = Settings(home=home, actor="benchmark", artifacts=environment["ESTEIRA_ARTIFACTS"])
    registry, actor = Registry(settings), access.who(settings)
    versions = sorted(version.version for version in registry.versions(LINE))
    old, new = versions[-2:]
    measured: dict[str, list[dict[str, float]]] = {"release": [], "rollout": []}
    row = _row(address)
    with Clients(address, row) as clients:
        for _ in range(rounds):
            if registry.aliases(LINE)["champion"] != new:
                # What was rolled back is staged anew before it may serve.
                registry.set_alias(LINE, "staging", new, actor=actor, reason="the next round")
                registry.promote(LINE, new, actor=actor, reason="the next round", evidence={"policy": "automatic"})
            clients.until(new)
            measured["release"].append(_one(environment, clients, old, new, "--to", str(old)))
        # One only, for the same reason.
        clients.until(old)
        names = [f"client-{number}" for number in range(CONNECTIONS)]
        plan = ("--policy", "flags", "--option", f"units={json.dumps({'internal': names})}")
        _esteira(
            environment, "rollout", "start", LINE, "--version", str(new), "--reason", "measured",
            "--option", "min_samples=0", *plan,
        )  # fmt: skip
        clients.until(new)
        measured["rollout"].append(_one(environment, clients, old, new))
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"), "failed": clients.failed, "answers": len(clients.seen),
        **{what: _summary(figures) for what, figures in measured.items()},
    }  # fmt: skip


def _one(environment: dict[str, str], clients: Clients, old: int, new: int, *more: str) -> dict[str, float]:
    begun = time.time()
    with _Watch(Path(environment["ESTEIRA_HOME"])) as watch:
        _esteira(environment, "rollback", LINE, "--reason", "measured", *more)
    ended = time.time()
    clients.until(old)
    after = [(at, version) for at, version in clients.seen if at >= begun]
    return {
        "first_ms": 1000 * (min(at for at, version in after if version == old) - begun),
        "last_old_ms": 1000 * (max([begun, *(at for at, version in after if version == new)]) - begun),
        "moved_ms": 1000 * (watch.moved - begun),
        "served_ms": 1000 * (min(at for at, version in after if version == old) - watch.moved),
        "command_ms": 1000 * (ended - begun),
    }


class _Watch:
    """Sees when what serves reads of it: the beacon that says that the alias moved, or the split that goes."""

    def __init__(self, home: Path) -> None:
        from esteira.registry import beacon
        from esteira.rollout import split

        file, before = split.path(home, LINE), beacon.stamp(home)
        self._look: Callable[[], bool] = lambda: beacon.stamp(home) != before
        if file.exists():
            self._look = lambda: split.read(file) is None
        self.moved = 0.0
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._look():
            time.sleep(0.001)
        self.moved = time.time()

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(60)


def _summary(figures: Sequence[dict[str, float]]) -> dict[str, Any]:
    names = figures[0]
    return {
        "rounds": len(figures),
        **{name: round(statistics.median(one[name] for one in figures), 1) for name in names},
        "worst_first_ms": round(max(one["first_ms"] for one in figures), 1),
    }


def table(found: dict[str, Any]) -> str:
    """The figures as a Markdown table, medians over the rounds."""
    lines = [
        "| Rolled back | Rounds | First answer of the other version | the slowest | Until it moved | From there | Command ends |",
        "|---|---|---|---|---|---|---|",
    ]
    for what, name in (("release", "a release: the alias moves"), ("rollout", "a rollout: the split goes")):
        one = found[what]
        lines.append(
            f"| {name} | {one['rounds']} | {one['first_ms']:.0f} ms | {one['worst_first_ms']:.0f} ms | "
            f"{one['moved_ms']:.0f} ms | {one['served_ms']:.0f} ms | {one['command_ms']:.0f} ms |"
        )
    return "\n".join([*lines, "", f"{found['answers']} answers meanwhile, {found['failed']} failed."])


def _esteira(environment: dict[str, str], *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "esteira.cli", *arguments, "--json"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"esteira {' '.join(arguments)} failed: {done.stdout[-1000:]}{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def _row(address: str) -> dict[str, Any]:
    """The row that the service's own document shows."""
    connection = http.client.HTTPConnection(address, timeout=20)
    connection.request("GET", "/openapi.json", headers={"Authorization": f"Bearer {KEY}"})
    document = json.loads(connection.getresponse().read())
    connection.close()
    body = document["paths"][f"/v1/{LINE}/predict"]["post"]["requestBody"]["content"]["application/json"]
    row: dict[str, Any] = body["examples"]["golden"]["value"]["rows"][0]
    return row


@contextmanager
def _service(environment: dict[str, str]) -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "esteira.cli", "serve", LINE, "--port", "0"],
        cwd=ROOT, env={**environment, "ESTEIRA_DRAIN_SECONDS": "0"}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        if not said.startswith("READY "):
            raise SystemExit("the service did not start")
        yield urlsplit(said.split()[1]).netloc
    finally:
        process.terminate()
        process.wait(30)
        if process.stdout is not None:
            process.stdout.close()


if __name__ == "__main__":
    main()
