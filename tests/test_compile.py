"""A compiled line says all that a cluster needs, the same on every machine; what is missing or wrong is found by name."""

import copy
import difflib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from pydantic import ValidationError

from esteira import __version__
from esteira.cli import main
from esteira.errors import ConfigError
from esteira.family import Line
from esteira.project import Project, read_project
from pipelines import ir_check
from pipelines.compile import Compiled, defaults, pipeline_name, write
from pipelines.resources import Resources, Volume, image_name, parse, read_resources
from pipelines.shape import NAMES, STEPS
from tests.golden import HERE as GOLDEN
from tests.golden import PREFIX, write_all

ROOT = Path(__file__).resolve().parents[1]
PROJECT = read_project(ROOT / "params.yaml")


class Documents(NamedTuple):
    """Of an IR YAML."""

    spec: Any
    platform: Any


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compiled")
    write_all(folder)
    return folder


@pytest.fixture(scope="module")
def tabular(fresh: Path) -> Documents:
    return Documents(*yaml.safe_load_all((fresh / "tabular.yaml").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def gpu(fresh: Path) -> Documents:
    return Documents(*yaml.safe_load_all((fresh / "tabular--gpu-example.yaml").read_text(encoding="utf-8")))


def _container(spec: Any, step: str) -> Any:
    return spec["deploymentSpec"]["executors"][f"exec-{step}"]["container"]


def _asked(platform: Any, step: str) -> Any:
    return platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][f"exec-{step}"]


class TestGolden:
    def test_there_is_a_golden_copy_of_each_file_and_no_other(self, fresh: Path) -> None:
        assert {path.name for path in fresh.iterdir()} == {path.name for path in GOLDEN.glob("*.yaml")}

    @pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.glob("*.yaml")))
    def test_the_compiled_pipeline_is_the_golden_one(self, name: str, fresh: Path) -> None:
        wanted, got = (GOLDEN / name).read_text(encoding="utf-8"), (fresh / name).read_text(encoding="utf-8")
        diff = "\n".join(
            difflib.unified_diff(
                wanted.splitlines(), got.splitlines(), f"tests/golden/{name}", "compiled now", lineterm=""
            )
        )

        assert wanted == got, f"the compiled pipeline changed; if that is meant, run `make golden`\n{diff[:6000]}"

    def test_compiling_again_in_another_place_gives_the_same_bytes(self, fresh: Path, tmp_path: Path) -> None:
        write_all(tmp_path)

        assert {path.name: path.read_bytes() for path in fresh.iterdir()} == {
            path.name: path.read_bytes() for path in tmp_path.iterdir()
        }

    @pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.glob("*.yaml")))
    def test_it_names_no_place_of_this_machine_and_no_moment(self, name: str) -> None:
        text = (GOLDEN / name).read_text(encoding="utf-8")

        assert str(ROOT) not in text
        assert str(Path.home()) + "/" not in text
        assert not re.search(r"\b20\d\d-\d\d-\d\d", text)


