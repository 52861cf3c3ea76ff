"""The bundle is what was sealed or it is refused: every way of changing one is tried here, and nothing is unpickled."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from esteira.bundle import answerer, open_bundle, seal, verify
from esteira.errors import ConfigError, EsteiraError, Refused, SourceError
from esteira.family import OpenBundle
from esteira.onnx.graph import Graph
from tests.small_graph import constant

MANIFEST = {"family": "tabular", "line": "tabular@toy", "stages": ["decode", "graph.onnx", "post"]}
ROOT = Path(__file__).resolve().parents[1]


def _files(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "graph.onnx").write_bytes(constant(np.array([0.25, 0.75]), features=3, classes=2))
    (folder / "decoder.json").write_text('{"columns": []}', encoding="utf-8")
    (folder / "card.md").write_text("# A toy\n\nfor tests.", encoding="utf-8")
    return folder


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    folder = _files(tmp_path / "bundle")
    seal(folder, manifest=MANIFEST)
    return folder


def _reseal(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Forge: change the manifest and make its seal fit, as one who can write files would."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    change(manifest)
    raw = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(raw)
    (folder / "manifest.sha256").write_text(hashlib.sha256(raw).hexdigest() + "\n", encoding="ascii")


def _refusal(folder: Path, bundle_id: str | None = None) -> str:
    """The code with which both verify and open_bundle refuse."""
    codes = []
    for door in (lambda: verify(folder, bundle_id), lambda: open_bundle(folder, bundle_id=bundle_id)):
        with pytest.raises(EsteiraError) as caught:
            door()
        assert caught.value.cure
        assert caught.value.where
        codes.append(caught.value.code)
    assert codes[0] == codes[1]
    return codes[0]


def test_the_id_is_the_hash_of_the_manifest_and_the_manifest_names_every_file(sealed: Path) -> None:
    manifest = verify(sealed)

    raw = (sealed / "manifest.json").read_bytes()
    identity = hashlib.sha256(raw).hexdigest()
    assert f"{identity}\n" == (sealed / "manifest.sha256").read_text(encoding="ascii")
    assert {"graph.onnx", "decoder.json", "card.md"} == set(manifest["files"])
    for name, listed in manifest["files"].items():
        content = (sealed / name).read_bytes()
        assert {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)} == listed
    assert manifest == verify(sealed, identity)


def test_the_same_files_and_words_give_the_same_id(tmp_path: Path) -> None:
    first = seal(_files(tmp_path / "a"), manifest=MANIFEST)
    second = seal(_files(tmp_path / "b"), manifest=dict(reversed(MANIFEST.items())))
    other = seal(_files(tmp_path / "c"), manifest={**MANIFEST, "line": "tabular@other"})

    assert first == second != other


def test_a_bundle_may_have_folders_of_files(tmp_path: Path) -> None:
    folder = _files(tmp_path / "bundle")
    (folder / "text").mkdir()
    (folder / "text" / "tokenizer.json").write_text("{}", encoding="utf-8")
    seal(folder, manifest=MANIFEST)

    assert b"{}" == open_bundle(folder).read("text/tokenizer.json")


def _flip(folder: Path) -> None:
    content = bytearray((folder / "graph.onnx").read_bytes())
    content[-3] ^= 1
    (folder / "graph.onnx").write_bytes(content)


def _link(folder: Path) -> None:
    (folder / "decoder.json").replace(folder.parent / "decoder.json")
    (folder / "decoder.json").symlink_to(folder.parent / "decoder.json")


def _link_folder(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir()
    (folder / "more").symlink_to(folder.parent / "elsewhere")


def _link_manifest(folder: Path) -> None:
    (folder / "manifest.json").replace(folder.parent / "manifest.json")
    (folder / "manifest.json").symlink_to(folder.parent / "manifest.json")


TAMPERED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (_flip, "bundle_changed"),
    "a longer file": (lambda f: (f / "card.md").write_text("# A toy\n\nfor tests. More."), "bundle_changed"),
    "an emptied text": (lambda f: (f / "card.md").write_text(""), "bundle_changed"),
    "a missing file": (lambda f: (f / "decoder.json").unlink(), "bundle_missing"),
    "an unlisted file": (lambda f: (f / "extra.json").write_text("{}"), "bundle_unlisted"),
    "an unlisted hidden file": (lambda f: (f / ".hidden").write_text(""), "bundle_unlisted"),
    "a left temporary file": (lambda f: (f / ".card.md.1.tmp").write_text(""), "bundle_unlisted"),
    "an empty folder": (lambda f: (f / "cache").mkdir(), "bundle_unlisted"),
    "a linked file": (_link, "bundle_link"),
    "a linked folder": (_link_folder, "bundle_link"),
    "a linked manifest": (_link_manifest, "bundle_link"),
    "a fifo": (lambda f: os.mkfifo(f / "pipe.json"), "bundle_type"),
    "no seal": (lambda f: (f / "manifest.sha256").unlink(), "bundle_unsealed"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "bundle_unsealed"),
    "a changed manifest": (
        lambda f: (f / "manifest.json").write_bytes((f / "manifest.json").read_bytes() + b" "),
        "bundle_manifest",
    ),
    "a garbled seal": (lambda f: (f / "manifest.sha256").write_bytes(b"\xff\x00"), "bundle_manifest"),
}


@pytest.mark.parametrize(("change", "code"), TAMPERED.values(), ids=TAMPERED)
def test_what_is_not_what_was_sealed_is_refused(sealed: Path, change: Callable[[Path], object], code: str) -> None:
    change(sealed)

    assert code == _refusal(sealed)


FORGED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a path up": (lambda m: m["files"].update({"../secret.json": {"sha256": "0" * 64, "size": 1}}), "bundle_path"),
    "an absolute path": (lambda m: m["files"].update({"/etc/a.json": {"sha256": "0" * 64, "size": 1}}), "bundle_path"),
    "a path that winds": (lambda m: m["files"].update({"./card.md": m["files"]["card.md"]}), "bundle_path"),
    "a backslash": (lambda m: m["files"].update({"a\\b.json": m["files"]["card.md"]}), "bundle_path"),
    "the manifest itself": (lambda m: m["files"].update({"manifest.json": m["files"]["card.md"]}), "bundle_path"),
    "a type off the list": (lambda m: m["files"].update({"model.pkl": m["files"]["card.md"]}), "bundle_type"),
    "a listed file that is not there": (
        lambda m: m["files"].update({"b.json": m["files"]["card.md"]}),
        "bundle_missing",
    ),
    "a file no longer listed": (lambda m: m["files"].pop("card.md"), "bundle_unlisted"),
    "a stage without a file": (lambda m: m["stages"].append("second.onnx"), "bundle_manifest"),
    "a family that is a module path": (lambda m: m.update(family="tabular.x"), "bundle_manifest"),
    "no stages": (lambda m: m.pop("stages"), "bundle_manifest"),
    "another format": (lambda m: m.update(format=2), "bundle_manifest"),
    "files that are a list": (lambda m: m.update(files=[]), "bundle_manifest"),
}


@pytest.mark.parametrize(("change", "code"), FORGED.values(), ids=FORGED)
def test_a_forged_manifest_with_a_fitting_seal_is_refused(
    sealed: Path, change: Callable[[dict[str, Any]], None], code: str
) -> None:
    _reseal(sealed, change)

    assert code == _refusal(sealed)


def test_a_manifest_with_a_key_twice_is_refused(sealed: Path) -> None:
    raw = (sealed / "manifest.json").read_bytes().replace(b"{", b'{"family": "other",', 1)
    (sealed / "manifest.json").write_bytes(raw)
    (sealed / "manifest.sha256").write_text(hashlib.sha256(raw).hexdigest(), encoding="ascii")

    assert "bundle_manifest" == _refusal(sealed)


def test_another_bundle_than_the_one_wanted_is_refused(sealed: Path) -> None:
    """A forged bundle that is whole in itself has another id, and so is not the one that was approved."""
    wanted = (sealed / "manifest.sha256").read_text(encoding="ascii").strip()
    (sealed / "card.md").write_text("# Another toy", encoding="utf-8")
    content = (sealed / "card.md").read_bytes()
    _reseal(
        sealed,
        lambda m: m["files"].update({"card.md": {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}}),
    )

    verify(sealed)
    assert "bundle_id" == _refusal(sealed, wanted)


# What a pickle looks like, spelled out by hand: protocol 4, protocol 0 (text), and the archives that carry one.
CALL = b"cos\nsystem\n(S'touch PLANTED'\ntR."
PICKLES = {
    "binary": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0dtouch PLANTED\x85R.",
    "text": CALL,
    "archive": b"PK\x03\x04data.pkl",
    "gzip": b"\x1f\x8b\x08\x00",
}


@pytest.mark.parametrize(
    "name", ["graph.onnx", "post.json", "card.md", "notes.txt", "weights.ubj", "weights.safetensors"]
)
@pytest.mark.parametrize("content", PICKLES.values(), ids=PICKLES)
def test_a_planted_pickle_is_refused_and_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes
) -> None:
    """A pickle is refused under every type of file, at sealing and at opening, whatever its manifest says."""
    monkeypatch.chdir(tmp_path)
    folder = _files(tmp_path / "bundle")
    (folder / name).write_bytes(content)

    with pytest.raises(Refused) as caught:
        seal(folder, manifest=MANIFEST)
    assert "bundle_pickle" == caught.value.code

    (folder / name).unlink()
    (folder / "graph.onnx").write_bytes(constant(np.array([0.25, 0.75]), features=3, classes=2))
    seal(folder, manifest=MANIFEST)
    (folder / name).write_bytes(content)
    planted = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    _reseal(folder, lambda m: m["files"].update({name: planted}))
    assert "bundle_pickle" == _refusal(folder)
    assert not (tmp_path / "PLANTED").exists()


@pytest.mark.parametrize("name", ["model.pkl", "model.joblib", "model.pt", "run.py", "graph.ONNX", "noname"])
def test_only_safe_types_can_be_sealed(tmp_path: Path, name: str) -> None:
    folder = _files(tmp_path / "bundle")
    (folder / name).write_bytes(b"\x08\x01")

    with pytest.raises(Refused, match="not one of"):
        seal(folder, manifest=MANIFEST)
    assert not (folder / "manifest.json").exists()


def test_a_bundle_is_sealed_once(sealed: Path) -> None:
    with pytest.raises(Refused) as caught:
        seal(sealed, manifest=MANIFEST)
    assert "bundle_sealed" == caught.value.code


@pytest.mark.parametrize(
    "manifest",
    [{}, {**MANIFEST, "family": "Tab"}, {**MANIFEST, "stages": "graph.onnx"}, {**MANIFEST, "score": float("nan")}],
    ids=["empty", "family", "stages", "not a number"],
)
def test_a_manifest_that_says_too_little_is_not_sealed(tmp_path: Path, manifest: dict[str, Any]) -> None:
    folder = _files(tmp_path / "bundle")

    with pytest.raises(ConfigError) as caught:
        seal(folder, manifest=manifest)
    assert "bundle_manifest" == caught.value.code
    assert not (folder / "manifest.json").exists()


def test_no_folder_is_a_missing_source(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        verify(tmp_path / "nowhere")


def test_a_crash_before_the_seal_leaves_a_folder_that_is_refused(tmp_path: Path) -> None:
    folder = _files(tmp_path / "bundle")
    code = (
        "import sys; from pathlib import Path; from esteira.bundle import seal\n"
        "seal(Path(sys.argv[1]), manifest={'family': 'tabular', 'line': 'tabular', 'stages': []})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=ROOT, env={**os.environ, "ESTEIRA_CRASH_AT": "bundle.before_seal"}, check=False, timeout=60,
    )  # fmt: skip

    assert -9 == done.returncode
    assert "bundle_unsealed" == _refusal(folder)
    assert not list(folder.glob("*.tmp"))


def test_an_open_bundle_runs_its_stages_and_outlives_its_folder(sealed: Path) -> None:
    bundle = open_bundle(sealed, device="cpu")
    for path in sealed.iterdir():
        path.unlink()

    x = np.zeros((4, 3), np.float32)
    assert isinstance(bundle, OpenBundle)
    assert "cpu" == bundle.device
    assert b'{"columns": []}' == bundle.read("decoder.json")
    np.testing.assert_array_equal(np.tile([0.25, 0.75], (4, 1)), bundle.run("graph.onnx", x)["y"])
    with pytest.raises(KeyError):
        bundle.read("manifest.json")
    with pytest.raises(KeyError):
        bundle.run("other.onnx", x)


def test_an_open_bundle_answers_many_threads_alike(sealed: Path) -> None:
    bundle = open_bundle(sealed)
    wrong: list[Any] = []

    def ask() -> None:
        shapes = [bundle.run("graph.onnx", np.zeros((rows, 3), np.float32))["y"].shape for rows in range(1, 50)]
        wrong.extend(shape for rows, shape in enumerate(shapes, 1) if shape != (rows, 2))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [] == wrong


def test_a_device_that_is_not_there_fails_at_once(sealed: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("needs a machine without a GPU: this ONNX Runtime has one")
    assert "cpu" == open_bundle(sealed, device="auto").device
    with pytest.raises(ConfigError, match="NVIDIA GPU") as caught:
        open_bundle(sealed, device="cuda")
    assert "no_gpu" == caught.value.code
    with pytest.raises(ConfigError, match="auto, cpu or cuda"):
        open_bundle(sealed, device="tpu")


def test_a_file_that_only_begins_like_a_graph_is_named(tmp_path: Path) -> None:
    folder = _files(tmp_path / "bundle")
    (folder / "graph.onnx").write_bytes(b"\x08\x0anonsense")
    seal(folder, manifest=MANIFEST)

    with pytest.raises(ConfigError, match="must load in ONNX Runtime") as caught:
        open_bundle(folder)
    assert "graph.onnx" in caught.value.where


def test_a_graph_cannot_reach_weights_outside_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX lets weights lie in other files; those would escape the manifest, so such a graph does not open."""
    import onnx

    built = Graph(3)
    row = built.add("Shape", "x", start=0, end=1)
    plain = built.finish(built.add("Expand", built.constant(np.full(64, 0.5)[:1], np.float64), row), classes=None)
    model = onnx.load_from_string(plain)
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": "outside.bin", "offset": "0", "length": "8"}.items():
        weights.external_data.add(key=key, value=value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outside.bin").write_bytes(np.array([0.5]).tobytes())
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "graph.onnx").write_bytes(model.SerializeToString())
    seal(folder, manifest=MANIFEST)

    with pytest.raises(ConfigError, match="must load in ONNX Runtime"):
        open_bundle(folder)


def test_the_family_of_the_manifest_answers(tmp_path: Path) -> None:
    folder = _files(tmp_path / "bundle")
    seal(folder, manifest={**MANIFEST, "family": "no_such_family"})

    with pytest.raises(ConfigError, match="no_such_family"):
        answerer(open_bundle(folder))


def test_opening_a_bundle_needs_no_training_library(sealed: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from esteira.bundle import open_bundle\n"
        "open_bundle(Path(sys.argv[1]))\n"
        "heavy = {'pandas', 'sklearn', 'onnx', 'mlflow', 'xgboost', 'pyarrow', 'optuna', 'pickle5', 'joblib'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(sealed)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )

    assert (0, "", "") == (done.returncode, done.stdout.strip(), done.stderr)
