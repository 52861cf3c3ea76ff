"""Four doors, one function: kfp, DVC and both command lines take what `components.<step>.run` takes, and say no alike."""

import ast
import importlib
import inspect
import json
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from components import door
from esteira.cli.step import step as step_command
from esteira.console import conduct
from esteira.errors import ConfigError, SourceError
from pipelines import ops
from pipelines.shape import NAMES, STEPS, Step

ROOT = Path(__file__).resolve().parents[1]
# What they do depends on the machine's registry or changes the world, so `dvc repro` could promise nothing of them.
NO_STAGE = {"register", "deploy"}
BY_NAME = {step.name: step for step in STEPS}


def _run_of(step: str) -> inspect.Signature:
    return inspect.signature(importlib.import_module(f"components.{step}").run)


def _stages(folder: Path) -> dict[str, dict[str, Any]]:
    """dvc.yaml of a folder as DVC itself resolves it, with the params.yaml beside it."""
    from dvc.parsing import DataResolver
    from dvc.repo import Repo

    repo = Repo(str(folder), uninitialized=True)
    document = yaml.safe_load((folder / "dvc.yaml").read_text(encoding="utf-8"))
    found: dict[str, dict[str, Any]] = DataResolver(repo, str(folder), document).resolve()["stages"]
    repo.close()
    return found


def _door_of(stage: dict[str, Any]) -> tuple[str, list[str]]:
    """Step and words of a DVC stage's command."""
    words = shlex.split(stage["cmd"])
    module = next(word for word in words if word.startswith("components."))
    assert ["python", "-m"] == words[words.index(module) - 2 : words.index(module)]
    return module.removeprefix("components."), words[words.index(module) + 1 :]


@pytest.fixture(scope="module")
def stages() -> dict[str, dict[str, Any]]:
    return _stages(ROOT)


@pytest.mark.parametrize("step", STEPS, ids=NAMES)
def test_all_four_doors_take_what_the_function_takes(step: Step, stages: dict[str, dict[str, Any]]) -> None:
    taken = _run_of(step.name).parameters
    assert {inspect.Parameter.KEYWORD_ONLY} == {parameter.kind for parameter in taken.values()}

    body = ast.parse(textwrap.dedent(inspect.getsource(getattr(ops, step.name).python_func)))
    calls = [node for node in ast.walk(body) if isinstance(node, ast.Call) and ast.unparse(node.func) == "step.run"]
    assert [sorted(taken)] == [sorted(str(keyword.arg) for keyword in call.keywords) for call in calls], "kfp"

    group = step_command.get_command(click.Context(step_command), step.name)
    assert group is not None
    for command in (door.command(step.name, "python -m"), group):
        options = {option.name: option for option in command.params if isinstance(option, click.Option)}
        assert {*taken} - {"params"} == set(options) - {"section", "pairs", "as_json"}, "command line"
        for name in {*taken} - {"params"}:
            needed = taken[name].default is inspect.Parameter.empty
            assert [f"--{name.replace('_', '-')}"] == options[name].opts
            assert needed == options[name].required
            assert needed or taken[name].default == options[name].default

    told = [words for name, words in map(_door_of, stages.values()) if name == step.name]
    assert bool(told) == (step.name not in NO_STAGE)
    for words in told:
        flags = {word.removeprefix("--").replace("-", "_") for word in words if word.startswith("--")}
        assert set(taken) == flags, "DVC"


