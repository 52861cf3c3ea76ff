"""The parity receipt says where a run's surroundings differ from the cluster's, and never takes what it does not know as equal."""

import dataclasses
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement

from esteira.settings import Settings
from pipelines import parity
from pipelines.code import ROOT
from pipelines.compile import write as compile_line
from pipelines.dag import release
from pipelines.plan import Plan
from pipelines.resources import Resources, read_resources
from pipelines.shape import NAMES
from pipelines.surroundings import (
    Cluster,
    Here,
    conditions_in,
    image_markers,
    look_at_cluster,
    look_here,
    read_pins,
    variables_of_image,
    watched,
)

PINS = {"numpy": "2.4.0", "pandas": "3.0.6"}
# What no two surroundings can have in common: a process is no image and nothing ends its steps; nobody asks for a processor.
NEVER_EQUAL = {"image": False, "timeout": False, "architecture": None, "code": None}


def _resources(**step: Any) -> Resources:
    asked = {"cpu": 2, "memory": 4, "timeout": 600, **step}
    return Resources.model_validate({"steps": dict.fromkeys(NAMES, asked), "serving": {"cpu": 1, "memory": 1, "timeout": 1}})  # fmt: skip


HERE = Here(
    python="3.11.7", system="Linux", machine="x86_64", cpus=2.0, memory=4.0, gpus=0, packages=PINS, revision="abc",
    dirty=False, variables=frozenset(), reuses=False,
)  # fmt: skip
CLUSTER = Cluster(
    images=dict.fromkeys(NAMES, "localhost/esteira-pipeline:0.1.0"),
    python="3.11",
    pins=dict.fromkeys(NAMES, PINS),
    resources=_resources(),
    variables={step: {} for step in NAMES},
    conditions=(),
)


def _compare(here: Here = HERE, cluster: Cluster = CLUSTER) -> dict[str, Any]:
    return parity.compare(here, cluster, run_id="r", line="tabular")


def _differences(document: Mapping[str, Any], aspect: str) -> list[tuple[str | None, str, str, str]]:
    return [
        (one["step"], one["here"], one["cluster"], one["matters"])
        for one in document["differences"]
        if one["aspect"] == aspect
    ]


def test_equal_surroundings_are_equal_in_all_that_can_be() -> None:
    document = _compare()

    assert {aspect: NEVER_EQUAL.get(aspect, True) for aspect in document["equal"]} == document["equal"]
    assert set(document["equal"]) == {one["aspect"] for one in document["checked"]}


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        pytest.param({**PINS, "numpy": "2.4.1"}, (None, "numpy 2.4.1", "numpy 2.4.0", "result"), id="changed"),
        pytest.param({"numpy": "2.4.0"}, (None, "pandas is not installed", "pandas 3.0.6", "result"), id="missing"),
        pytest.param({**PINS, "ruff": "1", "esteira": "0"}, (None, "1 more: ruff", "not installed", "no"), id="extra"),
    ],
)
def test_packages_are_compared_with_the_images_lock(
    installed: dict[str, str], expected: tuple[str | None, str, str, str]
) -> None:
    document = _compare(dataclasses.replace(HERE, packages=installed))

    assert [expected] == _differences(document, "packages")
    assert document["equal"]["packages"] is False


def test_a_pin_without_a_local_part_takes_any_build_of_that_version() -> None:
    torch = dataclasses.replace(CLUSTER, pins={step: {"torch": "2.13.0"} for step in NAMES})

    assert True is _compare(dataclasses.replace(HERE, packages={"torch": "2.13.0+cpu"}), torch)["equal"]["packages"]
    assert False is _compare(dataclasses.replace(HERE, packages={"torch": "2.13.1+cpu"}), torch)["equal"]["packages"]


def test_only_the_steps_of_another_image_differ_where_only_its_lock_does() -> None:
    pins = {**CLUSTER.pins, "train": {**PINS, "torch": "2.13.0"}}

    found = _differences(_compare(cluster=dataclasses.replace(CLUSTER, pins=pins)), "packages")

    assert [("train", "torch is not installed", "torch 2.13.0", "result")] == found


LOCK = """
contourpy==1.3.3 ; python_full_version < '3.12' \\
    --hash=sha256:00
contourpy==1.4.0 ; python_full_version >= '3.12' \\
    --hash=sha256:01
Ruamel_Yaml[jinja2]==0.19 \\
    --hash=sha256:02
xgboost==3.2.0 ; sys_platform == 'darwin'
    # via esteira (pyproject.toml)
xgboost-cpu==3.2.0 ; sys_platform != 'darwin'
intel-openmp==2026.0 ; platform_machine == 'x86_64' and sys_platform == 'win32'
"""