class TestReadsWell:
    def test_the_pipeline_has_a_name_a_title_and_a_description(self, tabular: Documents) -> None:
        info = tabular.spec["pipelineInfo"]

        assert ("esteira-tabular", "Esteira: tabular") == (info["name"], info["displayName"])
        assert "A held gate fails the run" in info["description"]

    def test_every_step_has_its_title(self, tabular: Documents) -> None:
        tasks = tabular.spec["root"]["dag"]["tasks"]

        assert {step.name: step.title for step in STEPS} == {
            name: task["taskInfo"]["name"] for name, task in tasks.items()
        }

    def test_every_parameter_is_described_and_has_the_lines_default(self, tabular: Documents) -> None:
        parameters = tabular.spec["root"]["inputDefinitions"]["parameters"]

        assert {"line", "source", "target", "seed", "champion", *NAMES} == set(parameters)
        assert [] == [name for name, one in parameters.items() if len(one.get("description", "")) < 20]
        assert ["tabular", "data/breast_cancer.csv", "diagnosis", 42, "@champion", {}] == [
            parameters[name]["defaultValue"] for name in ("line", "source", "target", "seed", "champion", "train")
        ]

    def test_scores_curves_and_pages_are_typed(self, tabular: Documents) -> None:
        def types(step: str) -> dict[str, str]:
            found = tabular.spec["components"][f"comp-{step}"]["outputDefinitions"]["artifacts"]
            return {name: one["artifactType"]["schemaTitle"] for name, one in found.items()}

        assert {
            "out": "system.Artifact",
            "metrics": "system.Metrics",
            "classification": "system.ClassificationMetrics",
            "page": "system.HTML",
        } == types("evaluate")
        assert "system.HTML" == types("validate")["page"]
        assert "system.Model" == types("train")["out"]

    def test_on_a_cluster_the_run_is_called_what_kfp_calls_it(self, tabular: Documents) -> None:
        given = tabular.spec["root"]["dag"]["tasks"]["register"]["inputs"]["parameters"]["run_id"]

        assert {"runtimeValue": {"constant": "{{$.pipeline_job_uuid}}"}} == given

    def test_a_line_without_a_source_asks_for_it(self, tmp_path: Path) -> None:
        project = Project.model_validate({"families": {"tabular": {"target": "y"}}})

        compiled = write(defaults("tabular", project), tmp_path)

        spec, _ = yaml.safe_load_all(compiled.ir.read_text(encoding="utf-8"))
        parameters = spec["root"]["inputDefinitions"]["parameters"]
        assert "y" == parameters["target"]["defaultValue"]
        assert not {"defaultValue", "isOptional"} & set(parameters["source"])
        assert [] == ir_check.check(compiled.ir, compiled.native)

    def test_every_line_has_a_name_of_its_own(self) -> None:
        lines = ["tabular", "tabular@a-b", "tabular@a.b", "tabular@a_b", "a_b", "a__b", "a@b", "tabular@x-", "a@b--c"]
        lines += ["tabular@" + "a" * 80, "f" * 40 + "@" + "a" * 80, "f" * 40 + "@" + "a" * 79 + "b"]
        names = [pipeline_name(Line.parse(line)) for line in lines]

        assert len(lines) == len(set(names))
        assert [] == [name for name in names if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,110}[a-z0-9])", name)]


