"""The DVC door end to end: a clean clone reproduces to the same bytes, a change re-runs what depends on it, data travel by remote."""

import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from esteira.datasets import write_data
from pipelines.code import files_of
from pipelines.shape import STEPS

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("ingest", "validate", "featurize", "train", "evaluate")
DONE = "Data and pipelines are up to date."
# What a step imports and what yet cannot change a byte of its outputs: how it dies and complains, and, because no stage has
# a champion, all that looks one up or makes one.
HARMLESS = (
    r"\w+/__init__\.py",
    r"esteira/(access/\w+|crash|errors|locks|project|settings)\.py",
    r"components/champions\.py",
    r"esteira/(ledger|registry|release|store)/.*",
)


def _project() -> Any:
    return yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))


@functools.cache
def _stages() -> Any:
    return yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


# ---------------------------------------------------------------- what is committed


def test_every_block_of_params_says_what_a_stage_takes() -> None:
    """DVC has no defaults: a block without one of these keys, or with an empty source, stops `dvc repro` for every family."""
    for name, block in _project()["families"].items():
        missing = {"source", "target", "seed", *STAGES} - set(block)
        assert set() == missing, f"params.yaml, families.{name}: say them, if need be as `{{}}`"
        assert re.match(r"s3://|https://|[\w.-]+(/|$)", block["source"]), f"families.{name}.source: what DVC can watch"


@pytest.mark.parametrize("step", [step for step in STEPS if step.name in STAGES], ids=lambda step: step.name)
def test_the_code_that_a_step_imports_is_what_its_stage_watches(step: Any) -> None:
    families = list(_project()["families"]) if step.family else []
    # sample.py is the command that writes a family's golden sample; no step imports it.
    own = [
        f"families.{name}.{path.stem}"
        for name in families
        for path in (ROOT / "families" / name).glob("*.py")
        if path.stem != "sample"
    ]
    reached = {path.relative_to(ROOT).as_posix() for path in files_of([f"components.{step.name}", *own])}
    needed = {"components/door.py"} | {
        path for path in reached if not any(re.fullmatch(pattern, path) for pattern in HARMLESS)
    }
    told = [
        path
        for path in _stages()[step.name]["do"]["deps"]
        if path.split("/")[0] in {"components", "esteira", "serving"}
    ]
    told += ["families/${key}"] if "families/${key}" in _stages()[step.name]["do"]["deps"] else []
    watched = [path.replace("${key}", name) for path in told for name in families or [""]]

    unseen = [
        path for path in sorted(needed) if not any(path == told or path.startswith(f"{told}/") for told in watched)
    ]
    idle = [told for told in watched if not any(path == told or path.startswith(f"{told}/") for path in needed)]

    assert ([], []) == (unseen, idle), "dvc.yaml: add what is imported, take away what is not"


def test_data_dvc_names_the_bytes_that_esteira_data_writes(tmp_path: Path) -> None:
    write_data(tmp_path)
    tracked = yaml.safe_load((ROOT / "data.dvc").read_text(encoding="utf-8"))["outs"][0]
    files = [
        {"md5": hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest(), "relpath": path.name}
        for path in sorted(tmp_path.iterdir())
    ]
    whole = hashlib.md5(json.dumps(files).encode(), usedforsecurity=False).hexdigest()

    assert ("data", f"{whole}.dir", len(files)) == (tracked["path"], tracked["md5"], tracked["nfiles"])


def test_dvc_calls_home_and_stages_for_git_nothing_and_gives_files_not_links() -> None:
    from configparser import ConfigParser

    config = ConfigParser()
    config.read(ROOT / ".dvc" / "config")

    assert {"analytics": "false", "autostage": "false", "check_update": "false"} == dict(config["core"])
    # A bundle refuses symbolic links, and a hard link would make a product read-only.
    assert "reflink,copy" == config["cache"]["type"]
    assert [] == [section for section in config.sections() if "remote" in section], "a remote is each one's own"


# ---------------------------------------------------------------- a clean clone


