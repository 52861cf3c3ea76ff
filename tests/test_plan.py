"""A run is decided from the command's words, params.yaml and the line's last run, in that order."""

from pathlib import Path

import pytest

from esteira.errors import ConfigError
from esteira.family import Line
from esteira.project import Project, read_project
from pipelines.plan import decide, parse_settings


def _project(**families: object) -> Project:
    return Project.model_validate({"families": families})


@pytest.mark.parametrize(
    ("text", "family", "name"),
    [("tabular", "tabular", ""), ("tabular@churn", "tabular", "churn"), ("a_b@x-1.2_y", "a_b", "x-1.2_y")],
)
def test_a_line_is_read_and_written_alike(text: str, family: str, name: str) -> None:
    line = Line.parse(text)

    assert (family, name) == (line.family, line.name)
    assert text == str(line)


@pytest.mark.parametrize(
    "text", ["", "Tabular", "tabular@", "tabular@Churn", "a b", "x/y", "tabular@..", "@x", "tabular@a@b"]
)
def test_a_line_of_another_form_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(ConfigError, match="FAMILY") as caught:
        Line.parse(text)

    assert repr(text) in caught.value.message


def test_a_source_and_a_label_open_a_line_named_after_both() -> None:
    assert "tabular@x-y" == str(Line.opened_by("tabular", "some/where/x.csv", "y"))
    assert "tabular@my-data-total-charges" == str(Line.opened_by("tabular", "s3://b/My Data.csv.gz", "Total Charges"))
    assert "tabular@ligacoes-rotulo" == str(Line.opened_by("tabular", "Ligações.csv", "rótulo"))


def test_a_source_and_a_label_that_give_no_name_ask_for_one() -> None:
    with pytest.raises(ConfigError, match=r"'数据\.csv' and '标签'") as caught:
        Line.opened_by("tabular", "数据.csv", "标签")

    assert "--as NAME" in caught.value.cure


def test_the_family_block_of_params_yaml_is_the_default() -> None:
    project = _project(tabular={"source": "a.csv", "target": "y", "train": {"trials": 3}})

    plan = decide("tabular", project=project)

    assert ("tabular", "a.csv", "y", 42, {"trials": 3}) == (
        plan.line, plan.source, plan.target, plan.seed, plan.sections["train"],
    )  # fmt: skip


def test_the_command_wins_over_params_yaml_and_opens_a_line_of_its_own() -> None:
    project = _project(
        tabular={"source": "a.csv", "target": "y", "seed": 7, "train": {"trials": 3, "metric": "f1_macro"}}
    )

    plan = decide("tabular", project=project, source="b.csv", target="z", settings={"train": {"trials": 9}})

    assert ("tabular@b-z", "b.csv", "z", 7) == (plan.line, plan.source, plan.target, plan.seed)
    assert {"trials": 9, "metric": "f1_macro"} == plan.sections["train"]


def test_a_named_line_does_not_inherit_the_rows_of_its_family() -> None:
    project = _project(tabular={"source": "a.csv", "target": "y"})

    with pytest.raises(ConfigError, match="no source yet"):
        decide("tabular@churn", project=project)


def test_a_line_remembers_where_its_rows_came_from() -> None:
    plan = decide("tabular@churn", project=Project(), last={"source": "c.csv", "target": "churned"})

    assert ("c.csv", "churned") == (plan.source, plan.target)


@pytest.mark.parametrize("pair", ["trials=3", "train.trials", "nothing.x=1", "train.=1", "=1"])
def test_a_setting_that_names_no_step_and_key_is_refused(pair: str) -> None:
    with pytest.raises(ConfigError, match=r"STEP\.KEY=VALUE"):
        parse_settings([pair])


def test_settings_are_yaml_values() -> None:
    assert {"train": {"trials": 20, "metric": "r2"}, "validate": {"allow_leak": ["a"]}} == parse_settings(
        ["train.trials=20", "train.metric=r2", "validate.allow_leak=[a]"]
    )


def test_an_unknown_key_of_params_yaml_is_named(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text("families:\n  tabular:\n    trian: {}\n", encoding="utf-8")

    with pytest.raises(ConfigError, match="trian"):
        read_project(file)


@pytest.mark.parametrize(
    ("step", "section", "names"),
    [
        ("train", {"trails": 3}, "train.trails"),
        ("train", {"trials": 0}, "train.trials"),
        ("ingest", {"max_rows": "x"}, "max_rows"),
    ],
)
def test_a_parameter_that_no_step_takes_is_refused_before_any_step_runs(
    step: str, section: dict[str, object], names: str
) -> None:
    project = _project(tabular={"source": "a.csv", "target": "y"})

    with pytest.raises(ConfigError, match=names) as caught:
        decide("tabular", project=project, settings={step: section})

    assert f"esteira step {step} --help" in caught.value.cure


def test_an_unknown_family_is_refused_before_any_step_runs() -> None:
    with pytest.raises(ConfigError, match="nofam"):
        decide("nofam", project=Project(), source="a.csv", target="y")


def test_a_block_of_a_line_goes_over_its_familys_key_by_key() -> None:
    project = Project.model_validate(
        {
            "families": {
                "tabular": {"source": "a.csv", "target": "y", "seed": 7, "train": {"trials": 3, "metric": "f1"}}
            },
            "lines": {"tabular@x": {"source": "b.csv", "target": "z", "train": {"trials": 5}}},
        }
    )

    plan = decide("tabular@x", project=project)

    assert ("b.csv", "z", 7) == (plan.source, plan.target, plan.seed)
    assert {"trials": 5, "metric": "f1"} == plan.sections["train"]


@pytest.mark.parametrize("text", ["train.trials=2026-13-40", "train.trials={a: 1, a: 2}", "train.trials=["])
def test_a_value_that_is_no_yaml_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_settings([text])

    assert "bad_set" == caught.value.code


def test_a_block_that_stands_twice_in_params_yaml_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text("families:\n  a: {target: x}\n  a: {target: y}\n", encoding="utf-8")

    with pytest.raises(ConfigError, match="each key once"):
        read_project(file)