@pytest.mark.parametrize("step", [name for name in NAMES if name not in NO_STAGE])
def test_a_dvc_stage_says_values_that_the_step_understands(
    step: str, stages: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["families"]
    # What earlier stages leave must be there for the words to be taken.
    monkeypatch.chdir(tmp_path)

    for key, block in blocks.items():
        name, words = _door_of(stages[f"{step}@{key}"])
        for path in (Path(word) for word in words if word.startswith("build/")):
            (path.parent if path.suffix else path).mkdir(parents=True, exist_ok=True)
            if path.suffix:
                path.touch()
        given = door.command(name, name).make_context(name, words).params

        assert Path(f"build/{key}/dvc/{step}") == given["out"]
        said = {
            "line": key,
            "source": block["source"],
            "target": block["target"],
            "seed": block["seed"],
            "champion": "",
        }
        for argument in given.keys() & said.keys():
            assert said[argument] == given[argument]
        assert block[step] == door.read_params(given["section"].replace("params.yaml", str(ROOT / "params.yaml")), ())


@pytest.mark.parametrize("step", [name for name in NAMES if name not in NO_STAGE])
def test_a_dvc_stage_waits_for_the_steps_it_needs_and_watches_its_own_section(
    step: str, stages: dict[str, dict[str, Any]]
) -> None:
    made = [dependency.split("/")[3] for dependency in stages[f"{step}@tabular"]["deps"] if "/dvc/" in dependency]
    sections = {param.removeprefix("families.tabular.") for param in stages[f"{step}@tabular"]["params"]}

    assert set(BY_NAME[step].needs.values()) == set(made)
    assert sections - {"source", "target", "seed"} == {step}
    # What is no section is watched because the command says it.
    assert sections - {step} == {"source", "target", "seed"} & set(_run_of(step).parameters)


def test_a_new_family_is_five_new_stages_and_dvc_yaml_stays_as_it_is(tmp_path: Path) -> None:
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    project = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    block = {"source": "families/planted/sample/table.jsonl", "target": "label of it"}
    project["families"]["planted"] = {**project["families"]["tabular"], **block}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(project), encoding="utf-8")

    found = _stages(tmp_path)

    steps = [name for name in NAMES if name not in NO_STAGE]
    assert {f"{step}@{family}" for step in steps for family in project["families"]} == set(found)
    assert "families/planted/sample/table.jsonl" in found["ingest@planted"]["deps"]
    assert "label of it" in _door_of(found["validate@planted"])[1]


@pytest.mark.parametrize("step", NAMES)
def test_a_steps_help_has_its_parameters_with_defaults_and_an_example(step: str) -> None:
    command = door.command(step, f"python -m components.{step}")
    text = command.get_help(click.Context(command, info_name=step))
    fields = importlib.import_module(f"components.{step}").Params.model_fields

    assert f"python -m components.{step} --" in text.split("Example:")[1]
    assert [] == [name for name in fields if f"{name} = " not in text]
    assert [] == [option.name for option in command.params if isinstance(option, click.Option) and not option.help]


def _python(*arguments: str, cwd: Path, code: int = 0) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert code == done.returncode, done.stderr
    return done


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "t.csv").write_text("a,b,y\n1,2,no\n3,4,yes\n", encoding="utf-8")
    (tmp_path / "params.yaml").write_text(
        "families:\n  tabular:\n    ingest:\n      max_rows: 2\n    train:\n", encoding="utf-8"
    )
    return tmp_path


INGEST = ("--source", "t.csv", "--target", "y", "--line", "tabular", "--out", "out")
MODULE, CLI = ("-m", "components.ingest"), ("-m", "esteira.cli", "step", "ingest")


def test_a_step_runs_by_itself_with_its_section_of_params(table: Path) -> None:
    done = _python(*MODULE, *INGEST, "--params", "params.yaml:families.tabular.ingest", "--json", cwd=table)

    assert {"name": "t", "row_count": 2, "column_count": 3}.items() <= json.loads(done.stdout).items()
    assert {"rows.parquet", "dataset.json"} == {path.name for path in (table / "out").iterdir()}


def test_a_step_that_says_no_writes_a_letter_of_three_lines(table: Path) -> None:
    done = _python(*CLI, *INGEST, "--set", "max_rows=1", cwd=table, code=1)

    assert "" == done.stdout
    assert ["error:", "where:", "cure:"] == [line.split()[0] for line in done.stderr.splitlines()]
    assert not (table / "out").exists()


@pytest.mark.parametrize("way", [MODULE, CLI], ids=["module", "esteira"])
def test_a_wrong_flag_is_exit_2_and_points_at_help(table: Path, way: tuple[str, ...]) -> None:
    done = _python(*way, *INGEST, "--sauce", "x", cwd=table, code=2)

    assert "--sauce" in done.stderr
    assert "ingest --help" in done.stderr


