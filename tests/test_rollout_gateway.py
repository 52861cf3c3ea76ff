"""The Gateway API target: it patches two weights and nothing else, never over somebody else's change, and says what the cluster says."""

import copy
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from esteira.errors import ConfigError, OutsideError
from esteira.rollout.split import Split
from esteira.rollout.state import Side
from esteira.rollout.targets import gateway
from esteira.rollout.targets.gateway import CHALLENGER, CHAMPION, Gateway, parted, percent_of, shifted, unresolved
from tests.gateway_fake import NAME, NAMESPACE, ROUTE, SLICES, Cluster, complaint, running

MANIFESTS = Path(__file__).resolve().parents[1] / "manifests" / "gateway"


def split(percent: float) -> Split:
    return Split("test-1", "salt", percent, 0, Side(1, "a" * 64), Side(2, "b" * 64))


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    file = tmp_path / "kubeconfig"
    with running(file) as found:
        monkeypatch.setenv("KUBECONFIG", str(file))
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        yield found


@pytest.fixture
def target() -> Gateway:
    return Gateway(NAMESPACE, NAME, patience=5.0)


# The rules of a route: values in, values out


def refs(*weights: int | None) -> list[dict[str, Any]]:
    names = (CHAMPION, CHALLENGER, "other")
    return [
        {"name": name, "port": 80, **({} if weight is None else {"weight": weight})}
        for name, weight in zip(names, weights, strict=False)
    ]


@given(st.integers(1, 9_999))
def test_a_share_in_hundredths_of_a_percent_comes_back_as_it_was_and_nothing_else_changes(part: int) -> None:
    rules = [{"matches": [{"path": {"value": "/v1/"}}], "backendRefs": refs(3, 4, 5)}, {"backendRefs": refs(1)}]
    before = copy.deepcopy(rules)

    moved = shifted(rules, part / 100)

    assert part / 100 == pytest.approx(percent_of(moved) or -1)
    assert before == rules
    assert before[0]["matches"] == moved[0]["matches"]
    assert before[1] == moved[1]
    assert 5 == moved[0]["backendRefs"][2]["weight"]
    assert moved == shifted(moved, part / 100)


@pytest.mark.parametrize("percent", [-1, 101, 0.001, 99.9999, float("nan"), float("inf")])
def test_a_percent_that_the_weights_do_not_express_is_refused(percent: float) -> None:
    with pytest.raises(ConfigError) as refused:
        shifted([{"backendRefs": refs(1, 1)}], percent)
    assert "bad_percent" == refused.value.code


def test_a_reference_without_a_weight_counts_as_one_and_rules_that_do_not_agree_have_no_share() -> None:
    assert 50.0 == percent_of([{"backendRefs": refs(None, None)}])
    assert percent_of([{"backendRefs": refs(1, 1)}, {"backendRefs": refs(9, 1)}]) is None
    assert percent_of([{"backendRefs": refs(0, 0)}]) is None
    assert percent_of([]) is None


def test_only_services_of_this_namespace_count() -> None:
    odd = [{**ref, "namespace": "elsewhere"} for ref in refs(1, 1)]
    bucket = [refs(1, 1)[0], {**refs(1, 1)[1], "kind": "Bucket", "group": "example.org"}]

    assert [1] == parted([{"backendRefs": odd}, {"backendRefs": refs(1, 1)}, {"backendRefs": bucket}, {"filters": []}])


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        (
            {"type": "ResolvedRefs", "status": "False", "reason": "BackendNotFound", "observedGeneration": 4},
            "BackendNotFound",
        ),
        (
            {"type": "Accepted", "status": "False", "reason": "NoMatchingParent", "observedGeneration": 4},
            "NoMatchingParent",
        ),
        ({"type": "ResolvedRefs", "status": "False", "reason": "BackendNotFound", "observedGeneration": 3}, ""),
        ({"type": "ResolvedRefs", "status": "True", "reason": "ResolvedRefs", "observedGeneration": 4}, ""),
        ({"type": "Programmed", "status": "False", "reason": "Pending", "observedGeneration": 4}, ""),
    ],
    ids=["not-found", "not-accepted", "of-an-older-generation", "resolved", "another-condition"],
)
def test_a_controller_is_heard_about_this_generation_only(condition: dict[str, Any], said: str) -> None:
    route = {"metadata": {"generation": 4}, "status": {"parents": [{"conditions": [condition]}]}}

    assert said in unresolved(route)
    assert bool(said) == bool(unresolved(route))


# Against an API server