class TestAsksForWhatTheFamilySays:
    def test_images_carry_prefix_target_and_version(self, tabular: Documents, gpu: Documents) -> None:
        assert {f"localhost/esteira-pipeline:{__version__}"} == {
            _container(tabular.spec, step)["image"] for step in NAMES
        }
        assert image_name("pipeline-torch", PREFIX) == _container(gpu.spec, "train")["image"]
        assert image_name("pipeline", PREFIX) == _container(gpu.spec, "evaluate")["image"]

    def test_cpu_and_memory_are_asked_for_and_limited(self, tabular: Documents, gpu: Documents) -> None:
        def resources(spec: Any, step: str) -> list[str]:
            found = _container(spec, step)["resources"]
            return [found[f"resource{name}"] for name in ("CpuRequest", "CpuLimit", "MemoryRequest", "MemoryLimit")]

        assert ["2", "2", "6144Mi", "6144Mi"] == resources(tabular.spec, "train")
        assert ["7.5", "7.5", "512Mi", "512Mi"] == resources(gpu.spec, "train")

    def test_a_gpu_brings_its_type_its_number_its_pool_and_its_tolerations(
        self, tabular: Documents, gpu: Documents
    ) -> None:
        accelerator = _container(gpu.spec, "train")["resources"]["accelerator"]
        assert ("nvidia.com/gpu", "2") == (accelerator["resourceType"], accelerator["resourceCount"])
        assert {"labels": {"esteira.dev/pool": "gpu"}} == _asked(gpu.platform, "train")["nodeSelector"]
        assert [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
            {"key": "example.org/reserved", "operator": "Equal", "value": "training", "effect": "NoExecute"},
        ] == _asked(gpu.platform, "train")["tolerations"]
        assert "accelerator" not in _container(tabular.spec, "train")["resources"]
        assert not {"nodeSelector", "tolerations"} & set(_asked(tabular.platform, "train"))

    def test_tries_pause_and_all_of_them_have_time(self, tabular: Documents) -> None:
        retry = tabular.spec["root"]["dag"]["tasks"]["train"]["retryPolicy"]

        assert (1, "30s") == (retry["maxRetryCount"], retry["backoffDuration"])
        assert 2 * 7200 < int(retry["backoffMaxDuration"].removesuffix("s"))
        assert "retryPolicy" not in tabular.spec["root"]["dag"]["tasks"]["evaluate"]

    def test_a_pod_has_its_time_its_user_and_two_folders_to_write_to(self, tabular: Documents) -> None:
        asked = _asked(tabular.platform, "train")

        assert "7200" == asked["activeDeadlineSeconds"]
        assert {"runAsUser": "10001", "runAsGroup": "10001", "runAsNonRoot": True} == asked["securityContext"]
        assert {"/tmp", "/var/lib/esteira"} == {mount["mountPath"] for mount in asked["emptyDirMounts"]}
        assert [{"name": "ESTEIRA_ACTOR", "fieldPath": "spec.serviceAccountName"}] == asked["fieldPathAsEnv"]

    def test_the_images_have_that_user_and_those_folders(self) -> None:
        dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")

        assert {"10001:10001"} == set(re.findall(r"^USER (\S+)", dockerfile, re.MULTILINE))
        assert "ESTEIRA_HOME=/var/lib/esteira " in dockerfile
        for target in ("pipeline", "pipeline-torch"):
            assert re.search(rf"^FROM \S+ AS {target}$", dockerfile, re.MULTILINE)

    def test_secrets_are_named_and_only_steps_that_need_them_get_them(self, tabular: Documents) -> None:
        def secrets(step: str) -> dict[str, bool]:
            return {one["secretName"]: one["optional"] for one in _asked(tabular.platform, step).get("secretAsEnv", [])}

        assert {"esteira-pipeline": False, "esteira-s3": True} == secrets("register")
        assert {"esteira-s3": True} == secrets("ingest")
        assert {} == secrets("train") | secrets("featurize")
        keys = _asked(tabular.platform, "register")["secretAsEnv"][0]["keyToEnv"]
        assert {"ESTEIRA_DATABASE_URL", "ESTEIRA_MLFLOW_URI", "ESTEIRA_ARTIFACTS"} == {key["envVar"] for key in keys}

    @pytest.mark.parametrize(
        ("source", "rules"), [("/mnt/rows", []), ("/mnt/rows/a.csv", []), ("/mnt/rowsx", ["local_path"])]
    )
    def test_a_source_may_be_the_mounted_folder_or_lie_below_it(
        self, source: str, rules: list[str], tmp_path: Path
    ) -> None:
        resources = read_resources("tabular").model_copy(update={"volumes": (Volume(claim="c", path="/mnt/rows"),)})
        plan = defaults("tabular", PROJECT).model_copy(update={"source": source})

        assert rules == [finding.rule for finding in ir_check.check(write(plan, tmp_path, resources=resources).ir)]

    def test_a_claim_is_mounted_where_the_source_is_read(self, gpu: Documents) -> None:
        mount = _asked(gpu.platform, "ingest")["pvcMount"][0]

        assert ("/mnt/data", "esteira-data") == (mount["mountPath"], mount["constant"])
        assert "pvcMount" not in _asked(gpu.platform, "train")

    def test_the_kubernetes_objects_are_the_same_pipeline_and_a_version_by_content(
        self, fresh: Path, tabular: Documents
    ) -> None:
        pipeline, version = yaml.safe_load_all((fresh / "tabular.k8s.yaml").read_text(encoding="utf-8"))

        assert ["pipelines.kubeflow.org/v2beta1"] * 2 == [pipeline["apiVersion"], version["apiVersion"]]
        assert ("Pipeline", "PipelineVersion") == (pipeline["kind"], version["kind"])
        assert pipeline["metadata"]["name"] == version["spec"]["pipelineName"]
        assert tabular == (version["spec"]["pipelineSpec"], version["spec"]["platformSpec"])
        assert re.fullmatch(r"esteira-tabular-[0-9a-f]{12}", version["metadata"]["name"])

    def test_another_prefix_is_another_version(self, tmp_path: Path) -> None:
        plan = defaults("tabular", PROJECT)

        def version(prefix: str) -> str:
            return write(plan, tmp_path / prefix, prefix=prefix).version

        assert version("localhost") == version("localhost") != version("registry")


