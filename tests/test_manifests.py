"""Every overlay renders, and each object obeys Kubernetes' own schema with unknown fields refused, and the house's rules."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

MANIFESTS = Path(__file__).resolve().parents[1] / "manifests"
OVERLAYS = sorted(path.parent.name for path in MANIFESTS.glob("overlays/*/kustomization.yaml"))
KINDS = {"ConfigMap", "Deployment", "NetworkPolicy", "PodDisruptionBudget", "Service", "ServiceAccount"}
NAME = {"app.kubernetes.io/name": "esteira-serving"}

Objects = dict[str, dict[str, Any]]


def _render(folder: Path) -> Objects:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("needs kubectl on PATH: `kubectl kustomize` is what renders the overlays")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr
    return {document["kind"]: document for document in yaml.safe_load_all(done.stdout)}


@pytest.fixture(scope="module", params=OVERLAYS)
def rendered(request: pytest.FixtureRequest) -> Objects:
    return _render(MANIFESTS / "overlays" / request.param)


def _validate(document: dict[str, Any]) -> None:
    import kubernetes_validate

    kubernetes_validate.validate(document, "1.32", strict=True)


def test_there_is_an_overlay_for_staging_production_and_gpu() -> None:
    assert {"staging", "production", "gpu"} <= set(OVERLAYS)


@pytest.mark.parametrize("path", sorted(MANIFESTS.glob("base/*.yaml")), ids=lambda path: path.stem)
def test_each_file_of_the_base_obeys_the_schema_without_kubectl_too(path: Path) -> None:
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.stem == "kustomization":
        files = {entry.stem + ".yaml" for entry in MANIFESTS.glob("base/*.yaml")} - {"kustomization.yaml"}
        assert files == set(document["resources"])
    else:
        _validate(document)


def test_the_schema_refuses_an_unknown_field() -> None:
    import kubernetes_validate

    service = yaml.safe_load((MANIFESTS / "base" / "service.yaml").read_text(encoding="utf-8"))
    service["spec"]["portz"] = []

    with pytest.raises(kubernetes_validate.ValidationError, match="portz"):
        _validate(service)


def test_every_object_of_an_overlay_obeys_the_schema(rendered: Objects) -> None:
    assert set(rendered) == KINDS
    for document in rendered.values():
        _validate(document)


def test_pods_run_without_root_without_rights_and_with_a_read_only_root(rendered: Objects) -> None:
    pod = rendered["Deployment"]["spec"]["template"]["spec"]

    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert "RuntimeDefault" == pod["securityContext"]["seccompProfile"]["type"]
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert ["ALL"] == security["capabilities"]["drop"]


def test_every_container_has_probes_on_the_open_routes_and_says_what_it_needs(rendered: Objects) -> None:
    for container in rendered["Deployment"]["spec"]["template"]["spec"]["containers"]:
        ports = {port["name"] for port in container["ports"]}
        for probe, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
            assert path == container[probe]["httpGet"]["path"]
            assert container[probe]["httpGet"]["port"] in ports
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]


def test_a_pod_is_given_the_time_that_its_drain_takes() -> None:
    """The service drains itself, so nothing sleeps before the signal; the kernel's kill comes after its own last word."""
    from esteira.settings import load_settings
    from serving.drain import to_the_end

    deployment = yaml.safe_load((MANIFESTS / "base" / "deployment.yaml").read_text(encoding="utf-8"))
    kustomization = yaml.safe_load((MANIFESTS / "base" / "kustomization.yaml").read_text(encoding="utf-8"))
    pod = deployment["spec"]["template"]["spec"]
    literals = dict(literal.split("=", 1) for literal in kustomization["configMapGenerator"][0]["literals"])
    settings = load_settings({name: value for name, value in literals.items() if name.startswith("ESTEIRA_")}, None)

    assert to_the_end(settings) < pod["terminationGracePeriodSeconds"]
    for container in pod["containers"]:
        assert "preStop" not in container.get("lifecycle", {})
        probe = container["readinessProbe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] < settings.drain_seconds, (
            "who goes by the probe hears of it in time"
        )


def test_selectors_meet_the_pods_and_callers_need_only_the_label(rendered: Objects) -> None:
    deployment = rendered["Deployment"]["spec"]
    policy = rendered["NetworkPolicy"]["spec"]

    assert NAME.items() <= deployment["template"]["metadata"]["labels"].items()
    selectors = (
        deployment["selector"]["matchLabels"],
        rendered["Service"]["spec"]["selector"],
        rendered["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        policy["podSelector"]["matchLabels"],
    )
    assert [NAME] * 4 == list(selectors)
    assert {"esteira.dev/may-ask": "true"} == policy["ingress"][0]["from"][0]["podSelector"]["matchLabels"]
    assert {"Ingress", "Egress"} == set(policy["policyTypes"])


def test_a_budget_lets_a_node_be_drained(rendered: Objects) -> None:
    least = rendered["PodDisruptionBudget"]["spec"]["minAvailable"]

    assert least < rendered["Deployment"]["spec"]["replicas"]


def test_no_manifest_holds_a_secret(rendered: Objects) -> None:
    from esteira.settings import Settings

    container = rendered["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    plain = set(rendered["ConfigMap"]["data"]) | {entry["name"] for entry in container.get("env", [])}

    assert [] == [name for name in plain if any(word in name for word in ("KEY", "SECRET", "PASSWORD", "TOKEN", "URL"))]
    assert {"name": "esteira-serving"} == next(
        source["secretRef"] for source in container["envFrom"] if "secretRef" in source
    )
    known = {name for field in Settings.model_fields.values() for name in _variables(field)}
    assert set() == {name for name in plain if name.startswith("ESTEIRA_")} - known


def test_the_gpu_overlay_asks_for_a_gpu_and_refuses_to_answer_without_one() -> None:
    rendered = _render(MANIFESTS / "overlays" / "gpu")
    pod = rendered["Deployment"]["spec"]["template"]["spec"]

    assert "cuda" == rendered["ConfigMap"]["data"]["ESTEIRA_DEVICE"]
    assert 1 == pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    assert "nvidia.com/gpu" in {toleration["key"] for toleration in pod["tolerations"]}


def _variables(field: Any) -> list[str]:
    extra = field.json_schema_extra or {}
    return list(extra.get("env", []))