def test_a_shift_patches_both_weights_by_the_version_that_was_read_and_touches_nothing_else(
    cluster: Cluster, target: Gateway
) -> None:
    before = copy.deepcopy(cluster.route)

    assert 0.0 == target.share()
    target.shift(split(10))

    assert [9000, 1000] == cluster.weights()
    assert 10.0 == target.share()
    assert [("GET", ROUTE), ("GET", ROUTE), ("GET", SLICES), ("PATCH", ROUTE), ("GET", ROUTE)] == [
        (verb, path) for verb, path, _ in cluster.asked
    ]
    (patch,) = cluster.patches
    assert {"metadata", "spec"} == set(patch)
    assert {"resourceVersion": "100"} == patch["metadata"]
    for side in (before, cluster.route):
        for ref in side["spec"]["rules"][0]["backendRefs"]:
            del ref["weight"]
    assert before["spec"] == cluster.route["spec"]


def test_shifting_again_asks_and_writes_nothing(cluster: Cluster, target: Gateway) -> None:
    for percent in (25, 25, 50, 50):
        target.shift(split(percent))
    target.shift(None)
    target.shift(None)

    assert 3 == len(cluster.patches)
    assert [10000, 0] == cluster.weights()


def test_a_route_that_somebody_else_changed_is_read_again_and_their_change_stays(
    cluster: Cluster, target: Gateway
) -> None:
    changes = iter(range(2))

    def somebody() -> None:
        if next(changes, None) is not None:
            cluster.touch(lambda route: route["spec"].setdefault("hostnames", []).append("ml.example.org"))

    cluster.before_patch = somebody
    target.shift(split(10))

    assert [9000, 1000] == cluster.weights()
    assert ["ml.example.org"] * 2 == cluster.route["spec"]["hostnames"]
    assert 3 == len(cluster.patches)


def test_a_route_that_never_stands_still_is_told_and_left_alone(cluster: Cluster, target: Gateway) -> None:
    cluster.before_patch = lambda: cluster.touch(lambda _: None)

    with pytest.raises(OutsideError) as conflict:
        target.shift(split(10))

    assert "gateway_conflict" == conflict.value.code
    assert [10000, 0] == cluster.weights()
    assert 5 == len(cluster.patches)


@pytest.mark.parametrize(
    "endpoints", [[], [{"addresses": ["10.0.0.9"], "conditions": {"ready": False}}]], ids=["none", "unready"]
)
def test_a_candidate_without_a_ready_endpoint_gets_no_more_and_always_less(
    cluster: Cluster, target: Gateway, endpoints: list[Any]
) -> None:
    target.shift(split(25))
    cluster.endpoints = endpoints

    with pytest.raises(OutsideError) as down:
        target.shift(split(50))
    assert "candidate_down" == down.value.code
    assert 25.0 == target.share()

    target.shift(split(10))
    target.shift(None)
    assert [10000, 0] == cluster.weights()


def test_a_backend_that_the_controller_cannot_resolve_gets_nothing(cluster: Cluster, target: Gateway) -> None:
    condition = {"type": "ResolvedRefs", "status": "False", "reason": "BackendNotFound", "message": "no such Service"}
    cluster.route["status"] = {"parents": [{"conditions": [condition]}]}

    with pytest.raises(OutsideError) as down:
        target.shift(split(10))

    assert "candidate_down" == down.value.code
    assert "BackendNotFound" in down.value.message


def test_a_challenger_without_a_share_is_waited_for_while_its_pods_load_and_not_for_ever(
    cluster: Cluster, target: Gateway
) -> None:
    """A rollout's start names the challenger; its pods are ready some seconds later."""
    cluster.endpoints = []
    threading.Timer(0.7, lambda: cluster.endpoints.append({"addresses": ["10.0.0.9"]})).start()

    target.shift(split(10), first=True)

    assert [9000, 1000] == cluster.weights()
    cluster.endpoints = []
    target.shift(None)
    with pytest.raises(OutsideError) as down:
        Gateway(NAMESPACE, NAME, patience=0.1).shift(split(10), first=True)
    assert "candidate_down" == down.value.code


def test_after_the_start_nobody_waits_for_a_challenger_that_is_not_ready(cluster: Cluster) -> None:
    """A look that waited would keep those of all other lines waiting."""
    cluster.endpoints = []
    began = time.monotonic()
    with pytest.raises(OutsideError) as down:
        Gateway(NAMESPACE, NAME, patience=60.0).shift(split(10))
    assert "candidate_down" == down.value.code
    assert time.monotonic() - began < 30


def test_an_endpoint_that_says_nothing_of_its_readiness_is_ready(cluster: Cluster, target: Gateway) -> None:
    cluster.endpoints = [{"addresses": ["10.0.0.9"]}]

    target.shift(split(10))

    assert [9000, 1000] == cluster.weights()


