"""From what a step is told of the champion to a verified folder: an alias, an address in storage, and what is refused."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from components import champions, ingest, validate
from esteira import bundle as bundles
from esteira.errors import ConfigError, Refused, SourceError
from esteira.registry import Registry
from esteira.registry.reference import resolve
from esteira.settings import Settings
from tests.stores import sqlite_template
from tests.test_registry import LINE, bundle, lead, make_bundle, put, registry, settings, template

__all__ = ["bundle", "registry", "settings", "sqlite_template", "template"]


def test_the_champion_of_a_line_without_one_is_none(settings: Settings) -> None:
    assert resolve("@champion", LINE, settings) is None


def test_an_alias_is_looked_up_now_and_verified(registry: Registry, settings: Settings, tmp_path: Path) -> None:
    """The alias moves, and so does what it resolves to; a changed bundle is refused."""
    first = put(registry, make_bundle(tmp_path / "one"))
    lead(registry, 1)
    folder = resolve("@champion", LINE, settings)
    assert folder is not None
    assert first.bundle_id == (folder / bundles.SEAL).read_text(encoding="ascii").strip()

    second = put(registry, make_bundle(tmp_path / "two", text="2"))
    lead(registry, 2)
    now, former = resolve("@champion", LINE, settings), resolve("@previous", LINE, settings)
    assert now is not None
    assert former is not None
    assert [second.bundle_id, first.bundle_id] == [
        (found / bundles.SEAL).read_text(encoding="ascii").strip() for found in (now, former)
    ]

    (now / "card.md").write_text("another", encoding="utf-8")
    with pytest.raises(Refused) as caught:
        resolve("@champion", LINE, settings)
    assert "bundle_changed" == caught.value.code


def test_an_alias_that_there_is_not_is_refused(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="an alias is one of"):
        resolve("@winner", LINE, settings)


def test_the_address_of_a_stored_bundle_needs_no_alias(registry: Registry, settings: Settings, bundle: Path) -> None:
    version = put(registry, bundle)
    assert version.uri.startswith("file://")

    folder = resolve(f"{version.uri}/", LINE, settings)

    assert folder is not None
    assert bundles.verify(folder, version.bundle_id)


def test_what_lies_elsewhere_is_of_another_line_or_is_not_there_is_refused(
    registry: Registry, settings: Settings, bundle: Path, tmp_path: Path
) -> None:
    other = put(registry, make_bundle(tmp_path / "other", line="tabular@other"), line="tabular@other")
    put(registry, bundle)

    for reference, kind, code in (
        (bundle.as_uri(), Refused, "outside_storage"),
        ("http://host/bundle", Refused, "outside_storage"),
        ("s3://bucket/bundle", Refused, "outside_storage"),
        (other.uri, Refused, "other_line"),
        (other.uri.replace("/bundle", "/nothing"), SourceError, "missing_bundle"),
    ):
        with pytest.raises(kind) as caught:
            resolve(reference, LINE, settings)
        assert code == caught.value.code, reference


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket on Moto's server, which answers as S3 does."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    boto3.client("s3").create_bucket(Bucket="champions")
    yield "champions"
    server.stop()


def test_a_bundle_in_s3_is_fetched_verified_and_kept(bucket: str, settings: Settings, bundle: Path) -> None:
    import boto3

    settings = settings.model_copy(update={"artifacts": f"s3://{bucket}/store"})
    version = put(Registry(settings), bundle)

    folder = resolve(version.uri, LINE, settings)

    assert folder == settings.home / "cache" / "bundles" / version.bundle_id
    with pytest.raises(SourceError, match=r"there is no manifest\.sha256"):
        resolve(f"{version.uri}s", LINE, settings)
    with pytest.raises(Refused, match="outside"):
        resolve(version.uri, LINE, settings.model_copy(update={"artifacts": f"s3://{bucket}/other"}))
    # Another seal over the same files is no bundle.
    key = f"{version.uri.removeprefix(f's3://{bucket}/')}/{bundles.SEAL}"
    boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=b"ab" * 32)
    with pytest.raises(Refused) as caught:
        resolve(version.uri, LINE, settings)
    assert "bundle_manifest" == caught.value.code


def test_a_step_enforces_the_contract_of_the_registrys_champion(
    registry: Registry, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--champion @champion` is resolved inside the step; a line without one gets a contract of its own."""
    monkeypatch.setenv("ESTEIRA_HOME", str(settings.home))
    rows = pd.DataFrame(
        {
            "age": [20 + i * 7 % 31 for i in range(40)],
            "city": ["Porto", "Lisboa"] * 20,
            "y": ["no", "no", "yes", "yes"] * 10,
        }
    )
    rows.to_csv(tmp_path / "t.csv", index=False)
    ingest.run(source=str(tmp_path / "t.csv"), target="y", line=LINE, out=tmp_path / "in", params=ingest.Params())

    def run(out: str) -> validate.Report:
        return validate.run(
            rows=tmp_path / "in" / "rows.parquet", dataset=tmp_path / "in" / "dataset.json", target="y", line=LINE,
            champion="@champion", out=tmp_path / out, params=validate.Params(expectations=False),
        )  # fmt: skip

    assert 2 == run("first").feature_columns
    target = {"name": "y", "task": "binary", "classes": ["no", "yes"]}
    schema = {"line": LINE, "target": target, "columns": [{"name": "age", "kind": "number"}]}
    folder = tmp_path / "sealed"
    shipped = make_bundle(folder)
    manifest = bundles.verify(shipped)
    for name in (bundles.MANIFEST, bundles.SEAL):
        (shipped / name).unlink()
    kept = {key: value for key, value in manifest.items() if key not in {"files", "format", "schema"}}
    bundles.seal(shipped, manifest={**kept, "schema": schema})
    put(registry, shipped)
    lead(registry, 1)

    assert 1 == run("second").feature_columns
    assert champions.folder("@champion", LINE) is not None