@pytest.mark.parametrize(
    ("python", "expected"),
    [
        ("3.11", {"contourpy": "1.3.3", "ruamel-yaml": "0.19", "xgboost-cpu": "3.2.0"}),
        ("3.12.1", {"contourpy": "1.4.0", "ruamel-yaml": "0.19", "xgboost-cpu": "3.2.0"}),
    ],
)
def test_markers_of_a_lock_are_read_as_in_the_image_and_not_as_here(python: str, expected: dict[str, str]) -> None:
    assert expected == read_pins(LOCK, image_markers(python, "x86_64"))


@pytest.mark.parametrize(
    ("aspect", "here", "asked", "expected"),
    [
        ("gpu", {}, {"gpu": 1}, (None, "0 GPUs", "1 GPUs", "result")),
        ("gpu", {"gpus": 4}, {"gpu": 1}, (None, "4 GPUs", "1 GPUs", "speed")),
        ("gpu", {"gpus": 1}, {}, (None, "1 GPUs", "0 GPUs", "result")),
        ("cpu", {"cpus": 8.0}, {}, (None, "8 cores", "2 cores", "speed")),
        ("memory", {"memory": 16.0}, {}, (None, "16.0 GiB", "4 GiB", "result")),
        ("memory", {"memory": 2.0}, {}, (None, "2.0 GiB", "4 GiB", "result")),
        ("retries", {}, {"retries": 3}, None),
        ("placement", {}, {"node_pool": "gpu"}, (None, "this machine", "node pool gpu", "no")),
        ("placement", {}, {"tolerations": [{"key": "spot"}]},
         (None, "this machine", "node pool default, tolerates spot", "no")),
        ("timeout", {"seconds": dict.fromkeys(NAMES, 3.0)}, {}, (None, "none", "600 s", "no")),
        ("timeout", {"seconds": dict.fromkeys(NAMES, 301.0)}, {}, (None, "none", "600 s", "result")),
        ("timeout", {}, {}, (None, "none", "600 s", "result")),
        ("caching", {"reuses": True}, {}, (None, "receipts keyed on content", "off", "no")),
        ("python", {"python": "3.12.1"}, {}, (None, "3.12.1", "3.11", "result")),
        ("system", {"system": "Darwin"}, {}, (None, "Darwin", "Linux", "result")),
        ("code", {"dirty": True}, {}, (None, "abc and changes", "a commit", "result")),
    ],
)  # fmt: skip
def test_what_a_step_asks_of_a_cluster_is_held_against_this_machine(
    aspect: str, here: dict[str, Any], asked: dict[str, Any], expected: tuple[str | None, str, str, str] | None
) -> None:
    if expected is None:  # a step that judges may not be tried again, so this one cannot hold for all
        with pytest.raises(ValueError, match="evaluate is never tried again"):
            _resources(**asked)
        raw = _resources().model_dump()
        raw["steps"]["train"]["retries"] = 3
        resources = Resources.model_validate(raw)
        expected = ("train", "0", "3", "no")
    else:
        resources = _resources(**asked)

    document = _compare(dataclasses.replace(HERE, **here), dataclasses.replace(CLUSTER, resources=resources))

    assert [expected] == _differences(document, aspect)
    changed = {name for name, equal in document["equal"].items() if equal is not NEVER_EQUAL.get(name, True)}
    assert changed <= {aspect}, "nothing else differs"


def test_variables_are_told_by_name_and_where_both_sides_set_one_it_is_not_known() -> None:
    here = dataclasses.replace(HERE, variables=frozenset({"OMP_NUM_THREADS", "ESTEIRA_ACTOR", "ESTEIRA_DEVICE"}))
    there = {"ESTEIRA_DATABASE_URL": "Secret db", "ESTEIRA_ACTOR": "the pod's service account"}
    cluster = dataclasses.replace(CLUSTER, variables=dict.fromkeys(NAMES, there))

    document = _compare(here, cluster)

    assert [
        (None, "set: ESTEIRA_DEVICE", "not set", "result"),
        (None, "set: OMP_NUM_THREADS", "not set", "speed"),
        (None, "not set: ESTEIRA_DATABASE_URL", "set by Secret db", "result"),
    ] == _differences(document, "environment")
    assert ["set here and there, and values are never read: ESTEIRA_ACTOR"] == [
        one["why"] for one in document["unknown"] if one["aspect"] == "environment"
    ]


