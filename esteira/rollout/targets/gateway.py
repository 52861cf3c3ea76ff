"""Shifts the weights of two backends of a Kubernetes Gateway API HTTPRoute, by a patch that a newer object refuses.

The route's rules name the Services `esteira-serving` and `esteira-serving-challenger`; manifests/gateway/ is such a route.
Every rule that names both is shifted; others are left as they are. Weights are those of the API (gateway.networking.k8s.io/v1,
HTTPBackendRef): shares of their sum.
"""

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from esteira.errors import ConfigError, OutsideError
from esteira.rollout.split import Split

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

GROUP, VERSION, PLURAL = "gateway.networking.k8s.io", "v1", "httproutes"
CHAMPION, CHALLENGER = "esteira-serving", "esteira-serving-challenger"
WHOLE = 10_000
"""The sum of the two weights: a step is a hundredth of a percent, as in the router's buckets (H-40)."""
_TRIES = 5
_TIMEOUT = (2.0, 5.0)  # seconds to connect and to answer; the client takes no plain float


def parted(rules: Sequence[Mapping[str, Any]]) -> list[int]:
    """Positions of the rules that name both Services."""
    return [
        k for k, rule in enumerate(rules)
        if {CHAMPION, CHALLENGER} <= {_service(ref) for ref in rule.get("backendRefs") or ()}
    ]  # fmt: skip


def percent_of(rules: Sequence[Mapping[str, Any]]) -> float | None:
    """Percent that the challenger gets of what the two get; None when no rule names both, or the rules do not agree."""
    found = set()
    for k in parted(rules):
        weight = dict.fromkeys((CHAMPION, CHALLENGER), 0)
        for ref in rules[k]["backendRefs"]:
            if _service(ref) in weight:
                weight[_service(ref)] += _weight(ref)
        if not sum(weight.values()):
            return None
        found.add(round(100 * weight[CHALLENGER] / sum(weight.values()), 6))
    return found.pop() if len(found) == 1 else None


def shifted(rules: Sequence[Mapping[str, Any]], percent: float) -> list[dict[str, Any]]:
    """The rules with these weights where both Services are named; everything else as it was, the arguments too.

    Args:
        percent: 0 to 100, of the challenger.

    Raises:
        ConfigError: code `bad_percent`; it is no such number, or lies between 0 and a hundredth of a percent.
    """
    part = round(percent * WHOLE / 100) if 0 <= percent <= 100 else -1
    if part < 0 or (part in (0, WHOLE) and percent not in (0, 100)):
        raise ConfigError(
            f"a gateway's weights give 0 to 100 percent in steps of 0.01, but {percent:g} was asked",
            code="bad_percent",
            where="ESTEIRA_TARGET",
            cure="take a larger share for this stage",
        )
    wanted = {CHAMPION: WHOLE - part, CHALLENGER: part}
    moved = [dict(rule) for rule in rules]
    for k in parted(rules):
        moved[k]["backendRefs"] = [
            {**ref, "weight": wanted[_service(ref)]} if _service(ref) in wanted else dict(ref)
            for ref in rules[k]["backendRefs"]
        ]
    return moved


def unresolved(route: Mapping[str, Any]) -> str:
    """What a controller says against this very generation of a route, in words; empty when nothing.

    A backend that cannot be resolved gets its share of the requests all the same, and each is answered by 500.
    """
    generation = route["metadata"].get("generation")
    for parent in route.get("status", {}).get("parents") or ():
        for condition in parent.get("conditions") or ():
            about = condition.get("observedGeneration", generation) == generation
            if about and condition.get("type") in {"Accepted", "ResolvedRefs"} and condition.get("status") == "False":
                reason, message = condition.get("reason", ""), condition.get("message", "")
                return f"{condition['type']} is False: {reason} {message}".strip()[:300]
    return ""