@pytest.mark.parametrize("step", NAMES)
@pytest.mark.parametrize("left_out", [False, True], ids=["nothing said", "one left out"])
def test_what_a_step_needs_and_nobody_said_is_named(
    step: str, left_out: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = [name for name, one in _run_of(step).parameters.items() if one.default is inspect.Parameter.empty]
    needed = [name for name in needed if name != "params"]
    words = [word for name in needed[:-1] if left_out for word in (f"--{name.replace('_', '-')}", str(tmp_path))]

    with pytest.raises(SystemExit) as ended:
        conduct(door.command(step, step), words, prog=step)

    assert 2 == ended.value.code
    assert f"Missing option '--{needed[-1 if left_out else 0]}'" in capsys.readouterr().err


def test_an_input_that_is_not_there_is_named_and_an_output_is_made(tmp_path: Path) -> None:
    words = ["--rows", "none.parquet", "--dataset", "d", "--target", "y", "--line", "tabular", "--out", "new", "--json"]
    done = _python("-m", "components.validate", *words, cwd=tmp_path, code=2)

    assert "'none.parquet' does not exist" in json.loads(done.stdout)["error"]["message"]
    assert [] == list(tmp_path.iterdir())


def test_a_line_of_another_form_is_refused_before_anything_is_read(table: Path) -> None:
    done = _python(*CLI, *INGEST, "--line", "Tabular Two", "--json", cwd=table, code=2)

    assert "bad_line" == json.loads(done.stdout)["error"]["code"]
    assert not (table / "out").exists()


def test_an_unknown_parameter_is_refused_by_name_before_anything_is_read(table: Path) -> None:
    done = _python(*MODULE, *INGEST, "--set", "max_rwos=1", "--json", cwd=table, code=2)

    error = json.loads(done.stdout)["error"]
    assert ("bad_params", "step ingest") == (error["code"], error["where"])
    assert "ingest.max_rwos" in error["message"]
    assert "max_rows" in error["cure"]
    assert not (table / "out").exists()


class TestParameters:
    def test_come_from_a_section_or_an_object_and_set_wins(self, table: Path) -> None:
        section = f"{table}/params.yaml:families.tabular.ingest"

        assert {} == door.read_params(None, ())
        assert {"max_rows": 2} == door.read_params(section, ())
        assert {"max_rows": 5, "delimiter": ";"} == door.read_params(section, ("max_rows=5", "delimiter=;"))
        assert {"kinds": {"a": "text"}, "drop": ["b"]} == door.read_params('{"kinds": {"a": "text"}}', ("drop=[b]",))

    def test_an_empty_section_says_nothing(self, table: Path) -> None:
        assert {} == door.read_params(f"{table}/params.yaml:families.tabular.train", ())

    @pytest.mark.parametrize(
        ("words", "code", "named"),
        [
            (("{file}:families.tabular.trian", ()), "no_section", "'trian'"),
            (("{file}:families.other.train", ()), "no_section", "'other'"),
            (("{file}:families.tabular.ingest.max_rows", ()), "no_section", "2"),
            (("{file}:families.tabular.ingest.max_rows.more", ()), "no_section", "'more'"),
            (("{file}", ()), "bad_params", "FILE:SECTION"),
            (("families.tabular.train", ()), "bad_params", "FILE:SECTION"),
            (('{{"trials": ', ()), "bad_params", "JSON"),
            ((None, ("trials",)), "bad_set", "'trials'"),
            ((None, ("=3",)), "bad_set", "'=3'"),
            ((None, ("trials=[",)), "bad_set", "line 1"),
            ((None, ("since=2026-13-40",)), "bad_set", "month"),
        ],
    )
    def test_of_another_form_are_refused_by_what_was_said(
        self, table: Path, words: tuple[str | None, tuple[str, ...]], code: str, named: str
    ) -> None:
        section, pairs = words
        with pytest.raises(ConfigError) as caught:
            door.read_params(section and section.format(file=table / "params.yaml"), pairs)

        assert code == caught.value.code
        assert named in caught.value.message
        assert caught.value.cure

    def test_of_a_file_that_is_not_there_or_no_yaml_are_refused(self, table: Path) -> None:
        (table / "bad.yaml").write_text("a: [", encoding="utf-8")

        with pytest.raises(SourceError, match=r"none\.yaml"):
            door.read_params(f"{table}/none.yaml:families", ())
        with pytest.raises(ConfigError, match=r"must be YAML.*line 1") as caught:
            door.read_params(f"{table}/bad.yaml:families", ())
        assert "bad.yaml" in caught.value.where + caught.value.cure