@pytest.mark.parametrize(
    ("failure", "code"),
    [(401, "gateway_refused"), (403, "gateway_refused"), (404, "gateway_refused"), (422, "gateway_refused"), (429, "gateway_away"),
     (500, "gateway_away"), (503, "gateway_away"), ("drop", "gateway_away"), ("garbage", "gateway_refused")],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("when", ["reading", "patching"])
def test_whatever_fails_is_told_with_its_cure_and_the_weights_stay(
    cluster: Cluster, target: Gateway, failure: Any, code: str, when: str
) -> None:
    cluster.failures.extend([failure] if when == "reading" else [None, None, failure])

    with pytest.raises(OutsideError) as told:
        target.shift(split(10))

    assert code == told.value.code
    assert f"{NAMESPACE}/{NAME}" in told.value.where
    assert told.value.cure
    assert [10000, 0] == cluster.weights()
    if isinstance(failure, int):
        assert f"made to say {failure}" in told.value.message
    target.shift(split(10))
    assert 10.0 == target.share()


def test_a_share_that_cannot_be_read_is_none(cluster: Cluster, target: Gateway) -> None:
    cluster.failures.extend([503, "drop", "garbage", 404])
    assert [None] * 4 == [target.share() for _ in range(4)]
    assert Gateway("elsewhere", NAME).share() is None


def test_a_gateway_that_hangs_is_given_up(cluster: Cluster, target: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "_TIMEOUT", (0.3, 0.3))
    cluster.failures.append("hang")

    with pytest.raises(OutsideError) as away:
        target.shift(split(10))

    assert "gateway_away" == away.value.code


def test_an_answer_that_does_not_show_the_weights_is_no_success(cluster: Cluster, target: Gateway) -> None:
    """A GitOps controller, or a webhook, that puts them back."""
    cluster.failures.extend([None, None, "ignore"])

    with pytest.raises(OutsideError) as unseen:
        target.shift(split(10))

    assert "shift_unseen" == unseen.value.code


def test_a_route_without_both_services_is_told(cluster: Cluster, target: Gateway) -> None:
    cluster.route["spec"]["rules"].pop(0)

    assert target.share() is None
    with pytest.raises(OutsideError) as refused:
        target.shift(None)
    assert "gateway_refused" == refused.value.code
    assert not cluster.patches


def test_without_a_cluster_there_is_a_letter(target: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nothing"))
    assert target.share() is None
    with pytest.raises(OutsideError) as away:
        target.shift(split(10))
    assert "no_cluster" == away.value.code

    (tmp_path / "broken").write_text("{")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "broken"))
    with pytest.raises(OutsideError):
        target.shift(split(10))


def test_an_address_where_nobody_listens_is_away(
    cluster: Cluster, target: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (tmp_path / "kubeconfig").read_text().replace(cluster.address, "http://127.0.0.1:1")
    (tmp_path / "elsewhere").write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "elsewhere"))

    with pytest.raises(OutsideError) as away:
        target.shift(split(10))

    assert "gateway_away" == away.value.code
    assert target.share() is None


def test_the_fake_refuses_what_the_real_one_refuses(cluster: Cluster) -> None:
    """Unknown fields, weights out of range, a stale version, another content type, another verb, another path, no token."""
    import urllib3

    from tests.gateway_fake import TOKEN

    pool = urllib3.PoolManager(retries=False)

    def ask(verb: str, path: str, body: Any = None, **headers: str) -> int:
        sent = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/merge-patch+json", **headers}
        return pool.request(verb, cluster.address + path, json=body, headers=sent).status

    rules = cluster.route["spec"]["rules"]
    assert 422 == ask("PATCH", ROUTE, {"spec": {"rules": [{**rules[0], "weights": []}]}})
    assert 422 == ask("PATCH", ROUTE, {"spec": {"rules": shifted_raw(rules, -1)}})
    assert 422 == ask("PATCH", ROUTE, {"spec": {"rules": shifted_raw(rules, 1_000_001)}})
    assert 422 == ask("PATCH", ROUTE, {"spec": {"rules": []}})
    assert 409 == ask("PATCH", ROUTE, {"metadata": {"resourceVersion": "99"}})
    assert 415 == ask("PATCH", ROUTE, {}, **{"Content-Type": "application/strategic-merge-patch+json"})
    assert 400 == ask("PATCH", ROUTE + "?pretty=x", {})
    assert 405 == ask("PUT", ROUTE, {})
    assert 404 == ask("GET", ROUTE + "s")
    assert 401 == ask("GET", ROUTE, Authorization="Bearer wrong")
    assert 200 == ask("PATCH", ROUTE, {"metadata": {"resourceVersion": "100"}})
    pool.clear()