class Gateway:
    """An HTTPRoute of the cluster that the service account or KUBECONFIG names.

    Args:
        namespace: of the route and of both Services.
        route: its name.
        patience: seconds that a challenger may take until it is ready when a rollout begins: its pods load what has just
            become the challenger.
    """

    name = "gateway"
    settle_seconds = 60.0
    # The API's weights know no unit.
    sticky = named = asks_again = False

    def __init__(self, namespace: str, route: str, *, patience: float = 20.0) -> None:
        self._namespace, self._route, self._patience = namespace, route, patience

    @property
    def place(self) -> str:
        """The route."""
        return f"gateway:{self._namespace}/{self._route}"

    @classmethod
    def parse(cls, place: str) -> Self:
        """The target that `NAMESPACE/NAME` names.

        Raises:
            ConfigError: code `bad_target`; it names none.
        """
        label = r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?"
        if re.fullmatch(f"{label}/{label}", place) is None:
            raise ConfigError(
                f"a gateway is named by the namespace and the name of an HTTPRoute, but got {place[:100]!r}",
                code="bad_target",
                where="ESTEIRA_TARGET",
                cure="write gateway:NAMESPACE/NAME, such as gateway:esteira-production/esteira",
            )
        namespace, _, route = place.partition("/")
        return cls(namespace, route)

    def share(self) -> float | None:
        """Percent by the route's weights; None when it cannot be read or its rules do not agree."""
        try:
            with _client() as api:
                return percent_of(_rules(self._get(api)))
        except OutsideError:
            return None

    def shift(self, split: Split | None, *, first: bool = False) -> None:
        """Patch the weights of the route as it is; when it changed in between (409), read it again and patch that.

        Raises:
            OutsideError: code `gateway_away`, `gateway_refused`, `gateway_conflict` (it changed at every try), `shift_unseen`,
                `no_cluster`, or `candidate_down`: a challenger without a ready endpoint, or one that the controller cannot resolve, gets no
                more than it has; taking from it always works.
            ConfigError: code `bad_percent`.
        """
        percent = 0.0 if split is None else split.percent
        with _client() as api:
            for _ in range(_TRIES):
                route = self._get(api)
                rules = _rules(route)
                self._refuse_unparted(rules)
                wanted = shifted(rules, percent)
                if wanted == rules:
                    return
                before = percent_of(rules)
                if percent and (before is None or percent > before):
                    self._await_candidate(api, route, self._patience if first else 0.0)
                after = self._patch(api, wanted, route["metadata"].get("resourceVersion"))
                if after is None:
                    continue
                if (seen := percent_of(_rules(after))) is None or abs(seen - percent) > 0.01:
                    raise self._error(
                        f"the route must give the challenger {percent:g} % afterwards, but it gives {seen} %",
                        code="shift_unseen",
                        cure="see whether an admission webhook or a GitOps controller owns these weights, and let it leave them",
                    )
                return
        raise self._error(
            f"the route can be patched as it was read, but somebody else changed it {_TRIES} times in between",
            code="gateway_conflict",
            cure="see who writes to it (kubectl get httproute -o yaml --show-managed-fields), then try again",
        )

    def _get(self, api: "ApiClient") -> dict[str, Any]:
        from kubernetes.client import CustomObjectsApi

        with self._errors():
            route = CustomObjectsApi(api).get_namespaced_custom_object(
                GROUP, VERSION, self._namespace, PLURAL, self._route, _request_timeout=_TIMEOUT
            )
        return self._route_of(route)

    def _patch(self, api: "ApiClient", rules: list[dict[str, Any]], version: str | None) -> dict[str, Any] | None:
        """The route after the patch; None when it is no longer the version that was read."""
        from kubernetes.client import ApiException, CustomObjectsApi

        # A merge patch replaces the list of rules whole; the resourceVersion sees to it that it is the list that was read.
        body = {"metadata": {"resourceVersion": version}, "spec": {"rules": rules}}
        with self._errors():
            try:
                route = CustomObjectsApi(api).patch_namespaced_custom_object(
                    GROUP, VERSION, self._namespace, PLURAL, self._route, body,
                    field_manager="esteira", field_validation="Strict", _request_timeout=_TIMEOUT,
                )  # fmt: skip
            except ApiException as error:
                if error.status == 409:
                    return None
                raise
        return self._route_of(route)

    def _is_ready(self, api: "ApiClient") -> bool:
        """Whether the challenger's Service has a ready endpoint."""
        from kubernetes.client import DiscoveryV1Api

        with self._errors():
            slices = DiscoveryV1Api(api).list_namespaced_endpoint_slice(
                self._namespace,
                label_selector=f"kubernetes.io/service-name={CHALLENGER}",
                _request_timeout=_TIMEOUT,
            )
        endpoints = [endpoint for found in slices.items for endpoint in found.endpoints or ()]
        # Kubernetes' own reading of a condition that is not set: it is ready.
        return any(endpoint.conditions is None or endpoint.conditions.ready in (True, None) for endpoint in endpoints)

    def _route_of(self, said: Any) -> dict[str, Any]:
        """The client gives what is no JSON as text."""
        if isinstance(said, dict) and isinstance(said.get("metadata"), dict):
            return said
        raise self._error(
            f"the cluster answers with an object, but it said: {str(said)[:100]!r}",
            code="gateway_refused",
            cure="see that KUBECONFIG names an API server and no other page",
        )

    def _refuse_unparted(self, rules: Sequence[Mapping[str, Any]]) -> None:
        if not parted(rules):
            raise self._error(
                f"a rule of the route names the Services {CHAMPION} and {CHALLENGER}, but none of its {len(rules)} does",
                code="gateway_refused",
                cure="see manifests/gateway/httproute.yaml for such a route",
            )

    def _await_candidate(self, api: "ApiClient", route: Mapping[str, Any], seconds: float) -> None:
        """A gateway answers 503 for a Service without endpoints and asks no other; so there must be one before there is traffic."""
        why = unresolved(route)
        until = time.monotonic() + seconds
        while not why:
            if self._is_ready(api):
                return
            if time.monotonic() >= until:
                why = f"Service {CHALLENGER} has no ready endpoint"
            else:
                time.sleep(0.5)
        raise self._error(
            f"a share of traffic is given to a candidate that is up, but {why}",
            code="candidate_down",
            cure="see that the challenger's pods are ready, then try again; the weights are as they were",
        )

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """What the client raises, as a letter."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            yield
        except ApiException as error:
            if not error.status:  # its own connection failed (TLS)
                raise self._away(error) from error
            cures = {
                401: "renew the credentials of the service account or of KUBECONFIG",
                403: "give the service account the Role of manifests/gateway/role.yaml",
                404: "see that the Gateway API is installed and that the route's namespace and name are right (ESTEIRA_TARGET)",
            }
            busy = error.status == 429 or error.status >= 500
            raise self._error(
                f"the cluster takes what the rollout asks of it, but it said {error.status}: {_message(error)}",
                code="gateway_away" if busy else "gateway_refused",
                cure=cures.get(error.status, "see the cluster's words; the weights are as they were"),
            ) from error
        except (HTTPError, OSError, ValueError) as error:  # away, or no JSON where an object was to be
            raise self._away(error) from error

    def _away(self, error: Exception) -> OutsideError:
        return self._error(
            f"the cluster answers, but: {type(error).__name__}: {str(error)[:200]}",
            code="gateway_away",
            cure="see that the API server can be reached from here; then try again",
        )

    def _error(self, message: str, *, code: str, cure: str) -> OutsideError:
        return OutsideError(message, code=code, where=f"HTTPRoute {self._namespace}/{self._route}", cure=cure)


@contextlib.contextmanager
def _client() -> "Iterator[ApiClient]":
    """A client of its own, closed afterwards: the service account's where there is one, else KUBECONFIG's; it retries nothing.

    Raises:
        OutsideError: code `no_cluster`; nothing names a cluster.
    """
    import yaml
    from kubernetes import client, config

    # Not the library's default configuration, which all of a process would share.
    settings = client.Configuration()
    try:
        try:
            config.load_incluster_config(client_configuration=settings)
        except config.ConfigException:
            # By name: the library reads KUBECONFIG only when it is imported.
            config.load_kube_config(
                config_file=os.environ.get("KUBECONFIG") or None, client_configuration=settings, persist_config=False
            )
    except (config.ConfigException, OSError, ValueError, yaml.YAMLError) as error:
        raise OutsideError(
            f"a cluster is named by the pod's service account or by KUBECONFIG, but: {str(error)[:200]}",
            code="no_cluster",
            where="ESTEIRA_TARGET=gateway:...",
            cure="run in the cluster, or set KUBECONFIG; or take another target",
        ) from error
    settings.retries = False  # the engine tries again, and says so
    with client.ApiClient(configuration=settings) as api:
        yield api


def _rules(route: Mapping[str, Any]) -> list[dict[str, Any]]:
    rules = route.get("spec", {}).get("rules")
    return rules if isinstance(rules, list) else []


def _service(ref: Mapping[str, Any]) -> str:
    """The Service that a reference names; empty when it names something else, or one of another namespace."""
    if ref.get("kind", "Service") != "Service" or ref.get("group", "") != "" or "namespace" in ref:
        return ""
    return str(ref.get("name", ""))


def _weight(ref: Mapping[str, Any]) -> int:
    """Of a reference; 1 where it says none."""
    weight = ref.get("weight", 1)
    return 1 if weight is None else int(weight)


def _message(error: Any) -> str:
    """The words of a Status object, else the reason phrase."""
    with contextlib.suppress(ValueError, TypeError):
        said = json.loads(error.body)
        if isinstance(said, dict) and said.get("message"):
            return str(said["message"])[:300]
    return str(error.reason)[:300]
