"""Times `esteira.ledger.verify` on a real store and on its export, beside the plainest loop that could do it, on one core.

    python -m benchmarks.ledger.verify --entries 1000000

Writes into a temporary folder (about 1 GB for a million entries of releases) and prints one JSON document.
"""

import argparse
import hashlib
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from esteira import ledger
from esteira.ledger.chain import encode
from esteira.store import Store
from esteira.store import tables as t

LINE = "tabular@bench"
START = datetime(2026, 1, 1, tzinfo=UTC)
_CHUNK = 10_000


def alias(number: int) -> tuple[str, dict[str, Any]]:
    """Kind and evidence of the shortest entry there is: an alias that moved."""
    said = {"alias": "champion", "from": number, "to": number + 1, "reason": "the gate released it"}
    return "alias", {**said, "moves": {"champion": [number, number + 1], "previous": [None, number]}}


def release(number: int) -> tuple[str, dict[str, Any]]:
    """Kind and evidence as releases leave them: of ten entries a verdict, a registration, four changes of traffic, four short ones."""
    place = number % 10
    if place == 0:
        return "verdict", {"verdict": "pass", "run_id": f"run-{number}", "rules": [_rule(k, number) for k in range(9)]}
    if place == 1:
        hashes = {name: hashlib.sha256(f"{name}{number}".encode()).hexdigest() for name in ("data_hash", "params_hash")}
        metrics = {f"score_{k}": (number % 997 + k) / 1000 for k in range(12)}
        return "registration", {"run_id": f"run-{number}", **hashes, "code_revision": "c0ffee", "metrics": metrics}
    if place in (4, 5, 6, 7):
        shares = [{"version": v, "bundle_id": "ab" * 32, "share": share} for v, share in ((1, 0.75), (2, 0.25))]
        return "traffic", {
            "test_id": f"test-{number // 10}", "stage": place - 4, "from": 10.0, "to": 25.0, "shares": shares,
            "action": "advance", "reason": "stable for 24 h", "findings": [_rule(k, number) for k in range(3)],
        }  # fmt: skip
    return alias(number)


def _rule(place: int, number: int) -> dict[str, Any]:
    value = (number % 1009) / 1009
    return {
        "rule": f"rule_{place}", "outcome": "PASS", "metric": "roc_auc", "value": value, "op": ">=", "bound": 0.5, "n": 1200,
        "interval": [value - 0.01, value + 0.01], "reason": f"roc_auc is {value:.4f} and must be >= 0.5",
    }  # fmt: skip


def fill(store: Store, entries: int, said: Callable[[int], tuple[str, dict[str, Any]]] = release) -> None:
    """Write so many entries into an empty ledger, in large transactions: what `append` would write, one a second."""
    import sqlalchemy as sa

    prev, rows = ledger.GENESIS, []
    for number in range(1, entries + 1):
        kind, evidence = said(number)
        body: dict[str, Any] = {
            "seq": number,
            "at": (START + timedelta(seconds=number)).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "tenant": store.tenant, "kind": kind, "line": LINE, "version": number % 50 + 1, "bundle_id": "ab" * 32,
            "actor": "ana", "evidence": evidence,
        }  # fmt: skip
        digest = ledger.entry_hash(prev, body)
        row = {**body, "tenant_id": body["tenant"], "evidence": encode(evidence), "prev": prev, "hash": digest}
        del row["tenant"]
        rows.append(row)
        prev = digest
        if len(rows) == _CHUNK or number == entries:
            with store.begin() as connection:
                connection.execute(sa.insert(t.ledger), rows)
            rows = []


def plain(file: Path) -> int:
    """The plainest loop over an export: read a line, write its body as canonical JSON, hash it, compare. Entries that held."""
    prev, count = ledger.GENESIS, 0
    with file.open(encoding="utf-8") as stream:
        for line in stream:
            entry = json.loads(line)
            if "head" in entry:
                break
            told, _ = entry.pop("hash"), entry.pop("prev")
            body = json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            prev = hashlib.sha256(prev.encode() + body.encode()).hexdigest()
            if prev != told:
                return count
            count += 1
    return count


def only_hash(file: Path) -> int:
    """Only `json.dumps` and SHA-256, of entries that are read already, in parts of 10,000; nanoseconds of those two."""
    spent = 0
    for entries in _parts(file):
        began = time.perf_counter_ns()
        for entry in entries:
            text = json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            hashlib.sha256(text.encode()).hexdigest()
        spent += time.perf_counter_ns() - began
    return spent


def _parts(file: Path) -> Iterator[list[Any]]:
    part = []
    with file.open(encoding="utf-8") as stream:
        for line in stream:
            part.append(json.loads(line))
            if len(part) == _CHUNK:
                yield part
                part = []
    yield part


def measure(entries: int, said: Callable[[int], tuple[str, dict[str, Any]]], folder: Path) -> dict[str, Any]:
    """Fill, export, and time: seconds on the clock and of the processor, for the store, the export and the two loops."""
    folder.mkdir(parents=True)
    store = Store.open(f"sqlite:///{folder / 'esteira.db'}")
    fill(store, entries, said)
    export = folder / "ledger.jsonl"
    began = time.perf_counter()
    ledger.export(store, export)
    figures: dict[str, Any] = {
        "bytes_an_entry": round(export.stat().st_size / max(entries, 1)),
        "export_seconds": round(time.perf_counter() - began, 2),
        "peak_mb": {"filled": _peak()},
    }
    for name, call in (
        ("store", lambda: ledger.verify(store)),
        ("file", lambda: ledger.verify(store, export)),
        ("plain_loop", lambda: plain(export)),
    ):
        clock, processor = time.perf_counter(), time.process_time()
        found = call()
        figures[name] = {
            "seconds": round(time.perf_counter() - clock, 2), "cpu_seconds": round(time.process_time() - processor, 2)
        }  # fmt: skip
        if name == "file":
            figures["peak_mb"]["verified"] = _peak()
        held = found if isinstance(found, int) else found.entries
        if held != entries:
            raise SystemExit(f"{name}: only {held} of {entries} entries held")
    figures["dumps_and_sha256_seconds"] = round(only_hash(export) / 1e9, 2)
    for name in ("store", "file"):
        figures[f"{name}_to_plain_loop"] = round(figures[name]["cpu_seconds"] / figures["plain_loop"]["cpu_seconds"], 2)
    store.close()
    export.unlink()
    return figures


def _peak() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def main() -> None:
    """Measure both kinds of entries and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=1_000_000)
    asked = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core
    found: dict[str, Any] = {"entries": asked.entries}
    with tempfile.TemporaryDirectory(prefix="esteira-ledger-") as place:
        for said in (alias, release):
            print(f"{said.__name__}: filling and verifying ...", file=sys.stderr)
            found[said.__name__] = measure(asked.entries, said, Path(place) / said.__name__)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