def test_steps_in_containers_are_as_equal_as_their_images() -> None:
    alike = dict(CLUSTER.images or {})
    here = dataclasses.replace(HERE, packages={}, python="3.12.1", images=alike)

    equal = _compare(here)["equal"]
    other = _compare(dataclasses.replace(here, images={**alike, "train": "mine:1"}))
    stopped = _compare(dataclasses.replace(here, images={"ingest": alike["ingest"]}))

    unknown = {name for name, value in equal.items() if value is None}
    assert {"image", "python", "packages", "code", "environment", "architecture"} == unknown
    assert [("train", "mine:1", alike["train"], "result")] == _differences(other, "image")
    assert "the step did not run" in [one["why"] for one in stopped["unknown"] if one["step"] == "validate"]


@given(
    pins=st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(["1", "2"])),
    installed=st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(["1", "2"])),
)
def test_every_package_is_equal_or_told(pins: dict[str, str], installed: dict[str, str]) -> None:
    here = dataclasses.replace(HERE, packages=installed)
    found = _differences(_compare(here, dataclasses.replace(CLUSTER, pins=dict.fromkeys(NAMES, pins))), "packages")

    told = {there.split()[0] for _, _, there, matters in found if matters == "result"}
    extra = [one for _, one, _, matters in found if matters == "no"]

    assert {name for name, version in pins.items() if installed.get(name) != version} == told
    more = sorted(set(installed) - set(pins))
    assert (
        [f"{len(more)} more: {', '.join(more[:5])}" + (" and 1 more" if len(more) == 6 else "")] if more else []
    ) == extra


READ_FROM = {
    "images": ["image"],
    "python": ["python"],
    "pins": ["packages"],
    "resources": ["cpu", "memory", "gpu", "retries", "timeout", "placement"],
    "variables": ["environment"],
    "conditions": ["conditions"],
}


@given(
    absent=st.sets(st.sampled_from(sorted(READ_FROM))),
    blind=st.sets(st.sampled_from(["cpus", "memory", "gpus", "revision"])),
)
def test_what_is_not_known_is_null_with_its_reason_and_never_equal(absent: set[str], blind: set[str]) -> None:
    reasons = {name: f"no {name} today" for name in absent}
    cluster = dataclasses.replace(CLUSTER, reasons=reasons, **dict.fromkeys(absent))
    document = _compare(dataclasses.replace(HERE, **dict.fromkeys(blind)), cluster)

    for name in absent:
        for aspect in READ_FROM[name]:
            assert document["equal"][aspect] is None
            assert [f"no {name} today"] == [one["why"] for one in document["unknown"] if one["aspect"] == aspect]
    for name in blind:
        assert document["equal"][{"cpus": "cpu", "gpus": "gpu", "revision": "code"}.get(name, name)] is None
    known = {one["aspect"] for one in document["unknown"]} | {one["aspect"] for one in document["differences"]}
    assert known == {aspect for aspect, equal in document["equal"].items() if equal is not True}


def test_a_branch_in_the_pipeline_is_found_in_its_source() -> None:
    source = "with dsl.If(a == 1):\n    pass\nwith dsl.Else():\n    pass\nx = dsl.OneOf(a, b)\n"

    assert ("If (line 1)", "Else (line 3)", "OneOf (line 5)") == conditions_in(source)
    document = _compare(cluster=dataclasses.replace(CLUSTER, conditions=("If (line 1)",)))
    assert [(None, "by kfp's local runner", "If (line 1)", "result")] == _differences(document, "conditions")


def test_what_an_image_sets_is_read_from_its_stages() -> None:
    recipe = (
        "ARG BASE=python:3.11\n# ENV NO=1\nFROM ${BASE} AS one\nENV A=1 \\\n    B=2\n"
        "FROM one AS two\nENV C=3 D=x=y\nFROM ${BASE} AS three\n"
    )

    assert {"A", "B"} == variables_of_image(recipe, "one")
    assert {"A", "B", "C", "D"} == variables_of_image(recipe, "two")
    assert set() == variables_of_image(recipe, "three")


