"""A step is reused exactly when nothing it depends on changed, and every other outcome names what did."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.code import files_of, hashes, packages
from pipelines.reuse import Basis, Receipt, Receipts, decide, share, tree
from pipelines.runner import Dag, Run
from pipelines.shape import Step

BASIS = Basis(
    params={"trials": 4, "grid": {"depth": [1, 2]}},
    arguments={"line": "tabular", "seed": 42},
    data={"data/x.csv": "a" * 64},
    inputs={"ingest": "b" * 64},
    code={"components/train.py": "c" * 64, "esteira/automl/folds.py": "d" * 64},
    packages={"numpy": "2.4.0"},
)


def _kept(folder: Path, basis: Basis = BASIS, run_id: str = "run-1") -> Receipts:
    """Receipts that know one run of `train`."""
    receipts = Receipts(folder)
    place = folder / run_id / "train"
    place.mkdir(parents=True)
    (place / "model.json").write_text('{"a": 1}', encoding="utf-8")
    receipts.put(
        Receipt("train", run_id, f"{run_id}/train", basis, tree(place), seconds=1.0, notes={"champion": "none"})
    )
    return receipts


# ---------------------------------------------------------------- deciding


def test_a_step_that_never_ran_runs(tmp_path: Path) -> None:
    decision = decide("train", BASIS, Receipts(tmp_path))

    assert decision.receipt is None
    assert "it never ran to its end here" == decision.why


def test_an_unchanged_step_is_reused_and_names_the_run(tmp_path: Path) -> None:
    decision = decide("train", BASIS, _kept(tmp_path))

    assert decision.receipt is not None
    assert "run-1" == decision.receipt.run_id
    assert "nothing it depends on changed since run run-1" == decision.why


@pytest.mark.parametrize(
    ("part", "value", "why"),
    [
        ("params", {"trials": 5, "grid": {"depth": [1, 2]}}, "train.trials changed from 4 to 5"),
        ("params", {"grid": {"depth": [1, 2]}}, "train.trials changed from 4 to its default"),
        ("params", {"trials": 4, "grid": {"depth": [1]}}, "train.grid.depth changed from [1,2] to [1]"),
        ("params", {"trials": 4.0, "grid": {"depth": [1, 2]}}, "train.trials changed from 4 to 4.0"),
        ("params", {"trials": 4, "grid": {"depth": [1, 2]}, "kinds": {}}, "train.kinds changed from its default to {}"),
        ("arguments", {"line": "tabular", "seed": 7}, "seed changed from 42 to 7"),
        ("data", {"data/x.csv": "e" * 64}, f"the content of data/x.csv changed from {'a' * 12} to {'e' * 12}"),
        ("inputs", {"ingest": "e" * 64}, "the output of ingest changed"),
        (
            "code",
            {"components/train.py": "c" * 64, "esteira/automl/folds.py": "e" * 64},
            "esteira/automl/folds.py changed",
        ),
        ("code", {"components/train.py": "c" * 64}, "esteira/automl/folds.py removed"),
        ("packages", {"numpy": "2.5.0"}, "package numpy changed from 2.4.0 to 2.5.0"),
        ("packages", {"numpy": "2.4.0", "scipy": "1.0"}, "package scipy added"),
    ],
)
def test_whatever_changed_is_named(part: str, value: Mapping[str, Any], why: str, tmp_path: Path) -> None:
    decision = decide("train", dataclasses.replace(BASIS, **{part: value}), _kept(tmp_path))

    assert decision.receipt is None
    assert why == decision.why


def test_more_changes_than_a_person_reads_are_counted(tmp_path: Path) -> None:
    code = {f"esteira/{number}.py": "e" * 64 for number in range(9)}

    why = decide("train", dataclasses.replace(BASIS, code={**BASIS.code, **code}), _kept(tmp_path)).why

    assert why.endswith("; and 3 more")


@pytest.mark.parametrize("fault", ["changed", "removed", "added", "gone"])
def test_outputs_that_are_not_what_they_were_are_not_reused(fault: str, tmp_path: Path) -> None:
    receipts = _kept(tmp_path)
    file = tmp_path / "run-1" / "train" / "model.json"
    if fault == "changed":
        file.write_text('{"a": 2}', encoding="utf-8")
    elif fault == "removed":
        file.unlink()
    elif fault == "added":
        file.with_name("other.json").write_text("{}", encoding="utf-8")
    else:
        file.unlink()
        file.parent.rmdir()

    decision = decide("train", BASIS, receipts)

    assert decision.receipt is None
    assert ("the output of run run-1 is gone" if fault == "gone" else f"was {fault}") in decision.why


def test_a_receipt_that_does_not_stand_any_more_says_why(tmp_path: Path) -> None:
    decision = decide("train", BASIS, _kept(tmp_path), stands=lambda receipt: f"the world moved, {receipt.run_id}")

    assert (None, "the world moved, run-1") == (decision.receipt, decision.why)


def test_a_receipt_that_is_cut_short_is_as_none(tmp_path: Path) -> None:
    receipts = _kept(tmp_path)
    path = next((tmp_path / "receipts" / "train").iterdir())
    path.write_text(path.read_text(encoding="utf-8")[:-20], encoding="utf-8")

    assert "it never ran to its end here" == decide("train", BASIS, receipts).why


@pytest.mark.parametrize(
    "change",
    [
        {"outputs": ["model.json"]}, {"notes": None}, {"folder": 5}, {"folder": ""}, {"run_id": None}, {"basis": []},
        {"basis": {"params": []}}, {"unknown": 1},
    ],
)  # fmt: skip
def test_a_receipt_of_another_shape_is_as_none(change: dict[str, Any], tmp_path: Path) -> None:
    receipts = _kept(tmp_path)
    path = next((tmp_path / "receipts" / "train").iterdir())
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}), encoding="utf-8")

    assert "it never ran to its end here" == decide("train", BASIS, receipts).why


def test_an_older_receipt_serves_when_a_parameter_is_set_back(tmp_path: Path) -> None:
    receipts = _kept(tmp_path)
    _kept(tmp_path, dataclasses.replace(BASIS, params={"trials": 5}), "run-2")

    decision = decide("train", BASIS, receipts)

    assert decision.receipt is not None
    assert "run-1" == decision.receipt.run_id


def test_a_shared_tree_is_the_same_tree_and_survives_its_source(tmp_path: Path) -> None:
    source = tmp_path / "a"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "file").write_bytes(b"content")
    share(source, tmp_path / "b")
    before = tree(source)
    (source / "inner" / "file").unlink()

    assert before == tree(tmp_path / "b")


# ---------------------------------------------------------------- code


def _write(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _reached(root: Path, *modules: str) -> list[str]:
    return [path.relative_to(root).as_posix() for path in files_of(modules, root=root, rooms=("room", "other"))]


@pytest.mark.parametrize(
    "line",
    [
        "import room.used",
        "from room import used",
        "from room.used import thing",
        "from .used import thing",
        "from . import used",
        "def f():\n    import room.used",
        "import importlib\nimportlib.import_module('room.used')",
        "COMMAND = ['python', '-m', 'room.used']",
        "SERVICE = 'room.used:Service'",
        "run(sys.executable, '-m', 'room.used')",
    ],
)
def test_code_is_all_that_a_module_imports_however_it_does(line: str, tmp_path: Path) -> None:
    _write(tmp_path, {"room/__init__.py": "", "room/used.py": "", "room/unused.py": "", "room/start.py": line})

    assert ["room/__init__.py", "room/start.py", "room/used.py"] == _reached(tmp_path, "room.start")


@pytest.mark.parametrize(
    "line",
    [
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import room.used",
        "if __name__ == '__main__':\n    import room.used",
        "import os.path, json",
    ],
)
def test_what_is_not_run_in_a_step_is_not_its_code(line: str, tmp_path: Path) -> None:
    _write(tmp_path, {"room/__init__.py": "", "room/used.py": "", "room/start.py": line})

    assert ["room/__init__.py", "room/start.py"] == _reached(tmp_path, "room.start")


def test_a_file_with_a_syntax_error_is_left_to_whoever_imports_it(tmp_path: Path) -> None:
    _write(tmp_path, {"room/__init__.py": "", "room/start.py": "import room.used", "room/used.py": "def ("})

    assert ["room/__init__.py", "room/start.py", "room/used.py"] == _reached(tmp_path, "room.start")


def test_code_is_followed_through_packages_and_circles(tmp_path: Path) -> None:
    _write(
        tmp_path,
        {
            "room/__init__.py": "",
            "room/start.py": "from other import deep",
            "other/__init__.py": "from other.deep import run",
            "other/deep/__init__.py": "import room.start",
            "other/deep/__main__.py": "",
            "other/program.py": "",
        },
    )

    assert ["other/__init__.py", "other/deep/__init__.py", "room/__init__.py", "room/start.py"] == _reached(
        tmp_path, "room.start"
    )


def test_a_package_that_is_started_brings_its_main(tmp_path: Path) -> None:
    _write(
        tmp_path,
        {
            "room/__init__.py": "",
            "room/start.py": "run(sys.executable, '-m', 'other')\nCOMMAND = (sys.executable, '-m', 'other', 'build')",
            "other/__init__.py": "",
            "other/__main__.py": "",
        },
    )

    assert {"other/__init__.py", "other/__main__.py"} <= set(_reached(tmp_path, "room.start"))


def test_of_a_function_only_its_own_text_counts(tmp_path: Path) -> None:
    _write(tmp_path, {"ops.py": "def a():\n    return 1\n\n\ndef b():\n    return 2\n"})
    before = hashes([], root=tmp_path, functions=["ops.py::a", "ops.py::b"])
    _write(tmp_path, {"ops.py": "def a():\n    return 1\n\n\ndef b():\n    return 3\n"})
    after = hashes([], root=tmp_path, functions=["ops.py::a", "ops.py::b"])

    assert before["ops.py::a"] == after["ops.py::a"]
    assert before["ops.py::b"] != after["ops.py::b"]


def test_packages_are_those_that_are_installed() -> None:
    import importlib.metadata

    found = packages()

    assert importlib.metadata.version("numpy") == found["numpy"]
    assert importlib.metadata.version("scikit-learn") == found["scikit-learn"]
    assert {"python", "esteira"} <= set(found)


# ---------------------------------------------------------------- whole graphs

NODES = ("a", "b", "c", "d", "e")


class Machine(Run):
    """A run whose steps are plain functions: what one leaves is made from its parameter, data, code and inputs.

    As in life, not every change of what a step reads changes what it leaves: a parameter below 2 makes no difference.
    """

    executed: list[str]
    while_it_runs: Callable[[str], None]

    def _through_kfp(self, first: Step) -> None:
        names = [step.name for step in self.dag.steps]
        for step in self.dag.steps[names.index(first.name) :]:
            if self.decision(step).receipt is not None:
                self._reuse(step)
                continue
            self.executed.append(step.name)
            out = self.folder / "made" / step.name
            out.mkdir(parents=True)
            read = {needed: (self.folder / needed / "file").read_text("utf-8") for needed in step.needs.values()}
            told = [max(1, self.arguments[step.name]["x"]), self.dag.data(step), self.dag.code(step), read]
            (out / "file").write_text(hashlib.sha256(json.dumps(told).encode()).hexdigest(), encoding="utf-8")
            self.while_it_runs(step.name)
            self._keep(step, out, 0.0)


@dataclasses.dataclass
class World:
    """What a person may edit: a parameter, a datum or a line of code of each step."""

    edges: Mapping[str, Sequence[str]]
    params: dict[str, int]
    data: dict[str, int]
    code: dict[str, int]
    source: str = ""
    while_it_runs: Callable[[str], None] = lambda _: None
    why: dict[str, str] = dataclasses.field(default_factory=dict)

    def run(self, folder: Path, receipts: Receipts, *, fresh: bool = False) -> tuple[list[str], dict[str, str]]:
        """Which steps were executed, and what all of them left."""
        steps = tuple(
            Step(name, name, needs={f"in_{n}": n for n in self.edges[name]}, takes=("source",)) for name in NODES
        )
        dag = Dag(
            steps,
            pipeline=lambda: pytest.fail("no kfp here"),
            code=lambda step: {f"{step.name}.py": str(self.code[step.name])},
            data=lambda step: {f"{step.name}.csv": str(self.data[step.name])},
        )
        folder.mkdir(parents=True)
        arguments = {"source": self.source, **{name: {"x": self.params[name]} for name in NODES}}
        with Machine(dag, arguments, folder=folder, receipts=receipts, fresh=fresh) as machine:
            machine.executed, machine.while_it_runs = [], self.while_it_runs
            self.why = {record.name: record.why for record in machine.go()}
        return machine.executed, {name: (folder / name / "file").read_text(encoding="utf-8") for name in NODES}


def _world() -> World:
    """Five steps that need nothing."""
    return World({name: [] for name in NODES}, *(dict.fromkeys(NODES, 0) for _ in range(3)))


def test_the_run_that_executed_a_step_may_be_deleted_when_another_reused_it(tmp_path: Path) -> None:
    receipts, world = Receipts(tmp_path), _world()
    world.run(tmp_path / "run-1", receipts)
    world.run(tmp_path / "run-2", receipts)
    shutil.rmtree(tmp_path / "run-1")

    executed, _ = world.run(tmp_path / "run-3", receipts)

    assert [] == executed


def test_what_changed_is_told_against_the_last_run_and_not_the_last_that_executed(tmp_path: Path) -> None:
    """Parameter 4, then 5, then 4 again (reused), then 6: a person changed 4 to 6."""
    receipts, world = Receipts(tmp_path), _world()
    for number, value in enumerate((4, 5, 4, 6)):
        world.params["a"] = value
        world.run(tmp_path / f"run-{number}", receipts)

    assert "a.x changed from 4 to 6" == world.why["a"]


def test_a_step_whose_code_was_edited_while_it_ran_is_not_reused(tmp_path: Path) -> None:
    """Which of the two it read, nobody knows: neither the edited code nor the old one may be given its output."""
    receipts, world = Receipts(tmp_path), _world()
    world.while_it_runs = lambda step: world.code.update({step: 1})
    world.run(tmp_path / "run-1", receipts)
    world.while_it_runs = lambda _: None

    assert "not kept for reuse, because a.py was changed meanwhile" in world.why["a"]
    executed, _ = world.run(tmp_path / "run-2", receipts)
    assert list(NODES) == executed
    assert "a.py changed" == world.why["a"]
    world.code = dict.fromkeys(NODES, 0)
    executed, _ = world.run(tmp_path / "run-3", receipts)
    assert list(NODES) == executed
    assert "a.py was changed while run run-1 ran it" == world.why["a"]


def test_a_reused_step_took_what_it_took_when_it_ran(tmp_path: Path) -> None:
    receipts = _kept(tmp_path, dataclasses.replace(BASIS, params={}))
    step = Step("train", "train")
    dag = Dag((step,), pipeline=lambda: None, code=lambda _: {})
    with Run(dag, {}, folder=tmp_path / "run-2", receipts=receipts) as run:
        basis = (run.decision(step), run._decided["train"][0])[1]
    receipts.put(dataclasses.replace(receipts.all("train")[0], basis=basis, seconds=7.0))
    with Run(dag, {}, folder=tmp_path / "run-3", receipts=receipts) as run:
        run.go()

    assert {"train": 7.0} == run.took()


def test_passwords_of_addresses_are_in_no_receipt_and_no_reason_to_run(tmp_path: Path) -> None:
    receipts, world = Receipts(tmp_path), _world()
    world.source = "postgresql://ana:s3cret@host/rows"
    world.run(tmp_path / "run-1", receipts)
    world.source = "postgresql://ana:another@host/rows"

    executed, _ = world.run(tmp_path / "run-2", receipts)

    assert [] == executed
    assert not [path for path in (tmp_path / "receipts").rglob("*.json") if "s3cret" in path.read_text("utf-8")]


@st.composite
def _graphs(draw: st.DrawFn) -> dict[str, list[str]]:
    """A random acyclic graph: a node may need any that come before it."""
    return {
        name: sorted(draw(st.sets(st.sampled_from(NODES[:at]), max_size=2))) if at else []
        for at, name in enumerate(NODES)
    }


EDITS = st.lists(
    st.tuples(st.sampled_from(["params", "data", "code", "output"]), st.sampled_from(NODES), st.integers(0, 3)),
    min_size=1, max_size=6,
)  # fmt: skip


@given(edges=_graphs(), edits=EDITS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_edit_of_any_graph_gives_what_a_full_run_gives_and_runs_only_what_it_must(
    edges: dict[str, list[str]], edits: list[tuple[str, str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """After each edit: the outputs of all steps equal those of a naive full run; a step was executed if and only if no
    earlier run had it with the same parameter, data, code and outputs of what it needs (or its files were damaged)."""
    folder = tmp_path_factory.mktemp("graph")
    receipts, naive = Receipts(folder / "ours"), Receipts(folder / "naive")
    world = World(edges, dict.fromkeys(NODES, 0), dict.fromkeys(NODES, 0), dict.fromkeys(NODES, 0))
    seen: set[str] = set()
    damaged: Path | None = None
    for number, edit in enumerate([None, *edits]):
        if edit is not None:
            kind, node, value = edit
            if kind == "output":
                damaged = folder / "ours" / f"run-{number - 1:02}" / node / "file"
                damaged.unlink()
                damaged.write_text("damaged", encoding="utf-8")
            else:
                getattr(world, kind)[node] = value
        executed, left = world.run(folder / "ours" / f"run-{number:02}", receipts)
        _, expected = world.run(folder / "naive" / f"run-{number:02}", naive, fresh=True)

        assert expected == left
        for node in NODES:
            basis = json.dumps(
                [node, world.params[node], world.data[node], world.code[node], {n: left[n] for n in edges[node]}]
            )
            if basis not in seen:
                assert node in executed
            elif damaged is None:
                assert node not in executed
            seen.add(basis)
