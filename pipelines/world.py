"""What the release DAG of one line reads of its surroundings: code, data, and what registry and store say now. Runs nothing."""

import hashlib
import json
from functools import cached_property
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esteira.errors import EsteiraError, Refused
from esteira.family import Line
from esteira.settings import Settings, redact
from pipelines.code import ROOT, files_of, hashes
from pipelines.plan import Plan
from pipelines.reuse import Receipt, Receipts
from pipelines.shape import Step

if TYPE_CHECKING:
    from esteira.registry import Registry, Version
    from esteira.store import Store


def code_of(step: Step, family: str) -> dict[str, str]:
    """File -> SHA-256 of a step's code: its module, all that it imports, its body in the pipeline, what it reads of the family."""
    modules, patterns = [f"components.{step.name}"], list(step.files)
    folder = f"families/{family}"
    for pattern in step.family:
        if pattern.endswith(".py"):
            # sample.py is the command that writes the golden sample, and no part of a model.
            stems = [path.stem for path in (ROOT / folder).glob(pattern) if path.stem != "sample"]
            modules += [f"families.{family}.{stem}" for stem in stems]
            # What its code may read by a name of its own, such as a list of words.
            patterns += [f"{folder}/{name}" for name in _own_files(ROOT / folder)]
        else:
            patterns.append(f"{folder}/{pattern}")
    return hashes(files_of(modules), patterns=patterns, functions=[f"pipelines/ops.py::{step.name}"])


def _own_files(folder: Path) -> list[str]:
    """Files of a family besides modules at its top and what every family has: they have a meaning of their own, or none."""
    known = {"README.md", "gate.yaml", "resources.yaml", "sample", "__pycache__"}
    below = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    own = (path for path in below if path.parts[0] not in known and "__pycache__" not in path.parts)
    return [escape(path.as_posix()) for path in own if len(path.parts) > 1 or path.suffix not in {".py", ".pyc"}]


