"""How a line's releases go: the family's words, params.yaml over them, the line's own block over that, and nothing unknown."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from components import deploy
from esteira.errors import ConfigError
from esteira.project import Project, read_project
from esteira.release.policy import Asked, ReleasePolicy, decided, in_force, policy_of, stricter
from pipelines.plan import decide


def params(folder: Path, document: Any) -> Path:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def test_a_table_is_released_at_once_where_nobody_says_otherwise(tmp_path: Path) -> None:
    found = policy_of("tabular", params=tmp_path / "none.yaml")

    assert ("automatic", "direct", "rules", 168.0, True, 10_000) == (
        found.approval_mode, found.rollout, found.rollout_policy, found.approval_hours, found.rehearse, found.min_samples,
    )  # fmt: skip


def test_a_family_that_says_nothing_waits_and_goes_by_shares() -> None:
    found = ReleasePolicy.of(Asked(), approval_mode="required", rollout="staged")

    assert ("required", "staged", True) == (found.approval_mode, found.rollout, found.rehearse)


def test_a_lines_own_block_goes_over_its_familys(tmp_path: Path) -> None:
    path = params(
        tmp_path,
        {
            "families": {"tabular": {"deploy": {"approval_mode": "required", "approval_hours": 72, "reason": "x"}}},
            "lines": {"tabular@churn": {"deploy": {"rollout": "staged", "min_samples": 100}}},
        },
    )

    family, line = (policy_of(name, params=path) for name in ("tabular", "tabular@churn"))

    assert ("required", "direct", 72.0) == (family.approval_mode, family.rollout, family.approval_hours)
    assert ("required", "staged", 72.0, 100) == (
        line.approval_mode, line.rollout, line.approval_hours, line.min_samples,
    )  # fmt: skip


def test_it_is_what_a_run_of_the_line_would_do(tmp_path: Path) -> None:
    """params.yaml is read in two places: by the plan of a run, and here for what people do later."""
    document = {
        "families": {"tabular": {"source": "a.csv", "target": "y", "deploy": {"approval_mode": "notify"}}},
        "lines": {"tabular@b": {"source": "b.csv", "target": "y", "deploy": {"rollout": "staged"}}},
    }
    path = params(tmp_path, document)
    for line in ("tabular", "tabular@b", "tabular@c"):
        plan = decide(line, project=Project.model_validate(document), source="a.csv", target="y", name=None)
        ours = policy_of(plan.line, params=path)
        assert ours == decided(deploy.Params.model_validate(plan.sections["deploy"]), plan.line)


@pytest.mark.parametrize(
    "section",
    [
        {"approval_mode": "perhaps"},
        {"rollout": "slowly"},
        {"rollout_policy": "luck"},
        {"approval_hours": 0},
        {"approval_hours": -1},
        {"approval_hours": 168.5},
        {"approval_hours": "soon"},
        {"min_samples": -1},
    ],
)
def test_what_is_not_to_be_said_is_refused_and_named(section: dict[str, Any], tmp_path: Path) -> None:
    path = params(tmp_path, {"families": {"tabular": {"deploy": section}}})

    with pytest.raises(ConfigError) as caught:
        policy_of("tabular", params=path)

    assert "bad_params" == caught.value.code
    assert f"deploy.{next(iter(section))}" in caught.value.message


def said(**words: Any) -> ReleasePolicy:
    """A policy of these words, else as loose as it may be."""
    loose = {"rehearse": False, "min_samples": 0, **words}
    return ReleasePolicy.of(Asked.model_validate(loose), approval_mode="automatic", rollout="direct")


@pytest.mark.parametrize(
    ("loose", "strict"),
    [
        ({}, {"approval_mode": "required"}),
        ({"approval_mode": "notify"}, {"approval_mode": "required"}),
        ({}, {"approval_mode": "notify"}),
        ({}, {"rollout": "staged"}),
        ({}, {"rehearse": True}),
        ({"approval_hours": 100}, {"approval_hours": 1}),
        ({"min_samples": 5}, {"min_samples": 6}),
    ],
)
def test_of_two_policies_the_stricter_word_counts_whoever_says_it(
    loose: dict[str, Any], strict: dict[str, Any], tmp_path: Path
) -> None:
    one, other = said(**loose), said(**strict)
    assert other == stricter(one, other) == stricter(other, one)
    for recorded, file in ((loose, strict), (strict, loose)):
        path = params(tmp_path, {"families": {"tabular": {"deploy": file}}})
        assert other == in_force("tabular@churn", said(**recorded), params=path)


def test_what_a_params_file_leaves_out_is_not_held_against_what_was_recorded(tmp_path: Path) -> None:
    """It may be another project's."""
    recorded = said(rollout_policy="ab", approval_hours=72)
    for document in ({}, {"families": {"tabular": {"deploy": {"reason": "x", "rollout_policy": "rules"}}}}):
        assert recorded == in_force("tabular@churn", recorded, params=params(tmp_path, document))
    assert recorded == in_force("tabular@churn", recorded, params=tmp_path / "none.yaml")
    assert policy_of("tabular") == in_force("tabular", None, params=tmp_path / "none.yaml")


@pytest.mark.parametrize("document", [None, {}, [], {"families": {}}, {"families": {"tabular": {"deploy": {}}}}])
def test_a_file_that_says_nothing_of_the_line_says_nothing(document: Any, tmp_path: Path) -> None:
    found = policy_of("tabular", params=params(tmp_path, document))

    assert "automatic" == found.approval_mode


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("families: {tabular: {deploy: {aproval_mode: required}}}", "deploy.aproval_mode"),
        ("families: {tabular: {deploy: required}}", "families.tabular.deploy"),
        ("family: {tabular: {deploy: {approval_mode: required}}}", "family"),
        ("families: {tabular: {deploi: {approval_mode: required}}}", "families.tabular.deploi"),
        ("families: {tabular: {deploy: }}", "families.tabular.deploy"),
        ("families: ", "families"),
        ("lines: {tabular@churn: {deploy: {aproval_mode: required}}}", "deploy.aproval_mode"),
    ],
    ids=["key", "no-section", "block", "section", "empty-section", "empty-block", "of-a-line"],
)
def test_a_slip_of_the_pen_opens_no_line_and_both_readers_refuse_it(text: str, named: str, tmp_path: Path) -> None:
    """A run and a person who promotes read one file in one way: what means nothing is never taken for `automatic`."""
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(ConfigError) as ours:
        policy_of("tabular@churn", params=path)
    with pytest.raises(ConfigError) as theirs:
        decide("tabular@churn", project=read_project(path), source="a.csv", target="y")

    for caught in (ours, theirs):
        assert "bad_params" == caught.value.code
        assert caught.value.message.startswith(f"{named}: ")