def shifted_raw(rules: list[Any], weight: int) -> list[Any]:
    moved = copy.deepcopy(rules)
    moved[0]["backendRefs"][1]["weight"] = weight
    return moved


# The manifests


def test_the_shipped_route_is_one_that_the_target_can_shift() -> None:
    route = yaml.safe_load((MANIFESTS / "httproute.yaml").read_text(encoding="utf-8"))

    assert not complaint(route)
    rules = route["spec"]["rules"]
    assert 0.0 == percent_of(rules)
    assert 10.0 == percent_of(shifted(rules, 10))
    assert shifted(rules, 0) == rules, "taking all traffic back leaves the file as it is"
    for rule in rules:
        removed = [name for one in rule["filters"] for name in one["requestHeaderModifier"]["remove"]]
        assert "x-esteira-arm" in removed, "no caller says whose its request is"


def test_the_shipped_role_allows_what_the_target_asks_and_no_more() -> None:
    import kubernetes_validate

    objects = {one["kind"]: one for one in yaml.safe_load_all((MANIFESTS / "role.yaml").read_text(encoding="utf-8"))}
    for one in objects.values():
        kubernetes_validate.validate(one, "1.32", strict=True)
    rules = objects["Role"]["rules"]
    route = yaml.safe_load((MANIFESTS / "httproute.yaml").read_text(encoding="utf-8"))

    assert {("httproutes", "get"), ("httproutes", "patch"), ("endpointslices", "list")} == {
        (resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]
    }
    assert [route["metadata"]["name"]] == rules[0]["resourceNames"]
    assert objects["Role"]["metadata"]["name"] == objects["RoleBinding"]["roleRef"]["name"]


@pytest.fixture(scope="module")
def rendered() -> list[dict[str, Any]]:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("needs kubectl on PATH: `kubectl kustomize` is what renders it")
    done = subprocess.run([kubectl, "kustomize", str(MANIFESTS)], capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def test_two_services_are_rendered_and_no_selector_takes_the_pods_of_both(rendered: list[dict[str, Any]]) -> None:
    import kubernetes_validate

    for one in rendered:
        assert "esteira-production" == one["metadata"]["namespace"]
        if one["kind"] != "HTTPRoute":
            kubernetes_validate.validate(one, "1.32", strict=True)
    named = {(one["kind"], one["metadata"]["name"]): one for one in rendered}
    assert len(named) == len(rendered)
    label = "app.kubernetes.io/name"
    for name in (CHAMPION, CHALLENGER):
        deployment = named["Deployment", name]["spec"]
        assert name == deployment["selector"]["matchLabels"][label]
        assert name == deployment["template"]["metadata"]["labels"][label]
        for constraint in deployment["template"]["spec"]["topologySpreadConstraints"]:
            assert {label: name} == constraint["labelSelector"]["matchLabels"]
        assert {label: name} == named["Service", name]["spec"]["selector"]
        assert {label: name} == named["PodDisruptionBudget", name]["spec"]["selector"]["matchLabels"]
        assert {label: name} == named["NetworkPolicy", name]["spec"]["podSelector"]["matchLabels"]
        assert 2 <= deployment["replicas"]
    (route,) = [one for one in rendered if one["kind"] == "HTTPRoute"]
    assert not complaint(route)
    assert {CHAMPION, CHALLENGER} == {ref["name"] for rule in route["spec"]["rules"] for ref in rule["backendRefs"]}
    for ref in route["spec"]["rules"][0]["backendRefs"]:
        assert ref["port"] in {port["port"] for port in named["Service", ref["name"]]["spec"]["ports"]}


def test_the_challengers_pods_serve_the_alias_challenger_with_settings_that_exist(
    rendered: list[dict[str, Any]],
) -> None:
    from esteira.settings import load_settings

    maps = {one["metadata"]["name"]: one["data"] for one in rendered if one["kind"] == "ConfigMap"}
    (ours,) = [data for name, data in maps.items() if "challenger" in name]
    deployment = next(one for one in rendered if one["kind"] == "Deployment" and one["metadata"]["name"] == CHALLENGER)
    sources = deployment["spec"]["template"]["spec"]["containers"][0]["envFrom"]

    assert "challenger" == ours["ESTEIRA_ALIAS"]
    assert maps[sources[0]["configMapRef"]["name"]] == ours
    assert "esteira-serving" == sources[1]["secretRef"]["name"], "one Secret for both"
    load_settings({name: value for name, value in ours.items() if name.startswith("ESTEIRA_")}, None)
