"""Asks the same requests of a candidate's server and of the champion's, in turn, and keeps what each said. It judges nothing."""

import contextlib
import http.client
import json
import math
import re
import secrets
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from esteira.family import Answer, Row
from esteira.probe import Server

FOLDER = "requests"
"""Folder below `$ESTEIRA_HOME` where a service keeps its last requests, a file a line (ESTEIRA_REQUEST_LOG)."""
_WARM_UP = 20
_WORD = re.compile(r"[a-z][a-z0-9_]{0,63}")
_IN_A_ROW = 3
"""Requests without any answer after which a server is asked no more: it hangs or is gone."""


@dataclass(frozen=True)
class Said:
    """What a server said to one request.

    Attributes:
        seconds: until the whole answer, or until it was given up.
        status: of the answer; None without one.
        rows: the answers, one a row; empty where there is a fault.
        fault: why it counts as no answer, in words that are ours, with nothing of the rows; empty when it is one.
        trace: id of the trace that the request belongs to, 32 hexadecimal digits.
    """

    seconds: float
    status: int | None
    rows: tuple[Answer, ...] = ()
    fault: str = ""
    trace: str = ""


@dataclass(frozen=True)
class Call:
    """One request, and what both said; `champion` is None where there is none, or it is asked no more."""

    request: int
    candidate: Said
    champion: Said | None


@dataclass(frozen=True)
class Requests:
    """What is replayed.

    Attributes:
        rows: of each request, in the order of coming.
        source: `log` when a service kept them, `golden` when they are the bundle's own rows, one each.
        skipped: lines of the log that are no request.
    """

    rows: tuple[tuple[Row, ...], ...]
    source: Literal["log", "golden"]
    skipped: int = 0


def logged(home: Path, line: str, last: int) -> Requests:
    """The last requests of a line that a service of this home kept; none where it kept none.

    Args:
        last: how many at most.
    """
    kept: deque[tuple[Row, ...]] = deque(maxlen=last)
    skipped = 0
    try:
        with (home / FOLDER / f"{line}.jsonl").open("rb") as file:
            for text in file:
                rows = _rows(text)
                if rows:
                    kept.append(rows)
                else:
                    skipped += 1
    except OSError:
        return Requests((), "log")
    return Requests(tuple(kept), "log", skipped)


def golden(bundle: Path, last: int) -> Requests:
    """The golden rows of a verified bundle, a request each; none where it has none.

    Args:
        last: how many at most.
    """
    try:
        rows = json.loads((bundle / "golden.json").read_bytes())["rows"]
    except (OSError, ValueError, KeyError, TypeError):
        return Requests((), "golden")
    return Requests(tuple((row,) for row in rows if isinstance(row, dict))[:last], "golden")


def replay(
    requests: Sequence[Sequence[Row]], candidate: Server, champion: Server | None, *, calls: int, seconds: float
) -> list[Call]:
    """Ask every request once, and again from the first until there were `calls`; both servers in turn, one at a time.

    Who is asked first changes with every request, so that what else this machine does falls on both alike. Before it,
    each gets 20 requests that do not count and are not traced.

    Args:
        requests: rows of each; at least one.
        candidate, champion: servers that are ready.
        seconds: that an answer may take; three requests in a row without one end the replay.
    """
    bodies = [json.dumps({"rows": rows}, ensure_ascii=False, allow_nan=False).encode() for rows in requests]
    made: list[Call] = []
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(_Caller(candidate, seconds))
        theirs = None if champion is None else stack.enter_context(_Caller(champion, seconds))
        for caller in (ours, theirs):
            for k in range(_WARM_UP):
                if (
                    caller is None
                    or caller.ask(bodies[k % len(bodies)], len(requests[k % len(bodies)]), traced=False).fault
                ):
                    break
        for k in range(max(calls, len(bodies))):
            at = k % len(bodies)
            body, count = bodies[at], len(requests[at])
            asked = theirs is not None and not theirs.silent
            first = theirs.ask(body, count) if theirs is not None and asked and k % 2 else None
            said = ours.ask(body, count)
            if theirs is not None and asked and first is None:
                first = theirs.ask(body, count)
            made.append(Call(at, said, first))
            if ours.silent:
                break
    return made


