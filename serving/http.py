"""The HTTP API as a small ASGI application around Bento's own: our routes are answered here, the rest is handed in with a key.

It stands outside Bento's middlewares (measured five to nine times the requests a second of an app mounted inside), so it does
itself what they would: limits, the key, metrics, one shape of errors. It loads no model and opens no database.
"""

import asyncio
import logging
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from esteira.errors import EsteiraError
from serving import batching, routes
from serving.accounts import Accounts
from serving.answering import Answering, Pace, TimedOut
from serving.asgi import Asgi, Message, Receive, Scope, Send
from serving.body import Bodies, GoneError, Limits
from serving.cache import AnswerCache
from serving.deployed import Deployed
from serving.deployments import Deployment
from serving.faults import worded
from serving.gate import Gate
from serving.inner import HalfSentError, ask_bento
from serving.keys import Keys
from serving.metrics import PERIOD, Metrics
from serving.observe import Observer
from serving.openapi import describe_api
from serving.outside import Outside, away
from serving.predictor import Predictor
from serving.problems import JSON, Headers, Problem, encode, send_json, send_problem
from serving.records import Recorder
from serving.routes import Route
from serving.split import SplitAnswering

if TYPE_CHECKING:
    from serving.arms import Arms
    from serving.control import Control
    from serving.faults import Faults
    from serving.feedback import Feedback
    from serving.health import Health
    from serving.jobs import Jobs
    from serving.request_log import RequestLog
    from serving.splits import Live, Splits

_log = logging.getLogger("serving")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_LATER: Headers = ((b"retry-after", b"5"),)
_CLOSE: Headers = ((b"connection", b"close"),)
_ARMS = {"candidate": (b"x-esteira-arm", b"candidate"), "control": (b"x-esteira-arm", b"control")}