class TestResources:
    """resources.yaml is read strictly; a breach names file and key."""

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            (lambda d: d["steps"]["train"].update(gpus=1), "steps.train.gpus: there is no such key"),
            (lambda d: d.update(stages={}), "stages: there is no such key"),
            (lambda d: d["steps"].pop("deploy"), "deploy does not"),
            (lambda d: d["steps"].update(tidy=d["steps"]["train"]), "not 'tidy'"),
            (lambda d: d["steps"]["train"].update(cpu=0), "steps.train.cpu: input should be greater than"),
            # kfp writes it as 1e-07 and then cannot read it; Kubernetes would take no MiB for no limit.
            (lambda d: d["steps"]["train"].update(cpu=1e-7), "steps.train.cpu: input should be greater than"),
            (lambda d: d["steps"]["train"].update(memory=1e-4), "steps.train.memory: input should be greater than"),
            (lambda d: d["steps"]["train"].update(memory="6GB"), "steps.train.memory: "),
            (lambda d: d["steps"]["train"].update(timeout=0), "steps.train.timeout: "),
            (lambda d: d["steps"]["train"].pop("timeout"), "steps.train.timeout: field required"),
            (lambda d: d["steps"]["evaluate"].update(retries=1), "evaluate is never tried again"),
            (lambda d: d["steps"]["deploy"].update(retries=1), "deploy is never tried again"),
            (lambda d: d["steps"]["train"].update(image="latest"), "steps.train.image: "),
            (lambda d: d["steps"]["train"].update(node_pool="GPU pool"), "steps.train.node_pool: "),
            (lambda d: d["steps"]["train"].update(tolerations=[{"key": "a", "value": "b"}]), "goes with operator Equal"),
            (lambda d: d["secrets"][0].pop("name"), "secrets.0.name: field required"),
            (lambda d: d["secrets"][0].update(keys={}), "secrets.0.keys: "),
            (lambda d: d["secrets"][0].update(keys={"k": "not a variable"}), "secrets.0.keys.k: "),
            (lambda d: d["secrets"][0].update(steps=["tidy"]), "secrets.0.steps: a step is one of"),
            (lambda d: d.update(volumes=[{"claim": "c", "path": "/s3/x"}]), "belongs to the system or to KFP"),
            (lambda d: d.update(volumes=[{"claim": "c", "path": "data"}]), "volumes.0.path: "),
            (lambda d: d.update(volumes=[{"claim": "c", "path": "/var/lib/esteira"}]), "belongs to the system"),
            (lambda d: d.update(volumes=[{"claim": c, "path": "/mnt/x"} for c in "ab"]), "each path once, but /mnt/x"),
            (lambda d: d["secrets"][0].update(keys={"a": "A", "b": "A"}), "each variable once, but A"),
            (lambda d: d["secrets"][0].update(keys={"a": "AWS_ENDPOINT_URL"}), "but AWS_ENDPOINT_URL is given twice"),
            (lambda d: d["secrets"][0].update(keys={"a": "ESTEIRA_ACTOR"}), "is the pod's service account"),
            (lambda d: d["serving"].update(max_replicas=0), "serving.max_replicas: "),
            (lambda d: d["serving"].update(replicas=9), "max_replicas is at least replicas"),
            (lambda d: d.update(run_as_user=0), "run_as_user: "),
        ],
    )  # fmt: skip
    def test_a_breach_is_refused_by_file_and_key(self, change: Callable[[Any], Any], told: str) -> None:
        document = yaml.safe_load((ROOT / "families" / "tabular" / "resources.yaml").read_text(encoding="utf-8"))
        change(document)
        with pytest.raises(ConfigError) as caught:
            parse(yaml.safe_dump(document), "families/x/resources.yaml")

        assert "bad_resources" == caught.value.code
        assert told in caught.value.message
        assert caught.value.where.startswith("families/x/resources.yaml, ")

    @pytest.mark.parametrize("text", ["", "steps: [", "- 1", "image: pipeline\nimage: pipeline-torch", b"image: \xff"])
    def test_what_is_no_mapping_is_refused(self, text: str | bytes) -> None:
        with pytest.raises(ConfigError) as caught:
            parse(text, "families/x/resources.yaml")

        assert "bad_resources" == caught.value.code
        assert caught.value.where.startswith("families/x/resources.yaml")

    def test_two_secrets_may_give_one_variable_to_different_steps(self) -> None:
        document = yaml.safe_load((ROOT / "families" / "tabular" / "resources.yaml").read_text(encoding="utf-8"))
        document["secrets"] = [
            {"name": name, "keys": {"k": "TOKEN"}, "steps": [step]} for name, step in (("a", "ingest"), ("b", "deploy"))
        ]

        assert ["a", "b"] == [secret.name for secret in parse(yaml.safe_dump(document), "x").secrets]

    def test_a_family_without_the_file_is_told_so(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"no resources.yaml"):
            read_resources("tabular", tmp_path)

    def test_resources_cannot_be_changed(self) -> None:
        with pytest.raises(ValidationError, match="frozen"):
            read_resources("tabular").run_as_user = 5  # type: ignore[misc]

    def test_every_family_says_what_it_asks_for(self) -> None:
        families = [path.parent.name for path in (ROOT / "families").glob("*/__init__.py")]

        assert all(isinstance(read_resources(family), Resources) for family in families)