class _Caller:
    """One kept-alive connection to a server."""

    def __init__(self, server: Server, seconds: float) -> None:
        place = urlsplit(server.url)
        self._connection = http.client.HTTPConnection(place.hostname or "127.0.0.1", place.port, timeout=seconds)
        self._server, self._seconds = server, seconds
        self._unanswered = 0

    def __enter__(self) -> "_Caller":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    @property
    def silent(self) -> bool:
        """Whether it did not answer at all for so long that asking on is no use."""
        return self._unanswered >= _IN_A_ROW

    def ask(self, body: bytes, rows: int, *, traced: bool = True) -> Said:
        """One request of so many rows."""
        trace = secrets.token_hex(16)
        headers = {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {self._server.key}",
            "traceparent": f"00-{trace}-{secrets.token_hex(8)}-{'01' if traced else '00'}",
        }
        begun = time.perf_counter()
        try:
            self._connection.request("POST", "/v1/predict", body=body, headers=headers)
            response = self._connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            taken = time.perf_counter() - begun
            self._connection.close()
            self._unanswered += 1
            why = f"no answer within {self._seconds:g} s" if isinstance(error, TimeoutError) else self._broken(error)
            return Said(taken, None, fault=why, trace=trace)
        taken = time.perf_counter() - begun
        self._unanswered = 0
        if response.status != 200:
            return Said(taken, response.status, fault=f"HTTP {response.status}{_letter(content)}", trace=trace)
        try:
            return Said(taken, 200, rows=answers(content, rows), trace=trace)
        except ValueError as error:
            return Said(taken, 200, fault=str(error), trace=trace)

    def _broken(self, error: Exception) -> str:
        # What it said at its end may quote the rows that it was asked.
        code = self._server.exit_code(0.5)
        return f"the connection broke: {type(error).__name__}" + (
            "" if code is None else f"; the server ended with {code}"
        )


def answers(content: bytes, rows: int) -> tuple[Answer, ...]:
    """The answers in the body of a 200.

    Raises:
        ValueError: it is no JSON (NaN and infinities are none), or has not so many answers, or one has no number or label
            where one must be; the message says which.
    """
    try:
        document = json.loads(content, parse_constant=_no_constant)
        found = document["rows"]
        if not isinstance(found, list) or not all(isinstance(answer, dict) for answer in found):
            raise TypeError
    except (KeyError, TypeError) as error:
        raise ValueError("the answer has no list `rows` of objects") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the answer is no JSON: {str(error)[:100]}") from error
    if len(found) != rows:
        raise ValueError(f"{rows} rows were asked, but {len(found)} answered")
    for number, answer in enumerate(found):
        if where := undefined(answer):
            raise ValueError(f"row {number}: {where} is no number and no label")
    return tuple(found)


def undefined(answer: Mapping[str, Any]) -> str:
    """The first part of an answer that must say something and does not (null, NaN, infinite); empty when there is none."""
    if answer.get("prediction") is None:
        return "prediction"
    parts = ((name, answer.get(name)) for name in ("prediction", "probabilities", "interval"))
    return next((where for name, value in parts if value is not None and (where := _undefined(name, value))), "")


def _undefined(where: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return next((found for key, part in value.items() if (found := _undefined(f"{where}.{key}", part))), "")
    if isinstance(value, list):
        return next((found for k, part in enumerate(value) if (found := _undefined(f"{where}.{k}", part))), "")
    return where if value is None or (isinstance(value, float) and not math.isfinite(value)) else ""


def _rows(text: bytes) -> tuple[Row, ...]:
    """The rows of a line of the log; empty where it is cut or something else."""
    try:
        rows = json.loads(text, parse_constant=_no_constant)["rows"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ()
    return tuple(rows) if isinstance(rows, list) and all(isinstance(row, dict) for row in rows) else ()


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _letter(content: bytes) -> str:
    """Code, column and row of a refusal, as `: CODE, column NAME, row N`; empty where it has none.

    Never its message: that quotes what a caller sent, and what is said here goes into the ledger, from which nothing is taken away.
    """
    try:
        error = json.loads(content)["error"]
        code, column, row = error["code"], error.get("field"), error.get("row")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""
    parts = [code] if isinstance(code, str) and _WORD.fullmatch(code) else []
    parts += [f"column {column[:80]}"] if isinstance(column, str) and column else []
    parts += [f"row {row}"] if isinstance(row, int) else []
    return ": " + ", ".join(parts) if parts else ""
