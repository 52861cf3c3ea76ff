"""Stores for tests: the same test on SQLite and on a real PostgreSQL, each test with a tenant of its own."""

import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from esteira.store import Store


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database of this session, migrated once."""
    if request.param == "postgresql":
        url: str = request.getfixturevalue("postgres_url")
    else:
        url = f"sqlite:///{tmp_path_factory.mktemp('store') / 'esteira.db'}"
    return url


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    """A store that holds nothing yet."""
    opened = Store.open(store_url, tenant=f"t{secrets.token_hex(6)}")
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file that holds nothing; a copy is faster than migrating again."""
    path = tmp_path_factory.mktemp("template") / "esteira.db"
    Store.open(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def sqlite_store(tmp_path: Path, sqlite_template: Path) -> Store:
    """A store in a fresh SQLite file."""
    shutil.copy(sqlite_template, tmp_path / "esteira.db")
    return Store.open(f"sqlite:///{tmp_path / 'esteira.db'}")