def _tasks(spec: Any) -> Any:
    return spec["root"]["dag"]["tasks"]


def _parameter(spec: Any, name: str) -> Any:
    return spec["root"]["inputDefinitions"]["parameters"][name]


BREACHES: dict[str, tuple[str, Callable[[Documents], Any]]] = {
    "an unknown field of a task": ("schema", lambda c: _tasks(c.spec)["train"].update(retries=3)),
    "an unknown field of a container": ("schema", lambda c: _container(c.spec, "train").update(gpu=1)),
    "an unknown field of a pod": ("schema", lambda c: _asked(c.platform, "train").update(priorityClass="high")),
    "another platform": ("schema", lambda c: c.platform["platforms"].update(vertex={})),
    "a number that is a text": ("schema", lambda c: _tasks(c.spec)["train"]["retryPolicy"].update(maxRetryCount="often")),
    "a public image": ("image", lambda c: _container(c.spec, "train").update(image="python:3.11")),
    "another version": ("image", lambda c: _container(c.spec, "train").update(image="localhost/esteira-pipeline:9")),
    "no image": ("image", lambda c: _container(c.spec, "train").pop("image")),
    "no memory limit": ("resources", lambda c: _container(c.spec, "train")["resources"].pop("resourceMemoryLimit")),
    "no resources": ("resources", lambda c: _container(c.spec, "deploy").pop("resources")),
    "a GPU without a number": (
        "resources", lambda c: _container(c.spec, "train")["resources"].update(accelerator={"resourceType": "nvidia.com/gpu"})
    ),
    "a number without a GPU": (
        "resources", lambda c: _container(c.spec, "train")["resources"].update(accelerator={"resourceCount": "1"})
    ),
    "no timeout": ("timeout", lambda c: _asked(c.platform, "ingest").pop("activeDeadlineSeconds")),
    "no platform of a step": (
        "timeout", lambda c: c.platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].pop("exec-ingest")
    ),
    "a cache": ("cache", lambda c: _tasks(c.spec)["train"].update(cachingOptions={"enableCache": True})),
    "a home": ("local_path", lambda c: _parameter(c.spec, "source").update(defaultValue="/home/ana/rows.csv")),
    "an absolute path": ("local_path", lambda c: _parameter(c.spec, "source").update(defaultValue="/data/rows.csv")),
    "a tilde": ("local_path", lambda c: _parameter(c.spec, "source").update(defaultValue="~/rows.csv")),
    "a drive": ("local_path", lambda c: _parameter(c.spec, "source").update(defaultValue="C:\\rows.csv")),
    "a path within parameters": (
        "local_path", lambda c: _parameter(c.spec, "ingest").update(defaultValue={"cache": ["/srv/cache"]})
    ),
    "a path in code": ("local_path", lambda c: _container(c.spec, "train")["command"].append("cd /Users/ana/project")),
    "this folder": ("local_path", lambda c: _container(c.spec, "train")["command"].append(f"cd {Path.cwd()}/build")),
    "a gate that is tried again": (
        "retry", lambda c: _tasks(c.spec)["evaluate"].update(retryPolicy={"maxRetryCount": 1, "backoffMaxDuration": "9999s"})
    ),
    "no time for the second try": (
        "retry", lambda c: _tasks(c.spec)["train"]["retryPolicy"].update(backoffMaxDuration="3600s")
    ),
    "a secret without name": (
        "secret", lambda c: _asked(c.platform, "register")["secretAsEnv"][0].update(secretName="", secretNameParameter={})
    ),
    "a secret without key": (
        "secret", lambda c: _asked(c.platform, "register")["secretAsEnv"][0]["keyToEnv"][0].pop("secretKey")
    ),
    "a secret as a file": (
        "secret", lambda c: _asked(c.platform, "train").update(secretAsVolume=[{"secretName": "x", "mountPath": "/mnt/x"}])
    ),
    "a password": (
        "password", lambda c: _parameter(c.spec, "source").update(defaultValue="postgresql://ana:pw@db/rows")
    ),
    "a parameter that is not there": ("parameters", lambda c: c.spec["root"]["inputDefinitions"]["parameters"].pop("seed")),
    "a parameter that nobody reads": (
        "parameters",
        lambda c: c.spec["root"]["inputDefinitions"]["parameters"].update(extra={"parameterType": "STRING"}),
    ),
    "an input that is not given": (
        "parameters", lambda c: _tasks(c.spec)["train"]["inputs"]["artifacts"].pop("validated")
    ),
    "a missing step": ("steps", lambda c: _tasks(c.spec).pop("deploy")),
    "a step that does not wait": ("steps", lambda c: _tasks(c.spec)["register"].update(dependentTasks=["ingest"])),
}  # fmt: skip