class World:
    """The surroundings of one line's run, each looked up once and only when it is asked for."""

    def __init__(self, plan: Plan, settings: Settings, receipts: Receipts) -> None:
        self.plan, self.settings, self.receipts = plan, settings, receipts
        self.family = Line.parse(plan.line).family

    @cached_property
    def store(self) -> "Store":
        from esteira.store import Store

        return Store.open(self.settings.database_url, self.settings.tenant)

    @cached_property
    def registry(self) -> "Registry":
        from esteira.registry import Registry

        return Registry(self.settings)

    @cached_property
    def champion(self) -> "Version | None":
        return self.registry.resolve(self.plan.line)

    @cached_property
    def champion_folder(self) -> str:
        """The folder of the line's present champion, verified; empty when there is none."""
        return "" if self.champion is None else str(self.registry.fetch(self.champion))

    @cached_property
    def content(self) -> str:
        """Hash of what the source holds now; empty where it cannot be read, which the step ingest will say better.

        Raises:
            EsteiraError: it cannot be read, and the run is a repeat, which must know that the bytes are the same.
        """
        from esteira import sources

        limits: dict[str, Any] = {}
        if section := self.plan.sections.get("ingest"):
            from components.ingest import Params

            limits = Params.model_validate(section).model_dump(include={"query", "max_rows", "max_bytes"})
        try:
            return sources.fingerprint(self.plan.source, **limits)
        except EsteiraError:
            if self.plan.data_hash:
                raise
            return ""

    def with_data_hash(self) -> Plan:
        """The plan with the hash of its data.

        Raises:
            Refused: it is a repeat, and the data are other ones.
        """
        if self.plan.data_hash and self.plan.data_hash != self.content:
            raise Refused(
                f"a repeated run reads the bytes that it read first, {self.plan.data_hash[:12]}, but now they are"
                f" {self.content[:12]}",
                code="data_changed",
                where=f"{self.plan.line}, {self.plan.source}",
                cure="bring back the file as it was, or run without --from to learn from what is there now",
            )
        return self.plan.model_copy(update={"data_hash": self.content})

    def pipeline(self) -> Any:
        from pipelines.dag import release

        return release

    def serves(self, version: int | None) -> bool:
        """Whether a version of the line is its champion at this moment."""
        now = self.registry.resolve(self.plan.line)
        return now is not None and now.version == version

    def data(self, step: Step) -> dict[str, str]:
        return {redact(self.plan.source): self.content} if "source" in step.takes else {}

    def settings_of(self, step: Step) -> dict[str, str]:
        """Evaluate boots the real server, which computes where these say."""
        if step.name != "evaluate":
            return {}
        return {
            "ESTEIRA_DEVICE": self.settings.device, "CUDA_VISIBLE_DEVICES": self.settings.cuda_visible_devices or "",
        }  # fmt: skip

    def notes(self, step: Step, place: Path) -> dict[str, str]:
        """What tells later whether a receipt still stands: the champion it was made against, and what it made."""
        if step.name == "ingest":
            return {"content": read_json(place / "dataset.json").get("content_hash", "")}
        against = {"champion": "" if self.champion is None else self.champion.bundle_id}
        if step.name == "validate":
            return {**against, "contract": _hash(place / "contract.yaml")}
        if step.name == "evaluate":
            contract = _hash(place.parent / "validate" / "contract.yaml")
            return {**against, "contract": contract, "bundle": read_json(place / "gate.json").get("bundle_id", "")}
        if step.name == "register":
            told = read_json(place / "receipt.json")
            return {
                "bundle": told["bundle_id"],
                "version": str(told["version"]),
                "mlflow": redact(self.settings.mlflow_uri),
            }
        if step.name == "deploy":
            told = read_json(place / "deployment.json")
            return {"version": str(told["version"]), "alias": told["alias"]}
        return {}

    def stands(self, step: Step, receipt: Receipt) -> str:
        """Why what a step did is not what it would do now, although all that it reads is the same."""
        notes = receipt.notes
        if step.name == "ingest":
            if not self.content:
                return "the source cannot be read now"
            read = notes.get("content", self.content)
            return "" if read == self.content else f"the source was changed while run {receipt.run_id} read it"
        now = "" if self.champion is None else self.champion.bundle_id
        if step.name == "validate" and now != notes["champion"] and self._contract_of(now) != notes["contract"]:
            # The champion's contract is enforced; without one it is inferred, and the very same one changes nothing.
            return f"the champion's contract is another one: {_short(now)} instead of {_short(notes['champion'])}"
        if step.name == "evaluate" and now not in {notes["champion"], notes["bundle"]}:
            return f"it compares with the champion, which changed from {_short(notes['champion'])} to {_short(now)}"
        if step.name == "register":
            version = self.store.get_version(self.plan.line, int(notes["version"]))
            if version is None or version.bundle_id != notes["bundle"]:
                return f"version {notes['version']} is not in this registry"
            if notes.get("mlflow") != (mlflow := redact(self.settings.mlflow_uri)):
                return f"version {notes['version']} was registered in MLflow at {notes.get('mlflow')}, not at {mlflow}"
        if step.name == "deploy":
            serving = self.registry.resolve(self.plan.line, notes["alias"])
            if serving is None or str(serving.version) != notes["version"]:
                at = "nothing" if serving is None else f"version {serving.version}"
                return f"alias {notes['alias']} points at {at}, not at version {notes['version']}"
            if serving.state == "rolled_back":
                return f"version {notes['version']} was rolled back"
        return ""

    def _contract_of(self, bundle_id: str) -> str:
        """Hash of the contract that a bundle made here was made under; empty where no receipt knows it."""
        if not bundle_id:
            return ""
        made = (receipt.notes for receipt in self.receipts.all("evaluate"))
        return next((notes["contract"] for notes in made if notes.get("bundle") == bundle_id), "")


def read_json(path: Path) -> dict[str, Any]:
    """The document of a file; empty when there is none."""
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return document


def _short(bundle_id: str) -> str:
    return bundle_id[:12] or "none"


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