class Clone:
    """A clean clone of the working tree or of another clone, with DVC's state beside it and this interpreter on PATH."""

    def __init__(self, folder: Path, of: "Clone | None" = None) -> None:
        self.root = folder / "clone"
        self.env = {
            **os.environ,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "ESTEIRA_HOME": str(folder / "home"),
            **{f"DVC_{name}_DIR": str(folder / name) for name in ("SITE_CACHE", "GLOBAL_CONFIG", "SYSTEM_CONFIG")},
        }
        if of is not None:
            subprocess.run(["git", "clone", "--quiet", str(of.root), str(self.root)], check=True)
            return
        for name in _tracked():
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.root / name)
        self("git", "init", "--quiet")
        self("git", "add", "--all")
        self("git", "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "--quiet", "--message", "clone")

    def __call__(self, *words: str, code: int = 0, **env: str) -> str:
        done = subprocess.run(
            words, cwd=self.root, capture_output=True, text=True, timeout=600, env={**self.env, **env}
        )
        assert code == done.returncode, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def dvc(self, *words: str, **options: Any) -> str:
        return self(sys.executable, "-m", "dvc", *words, **options)

    def esteira(self, *words: str, **options: Any) -> str:
        return self(sys.executable, "-m", "esteira.cli", *words, **options)

    def repro(self) -> list[str]:
        """Families' stages that ran."""
        return re.findall(r"^Running stage '(.+)':$", self.dvc("repro"), re.MULTILINE)

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def edit(self, name: str, change: Any) -> None:
        path = self.root / name
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        change(document)
        path.write_text(yaml.safe_dump(document), encoding="utf-8")


def _tracked() -> list[str]:
    """Files that are or would be committed."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        pytest.skip("needs a git checkout to know which files are part of the tree")
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone after `esteira data` and the first `dvc repro`; a test leaves it as it found it."""
    clone = Clone(tmp_path_factory.mktemp("dvc"))
    clone.esteira("data", "--pull")
    assert sorted(f"{stage}@{family}" for family in _project()["families"] for stage in STAGES) == sorted(clone.repro())
    return clone


@pytest.mark.slow
def test_after_data_and_repro_there_is_nothing_to_do(reproduced: Clone) -> None:
    assert DONE == reproduced.dvc("status").strip()
    before = reproduced.read("dvc.lock")

    assert [] == reproduced.repro()
    assert before == reproduced.read("dvc.lock")


@pytest.mark.slow
def test_the_committed_lock_is_of_the_committed_code_and_parameters(reproduced: Clone) -> None:
    """Code, parameters and commands are the same on every machine; the bytes of a model only on machines of a kind."""

    def fixed(text: bytes) -> Any:
        stages = yaml.safe_load(text)["stages"]
        return {
            name: {
                "cmd": stage["cmd"],
                "params": stage["params"],
                "code": {dep["path"]: dep["md5"] for dep in stage["deps"] if not dep["path"].startswith("build/")},
            }
            for name, stage in stages.items()
        }

    assert fixed((ROOT / "dvc.lock").read_bytes()) == fixed(reproduced.read("dvc.lock")), (
        "run `make repro`, commit dvc.lock"
    )


@pytest.mark.slow
def test_what_a_stage_writes_are_files_that_may_be_written(reproduced: Clone) -> None:
    made = [path for path in (reproduced.root / "build").rglob("*") if path.name != "dvc"]

    assert (reproduced.root / "build/tabular/dvc/evaluate/bundle/manifest.sha256") in made
    assert [] == [path for path in made if path.is_symlink() or (path.is_file() and path.stat().st_nlink != 1)]
    assert [] == [path for path in made if path.is_file() and not path.stat().st_mode & 0o200]


@pytest.mark.slow
def test_metrics_and_plots_are_shown(reproduced: Clone) -> None:
    shown = json.loads(reproduced.dvc("metrics", "show", "--json"))[""]["data"]
    written = json.loads(reproduced.read("build/tabular/dvc/evaluate/metrics.json"))
    page = reproduced.dvc("plots", "show", "--out", "../plots").strip().removeprefix("file://")

    assert written["metrics"] == shown["build/tabular/dvc/evaluate/metrics.json"]["data"]["metrics"]
    text = Path(page).read_text(encoding="utf-8")
    board = json.loads(reproduced.read("build/tabular/dvc/train/leaderboard.json"))
    assert "tabular, trials" in text
    assert [] == [trial for trial in board if repr(trial["score"]) not in text]


@pytest.mark.slow
def test_a_changed_parameter_runs_its_step_and_what_follows(reproduced: Clone) -> None:
    params, lock = reproduced.read("params.yaml"), reproduced.read("dvc.lock")
    reproduced.edit("params.yaml", lambda document: document["families"]["tabular"]["train"].update(trials=3))

    assert ["train@tabular", "evaluate@tabular"] == reproduced.repro()
    assert 3 == len([row for row in json.loads(reproduced.read("build/tabular/dvc/train/leaderboard.json"))
                     if row["kind"] != "blend"])  # fmt: skip

    (reproduced.root / "params.yaml").write_bytes(params)
    assert ["evaluate@tabular"] == reproduced.repro(), (
        "train comes back from DVC's cache, evaluate makes its bundle anew"
    )
    assert lock == reproduced.read("dvc.lock")
    graphs = [reproduced.read(f"build/tabular/dvc/{made}/graph.onnx") for made in ("train/model", "evaluate/bundle")]
    assert graphs[0] == graphs[1]


@pytest.mark.slow
def test_one_changed_byte_of_data_or_of_code_is_noticed(reproduced: Clone) -> None:
    for name, stages in (("data/breast_cancer.csv", ["ingest"]), ("esteira/automl/splits.py", ["train"])):
        before = reproduced.read(name)
        (reproduced.root / name).write_bytes(before + b"\n")

        status = json.loads(reproduced.dvc("status", "--json"))

        assert {f"{stage}@tabular" for stage in stages} == set(status) - {"data.dvc"}, name
        assert ("data.dvc" in status) == name.startswith("data/")
        (reproduced.root / name).write_bytes(before)
    assert DONE == reproduced.dvc("status").strip()


@pytest.mark.slow
def test_a_scaffolded_family_is_reproduced_and_no_other_step_runs(reproduced: Clone) -> None:
    kept = {name: reproduced.read(name) for name in ("params.yaml", "dvc.lock", "dvc.yaml")}
    reproduced(sys.executable, "-m", "pipelines.scaffold", "planted")
    reproduced(sys.executable, "-m", "families.planted.sample")

    assert [f"{stage}@planted" for stage in STAGES] == reproduced.repro()
    assert "planted" == json.loads(reproduced.read("build/planted/dvc/evaluate/metrics.json"))["line"]
    assert kept["dvc.yaml"] == reproduced.read("dvc.yaml")

    shutil.rmtree(reproduced.root / "families" / "planted")
    shutil.rmtree(reproduced.root / "manifests" / "overlays" / "planted")
    for name, text in kept.items():
        (reproduced.root / name).write_bytes(text)


@pytest.mark.slow
def test_dvc_and_esteira_run_measure_the_same_to_the_bit(reproduced: Clone) -> None:
    released = json.loads(reproduced.esteira("run", "tabular", "--set", "deploy.rehearse=false", "--json"))
    folder = Path(released["bundle"]).parent

    assert "released" == released["status"]
    assert reproduced.read("build/tabular/dvc/evaluate/metrics.json") == reproduced.read(f"{folder}/metrics.json")
    for made in (
        "train/model/graph.onnx",
        "train/leaderboard.json",
        "validate/contract.yaml",
        "featurize/decoder.json",
    ):
        assert reproduced.read(f"build/tabular/dvc/{made}") == reproduced.read(f"{folder.parent}/{made}"), made


# ---------------------------------------------------------------- the remote


@pytest.fixture
def bucket() -> Iterator[dict[str, str]]:
    """An S3-shaped server on loopback with a bucket `lake`: what the environment must say to reach it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    env = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "ESTEIRA_DVC_REMOTE": "s3://lake/esteira"}
    import boto3

    client = boto3.client("s3", endpoint_url=env["AWS_ENDPOINT_URL"])
    client.create_bucket(Bucket="lake")
    yield env
    client.close()
    server.stop()


@pytest.mark.slow
def test_data_pushed_from_one_clone_are_pulled_in_another_and_reproduce_to_the_same_lock(
    reproduced: Clone, bucket: dict[str, str], tmp_path: Path
) -> None:
    other = Clone(tmp_path, of=reproduced)
    empty = json.loads(other.esteira("data", "--pull", "--json", code=2, **bucket))["error"]
    assert "dvc_failed" == empty["code"]
    assert not (other.root / "data").exists(), "what a remote should have is not made up"

    told = json.loads(reproduced.esteira("data", "--push", "--json", **bucket))
    assert {"remote": "esteira", "pushed": "data"} == told
    other.esteira("data", "--pull", **bucket)

    assert {path.name: path.read_bytes() for path in (reproduced.root / "data").iterdir()} == {
        path.name: path.read_bytes() for path in (other.root / "data").iterdir()
    }
    assert "" == other("git", "status", "--porcelain"), "the remote's address is not committed"
    assert bucket["AWS_ENDPOINT_URL"].encode() not in other.read(".dvc/config.local")
    assert [f"{stage}@tabular" for stage in STAGES] == other.repro(), "nothing but data/ came from the remote"
    assert reproduced.read("dvc.lock") == other.read("dvc.lock")
    (reproduced.root / ".dvc" / "config.local").unlink()


@pytest.mark.slow
def test_only_what_data_dvc_names_is_pushed_and_a_change_is_not_overwritten(tmp_path: Path) -> None:
    clone = Clone(tmp_path)
    remote = {"ESTEIRA_DVC_REMOTE": str(tmp_path / "remote")}
    nowhere = json.loads(clone.esteira("data", "--push", "--json", code=2))["error"]
    assert "no_remote" == nowhere["code"]

    clone.esteira("data")
    clone.esteira("data", "--push", **remote)
    mine = clone.root / "data" / "wine.csv"
    mine.write_bytes(mine.read_bytes() + b"\n")
    changed = mine.read_bytes()

    refused = json.loads(clone.esteira("data", "--push", "--json", code=1, **remote))["error"]
    assert "other_data" == refused["code"]
    pulled = json.loads(clone.esteira("data", "--pull", "--json", code=2, **remote))["error"]
    assert "dvc_failed" == pulled["code"]
    assert changed == mine.read_bytes()


def test_a_remote_asked_for_where_nothing_is_tracked_is_refused(esteira_home: Path) -> None:
    from esteira import data_remote
    from esteira.errors import ConfigError

    assert "" == data_remote.remote(None, Path())
    with pytest.raises(ConfigError, match=r"data\.dvc"):
        data_remote.remote("s3://lake/x", Path())