class TestCheck:
    @pytest.mark.parametrize("breach", BREACHES)
    def test_a_breach_is_found_by_its_rule(self, breach: str, tabular: Documents) -> None:
        rule, change = BREACHES[breach]
        broken = copy.deepcopy(tabular)
        change(broken)

        found = ir_check.check_text("\n---\n".join(map(json.dumps, broken)))  # JSON is YAML, and quick

        assert rule in {finding.rule for finding in found}, found
        assert all(finding.where and finding.message for finding in found)

    def test_every_rule_has_a_breach(self) -> None:
        rules = set(
            re.findall(r'Finding\(\s*"(\w+)"', (ROOT / "pipelines" / "ir_check.py").read_text(encoding="utf-8"))
        )

        assert rules == {rule for rule, _ in BREACHES.values()} | {"documents", "native", "workers"}

    @pytest.mark.parametrize(
        "kept",
        [
            lambda c: [c.spec],
            lambda c: [c.platform],
            lambda c: [c.platform, c.spec],
            lambda c: [c.spec, c.platform, c.platform],
            lambda c: [c.spec, c.spec],
        ],
    )
    def test_both_documents_belong_in_it_and_no_other(self, kept: Any, tabular: Documents) -> None:
        assert ["documents"] == [one.rule for one in ir_check.check_text(yaml.safe_dump_all(kept(tabular)))]

    @pytest.mark.parametrize("text", ["", "a: [", "--- 1\n--- 2\n"])
    def test_what_is_no_pipeline_is_found(self, text: str) -> None:
        assert ["documents"] == [one.rule for one in ir_check.check_text(text)]

    def test_golden_files_have_nothing_to_find(self) -> None:
        assert [] == ir_check.check(GOLDEN / "tabular.yaml", GOLDEN / "tabular.k8s.yaml")
        gpu = "tabular--gpu-example"
        assert [] == ir_check.check(GOLDEN / f"{gpu}.yaml", GOLDEN / f"{gpu}.k8s.yaml", prefix=PREFIX)

    @pytest.mark.parametrize(
        "change",
        [
            lambda d: d[1]["spec"]["pipelineSpec"]["root"]["dag"]["tasks"].pop("deploy"),
            lambda d: d[1]["spec"].pop("platformSpec"),
            lambda d: d[1]["spec"].update(pipelineName="other"),
            lambda d: d.pop(0),
        ],
    )
    def test_kubernetes_objects_of_another_pipeline_are_found(self, change: Any, fresh: Path, tmp_path: Path) -> None:
        documents = list(yaml.safe_load_all((fresh / "tabular.k8s.yaml").read_text(encoding="utf-8")))
        change(documents)
        (tmp_path / "other.yaml").write_text(yaml.safe_dump_all(documents), encoding="utf-8")

        assert ["native"] == [one.rule for one in ir_check.check(fresh / "tabular.yaml", tmp_path / "other.yaml")]


