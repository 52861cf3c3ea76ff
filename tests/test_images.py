"""The Dockerfile and the manifests agree, the build sees no more than it copies, and a failed container tells what a step told."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from esteira.errors import ConfigError
from esteira.settings import load_settings
from pipelines.containers import IMAGE_USER, Containers, Ended, error_of
from pipelines.shape import NAMES

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
STAGES = {
    match[2]: (match[1], match[3])
    for match in re.finditer(r"^FROM (\S+) AS (\S+)\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.M | re.S)
}
POD: dict[str, Any] = yaml.safe_load((ROOT / "manifests" / "base" / "deployment.yaml").read_text(encoding="utf-8"))[
    "spec"
]["template"]["spec"]
CONTAINER = POD["containers"][0]


def _lines(stage: str) -> str:
    """What a stage and all that it stands on say."""
    parent, text = STAGES[stage]
    return (_lines(parent) if parent in STAGES else "") + text


def test_the_four_images_of_the_issue_are_targets() -> None:
    assert {"pipeline", "pipeline-torch", "serving", "serving-gpu"} <= set(STAGES)


@pytest.mark.parametrize("target", ["pipeline", "pipeline-torch", "serving", "serving-gpu"])
def test_an_image_ends_with_the_user_that_the_manifests_name(target: str) -> None:
    users = re.findall(r"^USER (\d+):(\d+)$", _lines(target), re.M)

    assert (str(IMAGE_USER), str(IMAGE_USER)) == users[-1]
    assert (IMAGE_USER, IMAGE_USER) == (POD["securityContext"]["runAsUser"], POD["securityContext"]["runAsGroup"])
    assert POD["securityContext"]["fsGroup"] == IMAGE_USER


@pytest.mark.parametrize("target", ["serving", "serving-gpu"])
def test_image_and_deployment_start_the_same_service_on_the_same_port_with_the_same_folders(target: str) -> None:
    text = _lines(target)
    port = str(CONTAINER["ports"][0]["containerPort"])
    environment = dict(re.findall(r"([A-Z_]+)=(\S+)", "\n".join(re.findall(r"^ENV (?:.*\\\n)*.*", text, re.M))))

    assert f"EXPOSE {port}\n" in text
    assert f"${{ESTEIRA_PORT:-{port}}}" in text
    assert " ".join(CONTAINER["command"]) in text
    assert CONTAINER["args"] == ["--host", "0.0.0.0", "--port", port]
    said = {entry["name"]: entry["value"] for entry in CONTAINER["env"]}
    assert said == {name: environment.get(name) for name in said}
    mounted = {mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert {environment["ESTEIRA_HOME"], environment["HOME"]} == mounted


def test_the_check_of_health_asks_the_open_route_of_the_probes_at_the_promised_times() -> None:
    text = _lines("serving")
    times = dict(re.findall(r"--(interval|timeout|start-period|retries)=(\w+)", text))

    assert {"interval": "30s", "timeout": "10s", "start-period": "60s", "retries": "5"} == times
    assert f"{CONTAINER['livenessProbe']['httpGet']['path']}'" in text


def test_everything_copied_is_let_through_to_the_builder_and_nothing_else_is() -> None:
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.M)
        for source in line.split()[:-1]
    } | {"build/wheels"}  # fmt: skip
    allowed = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.M)

    assert "*" == (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()[1]
    matched = {pattern for pattern in allowed for source in copied if Path(source).match(pattern)}
    assert set(allowed) == matched
    assert set() == {source for source in copied if not any(Path(source).match(pattern) for pattern in allowed)}


def test_no_final_image_gets_what_only_the_build_needs() -> None:
    for target in ("pipeline", "pipeline-torch", "serving", "serving-gpu"):
        assert [] == re.findall(r"apt-get|pip install|uv |--mount=type=secret", _lines(target)), target
        assert {"/opt/venv", "/opt/esteira", "/opt/torch", "/state"} >= set(
            re.findall(r"^COPY --from=\S+ (?:--chown=\S+ )?(\S+)", _lines(target), re.M)
        )


def test_the_gpu_image_differs_from_the_other_in_onnx_runtime_and_what_it_brings() -> None:
    cpu, gpu = _pins("serving.lock"), _pins("serving-gpu.lock")

    assert {"onnxruntime"} == set(cpu) - set(gpu)
    assert {name for name in set(gpu) - set(cpu) if not name.startswith("nvidia-")} == {"onnxruntime-gpu"}
    assert cpu["onnxruntime"] == gpu["onnxruntime-gpu"]
    assert {} == {name: (cpu[name], gpu[name]) for name in set(cpu) & set(gpu) if cpu[name] != gpu[name]}


def test_what_steps_and_torch_pin_is_what_the_tests_ran_with() -> None:
    dev, pipeline, torch = (_pins(name) for name in ("dev.lock", "pipeline.lock", "torch.lock"))

    assert {} == {name: versions for name, versions in pipeline.items() if not versions <= dev[name]}
    assert {} == {name: versions for name, versions in torch.items() if not versions <= dev.get(name, versions)}
    assert {"2.13.0"} == torch["torch"]


def _pins(lock: str) -> dict[str, set[str]]:
    """Name -> versions; more than one where Pythons differ."""
    pins: dict[str, set[str]] = {}
    text = (ROOT / "requirements" / lock).read_text(encoding="utf-8")
    for name, version in re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", text, re.M):
        pins.setdefault(name, set()).add(version)
    return pins


@pytest.mark.parametrize(
    ("code", "killed_for_memory", "printed", "kind", "exit_code", "words"),
    [
        (137, True, "", "Killed", 2, "it reached its memory limit (exit status 137)"),
        (137, False, "", "Killed", 2, "it was killed (exit status 137)"),
        (3, False, "Segmentation fault\n", "Failed", 2, "must end with 0, but ended with 3"),
        (
            1, False,
            "Traceback (most recent call last):\nesteira.errors.GateHeld: not better (tabular, step evaluate)\n  cure: add rows\n",
            "GateHeld", 1, "not better",
        ),
        (1, False, "esteira.errors.SourceError: no such file (a.csv)\n  cure: name one\n", "SourceError", 2, "no such file"),
    ],
    ids=["memory", "killed", "crashed", "held", "letter"],
)  # fmt: skip
def test_a_failed_container_tells_the_steps_own_letter_or_how_it_ended(
    tmp_path: Path, code: int, killed_for_memory: bool, printed: str, kind: str, exit_code: int, words: str
) -> None:
    log = tmp_path / "step.log"
    log.write_text(printed, encoding="utf-8")

    error = error_of(Ended("evaluate", "image", code, killed_for_memory, 1.0, log))

    assert (kind, exit_code) == (error["kind"], error["exit"])
    assert words in error["message"]
    assert "step evaluate" in error["where"]
    assert error["cure"]


@pytest.mark.parametrize("step", NAMES)
def test_the_key_reaches_the_steps_that_act_and_no_other_and_stands_on_no_command_line(
    step: str, tmp_path: Path
) -> None:
    """Without it a version made in containers would have no author that counts, and could never be approved."""
    import docker

    class Engine:
        """Keeps what it is asked for, and has no image."""

        def __init__(self) -> None:
            self.containers, self.asked = self, dict[str, Any]()

        def create(self, **asked: Any) -> None:
            self.asked = asked
            raise docker.errors.ImageNotFound("no such image")

    engine: Any = Engine()
    settings = load_settings({"ESTEIRA_HOME": str(tmp_path / "home"), "ESTEIRA_KEY": "esk_secret"}, file=None)
    containers = Containers(tmp_path / "run", settings)

    with pytest.raises(ConfigError) as caught:
        containers.run_container(engine, "an-image", ["--function_to_execute", step], {}, environment={"A": "b"})

    key = {"ESTEIRA_KEY": "esk_secret"} if step in ("register", "deploy") else {}
    assert {"A": "b", **key} == engine.asked["environment"]
    assert "esk_secret" not in str(caught.value) + str(engine.asked["command"]) + str(containers._environment())