def test_the_commit_and_changes_of_a_checkout_are_seen(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    assert (None, None) == _revision(tmp_path, {})
    git("init", "--quiet")
    (tmp_path / "a.py").write_text("1\n", encoding="utf-8")
    git("add", "a.py")
    assert (None, True) == _revision(tmp_path, {}), "nothing is committed yet"
    git("commit", "--quiet", "-m", "a")
    assert (git("rev-parse", "HEAD"), False) == _revision(tmp_path, {})
    (tmp_path / "a.py").write_text("2\n", encoding="utf-8")
    assert (git("rev-parse", "HEAD"), True) == _revision(tmp_path, {})
    assert ("v7-dirty", True) == _revision(tmp_path, {"ESTEIRA_CODE_REVISION": "v7-dirty"})


def _revision(root: Path, environment: dict[str, str]) -> tuple[str | None, bool | None]:
    here = look_here(root=root, environment=environment)
    return here.revision, here.dirty


def test_this_machine_is_seen_as_the_system_says_it_is() -> None:
    here = look_here(environment={"CUDA_VISIBLE_DEVICES": "", "ESTEIRA_API_KEY": "secret", "HOME": "/"})

    assert ".".join(map(str, sys.version_info[:3])) == here.python
    assert here.cpus is not None
    assert 0 < here.cpus <= (os.cpu_count() or 1)
    assert here.memory is not None
    assert 0 < here.memory <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    assert 0 == here.gpus, "no device is visible to a process that may see none"
    assert frozenset({"CUDA_VISIBLE_DEVICES", "ESTEIRA_API_KEY"}) == here.variables


def test_the_packages_of_this_environment_are_held_against_the_real_lock() -> None:
    """Two ways to read the same: ours, by names of folders and a pattern; the packaging authority's, slower."""
    here = look_here()
    document = _compare(here, look_at_cluster("tabular", python=here.python, machine=here.machine))
    marks = image_markers("3.11", here.machine)
    text = (ROOT / "requirements" / "pipeline.lock").read_text(encoding="utf-8")
    wanted = [Requirement(line.rstrip(" \\")) for line in text.splitlines() if line and line[0] not in " #"]
    wanted = [one for one in wanted if one.marker is None or one.marker.evaluate(marks)]
    installed = {
        re.sub(r"[-_.]+", "-", one.metadata["Name"]).lower(): one.version for one in importlib.metadata.distributions()
    }

    expected = {
        one.name for one in wanted if not one.specifier.contains(installed.get(one.name, "0"), prereleases=True)
    }

    assert len(wanted) > 100
    assert here.packages == installed
    found = _differences(document, "packages")
    assert expected == {there.split()[0] for _, _, there, matters in found if matters == "result"}
    assert sum(matters == "no" for *_, matters in found) == 1, "the tools of developers are in no image"


def test_the_recipe_of_the_images_and_the_locks_are_for_the_same_python() -> None:
    cluster = look_at_cluster("tabular", python="3.12.1", machine="x86_64")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")

    assert {cluster.python} == set(re.findall(r"--python-version (\S+)", makefile))
    assert "OMP_WAIT_POLICY" in watched()
    assert cluster.variables is not None
    assert "image pipeline" == cluster.variables["train"]["OMP_WAIT_POLICY"]


def test_the_receipt_says_what_the_compiled_pipeline_says(tmp_path: Path) -> None:
    raw = read_resources("tabular").model_dump()
    raw["steps"]["train"] |= {"gpu": 1, "image": "pipeline-torch"}
    resources = Resources.model_validate(raw)
    plan = Plan(line="tabular", source="a.csv", target="b", seed=42, sections={})
    spec, platform = yaml.safe_load_all(
        compile_line(plan, tmp_path, resources=resources, prefix="registry.example/a").ir.read_text(encoding="utf-8")
    )
    tasks, executors = spec["root"]["dag"]["tasks"], spec["deploymentSpec"]["executors"]
    (tmp_path / "families" / "tabular").mkdir(parents=True)
    asked_for = yaml.safe_dump(resources.model_dump(mode="json"))
    (tmp_path / "families" / "tabular" / "resources.yaml").write_text(asked_for, encoding="utf-8")
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    shutil.copy(ROOT / "Dockerfile", tmp_path)
    cluster = look_at_cluster("tabular", python="3.11", machine="x86_64", prefix="registry.example/a", root=tmp_path)
    bare = Here("3.11", "Linux", "x86_64", 0.5, 0.5, 0, {}, "abc", False, frozenset())

    document = _compare(bare, cluster)

    def there(aspect: str) -> dict[str | None, str]:
        return {step: cluster for step, _, cluster, _ in _differences(document, aspect)}

    def container(step: str) -> dict[str, Any]:
        found: dict[str, Any] = executors[spec["components"][tasks[step]["componentRef"]["name"]]["executorLabel"]][
            "container"
        ]
        return found

    limits = {step: container(step)["resources"] for step in NAMES}
    assert {step: f"{float(limits[step]['resourceCpuLimit']):g} cores" for step in NAMES} == there("cpu")
    mebibytes = {step: int(limits[step]["resourceMemoryLimit"].removesuffix("Mi")) for step in NAMES}
    assert {step: f"{mebibytes[step] / 1024:g} GiB" for step in NAMES} == there("memory")
    assert {step: f"{limits[step]['accelerator']['resourceCount']} GPUs" for step in ["train"]} == there("gpu")
    retries = {step: str(tasks[step]["retryPolicy"]["maxRetryCount"]) for step in NAMES if "retryPolicy" in tasks[step]}
    assert retries == there("retries")
    asked = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    names = {step: spec["components"][tasks[step]["componentRef"]["name"]]["executorLabel"] for step in NAMES}
    timeouts = {step: f"{asked[name]['activeDeadlineSeconds']} s" for step, name in names.items()}
    assert timeouts == there("timeout")
    only_train = {name for step, _, name, _ in _differences(document, "packages") if step == "train"}
    assert "torch 2.13.0" in only_train, "the image of train has torch besides"
    images = {step: container(step)["image"] for step in NAMES}
    assert 2 == len(set(images.values()))
    assert images == there("image")
    assert not any("condition" in task.get("triggerPolicy", {}) for task in tasks.values())
    assert () == cluster.conditions, "so that a held gate ends the run by failure, here and there"
    assert not any(task.get("cachingOptions", {}).get("enableCache") for task in tasks.values())


def test_the_pipeline_that_runs_here_tries_no_step_again() -> None:
    tasks = release.pipeline_spec.root.dag.tasks

    assert set(NAMES) == set(tasks)
    assert not any(task.HasField("retry_policy") for task in tasks.values())


SECRET = "postgresql://user:hunter2@db/x"


def test_a_run_writes_names_and_no_values(tmp_path: Path) -> None:
    environment = {"ESTEIRA_DATABASE_URL": SECRET, "AWS_SECRET_ACCESS_KEY": "hunter2", "LANG": "C"}
    document = parity.write(
        tmp_path, run_id="r1", line="tabular@a", settings=Settings(), seconds={"train": 3.0}, environment=environment
    )

    text = (tmp_path / "parity.json").read_text(encoding="utf-8")

    assert document == json.loads(text)
    assert ["parity.json"] == [path.name for path in tmp_path.iterdir()]
    assert "hunter2" not in text
    assert "ESTEIRA_DATABASE_URL" in text
    assert "LANG" not in text
    assert ("r1", "tabular@a") == (document["run_id"], document["line"])
    assert "no" == next(matters for step, *_, matters in _differences(document, "timeout") if step == "train")


def test_a_family_without_resources_is_told_and_does_not_fail_the_run(tmp_path: Path) -> None:
    document = parity.write(tmp_path, run_id="r1", line="nobody", settings=Settings(), environment={})

    unknown = {one["aspect"]: one["why"] for one in document["unknown"]}

    assert "there is no resources.yaml" in unknown["cpu"]
    assert {"image", "packages", "cpu", "memory", "gpu", "environment"} <= set(unknown)
    assert not any(document["equal"][aspect] for aspect in unknown)


def test_the_receipt_costs_no_heavy_import(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from esteira.settings import Settings; from pipelines import parity; "
        f"parity.write(Path({str(tmp_path)!r}), run_id='r', line='tabular', settings=Settings()); "
        "print(sorted({name.split('.')[0] for name in sys.modules} & "
        "{'kfp', 'pandas', 'mlflow', 'kubernetes', 'sqlalchemy', 'importlib_metadata', 'google'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert "[]" == done.stdout.strip()
    assert (tmp_path / "parity.json").exists()


def test_the_summary_says_what_may_change_the_result_and_what_is_not_known() -> None:
    document = _compare(dataclasses.replace(HERE, packages={"numpy": "2.4.1", "pandas": "3.0.6"}, cpus=4.0))

    assert [
        "parity: 9 of 15 aspects are as on the cluster; not known: architecture, code; speed differs: cpu",
        "parity: may change the result: image, packages, timeout",
    ] == parity.summary(document).splitlines()