def _compile(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    with pytest.raises(SystemExit) as ended:
        main(["compile", *arguments, "--json"])
    return int(ended.value.code or 0), json.loads(capsys.readouterr().out)


class TestCommand:
    def test_check_passes_on_the_project(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(ROOT)
        code, told = _compile(capsys, "--check", "--out", str(tmp_path))

        assert (0, True, []) == (code, told["ok"], told["findings"])
        lines = {line.replace("@", "--") for line in (*PROJECT.families, *PROJECT.lines)}
        assert {f"{line}{end}" for line in lines for end in (".yaml", ".k8s.yaml")} == {
            Path(file).name for file in told["files"]
        }
        assert all(Path(file).is_file() for file in told["files"])

    def test_a_finding_is_exit_1_and_names_file_and_place(
        self, esteira_home: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Path("params.yaml").write_text(
            "families:\n  tabular: {source: /home/ana/rows.csv, target: y}\n", encoding="utf-8"
        )

        code, told = _compile(capsys, "--check", "--out", "out")

        assert (1, False) == (code, told["ok"])
        assert [("local_path", "out/tabular.yaml")] == [(one["rule"], one["file"]) for one in told["findings"]]
        assert "source" in told["findings"][0]["where"]

    def test_without_check_it_only_writes(self, esteira_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, told = _compile(capsys, "tabular@mine", "--out", "out")

        assert 0 == code
        assert {"files": ["out/tabular--mine.yaml", "out/tabular--mine.k8s.yaml"]} == told

    def test_the_prefix_of_the_images_is_a_variable(
        self, esteira_home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ESTEIRA_IMAGE_PREFIX", "registry.example.org:5000/team")

        code, told = _compile(capsys, "tabular", "--check", "--out", "out")

        assert (0, True) == (code, told["ok"])
        text = Path("out/tabular.yaml").read_text(encoding="utf-8")
        assert f"image: registry.example.org:5000/team/esteira-pipeline:{__version__}" in text

    def test_where_there_is_nothing_to_compile_it_says_so(
        self, esteira_home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)

        code, told = _compile(capsys, "--check")

        assert (2, "no_lines") == (code, told["error"]["code"])

    def test_a_folder_that_cannot_be_written_is_named(
        self, esteira_home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("", encoding="utf-8")

        code, told = _compile(capsys, "tabular", "--out", str(tmp_path / "file" / "out"))

        assert (2, "file", str(tmp_path / "file" / "out")) == (code, told["error"]["code"], told["error"]["where"])

    def test_a_prefix_that_is_none_is_refused(
        self, esteira_home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ESTEIRA_IMAGE_PREFIX", "https://registry.example.org/")

        code, told = _compile(capsys, "tabular")

        assert (2, "bad_setting") == (code, told["error"]["code"])


def test_a_run_here_asks_no_cluster_for_anything(tmp_path: Path) -> None:
    from pipelines.dag import build, release

    for here in (release, build(None)):
        assert "run_id" in here.pipeline_spec.root.input_definitions.parameters
        assert {} == dict(here.platform_spec.platforms)


def test_a_run_here_does_not_import_what_only_a_cluster_needs() -> None:
    script = (
        "import os, sys\nos.environ['_KFP_RUNTIME'] = 'true'\nimport kfp\ndel os.environ['_KFP_RUNTIME']\n"
        "import pipelines.dag\n"
        "print([name for name in ('kfp.kubernetes', 'kfp.client', 'kubernetes', 'kfp_server_api') if name in sys.modules])"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )

    assert "[]" == done.stdout.strip()


def test_a_compiled_line_knows_its_files(tmp_path: Path) -> None:
    compiled = write(defaults("tabular", PROJECT), tmp_path)

    assert isinstance(compiled, Compiled)
    assert {compiled.ir, compiled.native} == set(tmp_path.iterdir()), "nothing else is left"


def test_a_compilation_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "tabular.yaml").mkdir()

    with pytest.raises(IsADirectoryError):
        write(defaults("tabular", PROJECT), tmp_path)

    assert ["tabular.yaml"] == [path.name for path in tmp_path.iterdir()]