class Api:
    """The ASGI application.

    Args:
        deployed: what each line serves.
        keys: who may call.
        inner: Bento's own application; gets the life span, and every other route once the key is right.
        metrics: counters.
        recorder: where records of predictions go; None keeps none.
        limits: of one request.
        gate, pace, cache: how many are answered at once, how, and what is kept of it.
        health: what this service needs; asked by /readyz and /health.
        jobs: answers the routes of batch predictions.
        splits: which lines have a split; `arms` count what its two versions do.
        feedback: takes truths.
        requests: keeps answered requests for rehearsals.
        control: steers rollouts and shows versions; None where nothing is registered.
        observers: told of every request that was answered.
        faults: told of exceptions that nobody expected.
        start, stop: called in a thread when the life span starts and ends; a `start` that raises ends the service.
        started: called in the loop once requests are taken.

    Attributes:
        in_flight: HTTP requests that are being answered, of every kind.
    """

    def __init__(
        self,
        deployed: Deployed,
        keys: Keys,
        inner: Asgi,
        *,
        metrics: Metrics,
        recorder: Recorder | None = None,
        limits: Limits | None = None,
        gate: Gate | None = None,
        pace: Pace | None = None,
        cache: AnswerCache | None = None,
        health: "Health | None" = None,
        jobs: "Jobs | None" = None,
        splits: "Splits | None" = None,
        arms: "Arms | None" = None,
        feedback: "Feedback | None" = None,
        requests: "RequestLog | None" = None,
        control: "Control | None" = None,
        observers: Sequence[Observer] = (),
        faults: "Faults | None" = None,
        start: Callable[[], None] = lambda: None,
        started: Callable[[], None] = lambda: None,
        stop: Callable[[], None] = lambda: None,
    ) -> None:
        self.limits = limits or Limits()
        self.in_flight = 0
        self._deployed = deployed
        self._keys = keys
        self._inner = inner
        self._metrics = metrics
        self._recorder = recorder
        self._bodies = Bodies(self.limits)
        pace = pace or Pace()
        gate = gate or Gate(100, 100, 10.0)
        self._answering = Answering(gate, metrics, self.limits.rows, pace=pace, cache=cache)
        self._accounts = Accounts(metrics, recorder, observers, faults)
        self._health, self._jobs, self._feedback, self._requests = health, jobs, feedback, requests
        self._control = control
        self._split = SplitAnswering(self._answering, splits, arms, metrics, faults) if splits and arms else None
        self._live: Mapping[str, Live] = {} if self._split is None else self._split.live
        self._arms = arms
        self._start, self._started, self._stop = start, started, stop
        self._routes = routes.table(deployed.lines)
        self._alive = self._draining = False
        # Of this process and seeded by the system; a system call for each request id would cost three times as much.
        self._some = random.Random().getrandbits
        self._closing: Headers = ()
        self._pages = ThreadPoolExecutor(1, thread_name_prefix="metrics-page")
        # Threads that models, the registry and batch predictions cannot take; the last have their own.
        self._life = ThreadPoolExecutor(1, thread_name_prefix="life")
        self._outside = Outside(pace.seconds)
        self._described: tuple[Mapping[str, Deployment], bytes] | None = None
        metrics.ask(self._numbers)

    @property
    def bodies(self) -> int:
        """Bytes of the bodies that are being read or answered."""
        return self._bodies.bytes

    @property
    def ready(self) -> bool:
        """Whether /readyz says 200."""
        health = self._health
        return self._alive and not self._draining and self._deployed.ready and (health is None or health.ready)

    def drain(self) -> None:
        """Be no longer ready, and end each connection with its next answer. Safe from any thread."""
        self._draining = True
        self._closing = _CLOSE

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http":
            self.in_flight += 1
            try:
                await self._http(scope, receive, send)
            finally:
                self.in_flight -= 1
        elif kind == "lifespan":
            await self._lifespan(scope, receive, send)
        elif kind == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            raise RuntimeError(f"an ASGI scope is http, lifespan or websocket, but got {kind!r}")

    # Life

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._life, self._start)
        except Exception as error:  # noqa: BLE001 - uvicorn would serve on without a life span; it must not
            await receive()
            await send({"type": "lifespan.startup.failed", "message": worded(error)})
            return
        timer = loop.call_later(PERIOD, lambda: None)
        stopped = False

        def count() -> None:
            nonlocal timer
            self._metrics.flush()
            timer = loop.call_later(PERIOD, count)

        async def end() -> None:
            nonlocal stopped
            if stopped:
                return
            stopped = True
            self._alive = False
            timer.cancel()
            await loop.run_in_executor(self._life, self._stop)
            self._metrics.flush()
            self._pages.shutdown(wait=False)
            self._answering.close()
            if self._split is not None:
                self._split.close()
            self._life.shutdown(wait=False)

        async def watched(message: Message) -> None:
            kind = message["type"]
            if kind.startswith("lifespan.shutdown."):
                await end()  # before the word is passed on: once the server has it, it waits for nobody
            await send(message)
            if kind == "lifespan.startup.complete":
                self._alive = True
                count()
                self._started()

        try:
            await self._inner(scope, receive, watched)
        finally:
            await end()

    def _numbers(self) -> Mapping[str, float]:
        """What the metrics page tells besides requests."""
        gate, cache, recorder = self._answering.gate, self._answering.cache, self._recorder
        calls, rows, requests = batching.totals()
        numbers: dict[str, float] = {
            "in_flight": self.in_flight, "slots": gate.inside, "waiting": gate.waiting,
            "batch_calls": calls, "batch_rows": rows, "batch_requests": requests,
        }  # fmt: skip
        if cache is not None:
            numbers |= {
                "cache_hits": cache.hits, "cache_misses": cache.misses, "cache_bytes": cache.bytes,
                "cache_entries": cache.entries,
            }  # fmt: skip
        if recorder is not None:
            numbers |= {
                "records_written": recorder.written, "records_waiting": recorder.waiting,
                "records_dropped": recorder.dropped, "record_failures": recorder.failures,
            }  # fmt: skip
        if self._arms is not None:
            numbers |= {"arms_dropped": self._arms.dropped, "arms_failures": self._arms.failures}
        return numbers

    # One request

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = time.perf_counter()
        path: str = scope["path"]
        route = self._routes.get(path) or self._other(path)
        headers: dict[bytes, bytes] = dict(scope["headers"])
        given = headers.get(b"x-request-id")
        request_id = given if given is not None and _REQUEST_ID.fullmatch(given) else b"%032x" % self._some(128)
        status, rows, size = 499, 0, 0  # until it is answered
        predictor: Predictor | None = None
        try:
            if route.name in ("livez", "readyz"):
                status = await self._probe(route.name, scope["method"], send)
                return
            role = self._keys.role(headers.get(b"authorization"))
            if role is None:
                route = Route(route.name)  # whoever has no key moves no counter of a line, and leaves no record
                raise Problem(
                    401, "unauthorized", "send the key as 'Authorization: Bearer KEY'",
                    headers=[(b"www-authenticate", b"Bearer")],
                )  # fmt: skip
            if len(headers) != len(scope["headers"]):
                routes.refuse_twice(scope["headers"])
            if route.name == "predict":
                if scope["method"] != "POST":
                    routes.must_be(scope, "POST")
                query = scope.get("query_string", b"")
                predictor = None if query else self._deployed.loaded(route.line)
                spent = 0.0
                if predictor is None:
                    predictor = await self._predictor(route.line, query, role)
                    spent = time.perf_counter() - begun
                routes.must_be_json(headers)
                body = await self._bodies.read(receive, routes.declared_length(headers), asked=b"expect" in headers)
                room = len(body)
                live = self._live.get(route.line)
                arm = None
                try:
                    if live is None or query or self._split is None:
                        answer, rows = await self._answering.answer(predictor, body, request_id, receive, spent)
                    else:
                        unit = headers.get(b"x-unit-id")
                        answer, rows, predictor, arm = await self._split.answer(
                            live,
                            predictor,
                            body,
                            request_id,
                            receive,
                            unit=unit,
                            told=headers.get(b"x-esteira-arm"),
                            spent=spent,
                        )
                except TimedOut as late:
                    if late.call is not None:
                        self._bodies.hold(room, late.call)
                        room = 0
                    raise
                finally:
                    self._bodies.bytes -= room
                status, size = 200, len(answer)
                if self._requests is not None and not query:
                    self._requests.put(route.line, request_id, headers.get(b"x-unit-id"), body)
                more = self._closing if arm is None else (_ARMS[arm], *self._closing)
                await send_json(send, 200, answer, request_id, JSON, more)
            elif route.name == "bento":
                status, size = await ask_bento(self._inner, scope, receive, send, request_id, self._closing)
            else:
                status, content_type, answer = await self._page(route, scope, headers, receive, role, request_id)
                size = len(answer)
                await send_json(send, status, answer, request_id, content_type, self._closing)
        except Problem as problem:
            status = problem.status
            size = await send_problem(send, problem, request_id, self._closing)
        except GoneError:
            pass
        except Exception as error:
            if size or status == 200 or isinstance(error, HalfSentError):  # it was answered, or half of it
                raise
            told = self._accounts.unexpected(error, route.line, predictor, request_id)
            status = told.status
            size = await send_problem(send, told, request_id, self._closing)
        finally:
            seconds = time.perf_counter() - begun
            self._accounts.settle(
                route, predictor, self._deployed.now, status, rows, seconds, size, scope["method"], request_id, headers
            )

    def _other(self, path: str) -> Route:
        """The route of a path that is in no table."""
        if self._jobs is not None and self._jobs.takes(path):
            return routes.BATCH_PREDICT if path.endswith("/batch-predict") else routes.BATCH_PREDICTIONS
        if path.startswith("/v1/models/") and path.count("/") == 3:
            return routes.MODELS
        return routes.NONE if path.startswith("/v1/") else routes.BENTO

    async def _probe(self, name: str, method: str, send: Send) -> int:
        """/livez and /readyz: open to everybody, and without a word."""
        headers = [(b"content-length", b"0"), *self._closing]
        if method in ("GET", "HEAD"):
            status = 200 if name == "livez" or self.ready else 503
        else:
            status = 405
            headers.append((b"allow", b"GET, HEAD"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b""})
        return status

    async def _predictor(self, line: str, query: bytes, role: str) -> Predictor:
        number = routes.version_of(query) if query else None
        predictor = self._deployed.loaded(line, number)
        if predictor is not None:
            return predictor
        if number is not None and role != "operator" and not self._deployed.serves(line, number):
            raise Problem(
                403, "not_deployed", f"version {number} is not deployed; only an operator may ask for it", field="version"
            )  # fmt: skip
        try:
            if number is not None or line in self._deployed.now:
                predictor = await self._outside.ask(partial(self._deployed.predictor, line, number))
        except EsteiraError as error:
            _log.warning("line %s cannot answer: %s", line, worded(error))
            raise Problem(
                503, error.code, f"line {line} has no model that can be loaded now", headers=_LATER
            ) from error
        if predictor is None and number is not None:
            raise Problem(404, "unknown_version", f"line {line} has no version {number}", field="version")
        if predictor is None:
            state = self._deployed.states().get(line, {})
            if state.get("state") == "failed":
                raise Problem(
                    503, str(state["why"]), f"line {line} has a release that cannot be loaded now", headers=_LATER
                )
            raise Problem(503, "no_model", f"line {line} has no released model", headers=_LATER)
        return predictor

    async def _page(
        self, route: Route, scope: Scope, headers: Mapping[bytes, bytes], receive: Receive, role: str, request_id: bytes
    ) -> tuple[int, bytes, bytes]:
        """Status, content type and body of everything but predictions."""
        if self._jobs is not None and route in (routes.BATCH_PREDICT, routes.BATCH_PREDICTIONS):
            # One that was made here is of this request alone.
            given = request_id.decode() if headers.get(b"x-request-id") == request_id else ""
            body = await self._bodies.read(receive, routes.declared_length(headers), asked=b"expect" in headers)
            try:
                async with asyncio.timeout(self._outside.seconds) as limit:
                    status, document = await self._jobs.handle(scope["method"], scope["path"], body, role, given)
            except TimeoutError as error:
                if not limit.expired():
                    raise
                raise away() from error
            finally:
                self._bodies.bytes -= len(body)
            return status, JSON, encode(document)
        if route.name == "feedback" and self._feedback is not None:
            routes.must_be(scope, "POST")
            return 200, JSON, encode(await self._labelled(self._feedback, route.line, headers, receive))
        if route.name in ("rollout", "models"):
            if self._control is None:
                raise routes.no_registry()
            return 200, JSON, encode(await self._control.answer(route, scope, headers, receive))
        if route.name in ("none", "feedback") or (route.name == "health" and self._health is None):
            raise routes.unknown(scope["path"], self._deployed.lines)
        routes.must_be(scope, "GET")
        if route.name == "health" and self._health is not None:
            status, document = self._health.report()
            return status, JSON, encode(document)
        if route.name == "model":
            predictor = await self._predictor(route.line, scope.get("query_string", b""), role)
            return 200, JSON, encode(predictor.describe())
        if route.name == "openapi":
            return 200, JSON, self._description()
        content_type, text = await asyncio.get_running_loop().run_in_executor(self._pages, self._metrics.page)
        return 200, content_type, text

    async def _labelled(
        self, feedback: "Feedback", line: str, headers: Mapping[bytes, bytes], receive: Receive
    ) -> Mapping[str, object]:
        """What a truth that came was counted as."""
        routes.must_be_json(headers)
        predictor = await self._predictor(line, b"", "caller")
        body = await self._bodies.read(receive, routes.declared_length(headers), asked=b"expect" in headers)
        try:
            return await self._outside.ask(partial(feedback.take, line, body, predictor.manifest))
        finally:
            self._bodies.bytes -= len(body)

    def _description(self) -> bytes:
        """The document of the API; made again only when a line moved."""
        now = self._deployed.now
        if self._described is not None and self._described[0] is now:
            return self._described[1]
        predictors = {name: self._deployed.loaded(name) for name in self._deployed.lines}
        document = describe_api(
            {name: (found.manifest.get("schema") if found else None) for name, found in predictors.items()},
            self.limits.rows,
            examples={
                name: {**found.example, "envelope": found.envelope} if found and found.example else None
                for name, found in predictors.items()
            },
            jobs=self._jobs is not None,
            health=self._health is not None,
            feedback=self._feedback is not None,
            control=self._control is not None,
        )
        text = encode(document)
        # A model that was evicted will be back, and then more is known of its line.
        if all(predictors[line] is not None for line in now):
            self._described = (now, text)
        return text
