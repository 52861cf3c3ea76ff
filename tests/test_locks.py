"""Locks of a home: one holder; where no file can be made, the file that is there; where there is none, a letter."""

from pathlib import Path

import pytest

from esteira import locks
from esteira.errors import OutsideError, Refused


def test_a_lock_has_one_holder_and_is_free_after(tmp_path: Path) -> None:
    with locks.hold(tmp_path, "a b", what="this"):
        assert '"what": "this"' in (tmp_path / "locks" / "a_b.lock").read_text(encoding="utf-8")
        with pytest.raises(Refused) as caught, locks.hold(tmp_path, "a b"):
            pass
        assert "locked" == caught.value.code
    with locks.hold(tmp_path, "a b"):
        pass
    assert "" == (tmp_path / "locks" / "a_b.lock").read_text(encoding="utf-8")


def test_what_can_only_be_read_locks_as_well(tmp_path: Path) -> None:
    (tmp_path / "locks" / "line.lock").mkdir(parents=True)  # nobody, not even root, opens a folder to write
    with locks.hold(tmp_path, "line"):
        with pytest.raises(Refused) as caught, locks.hold(tmp_path, "line"):
            pass
        assert "locked" == caught.value.code
    with locks.hold(tmp_path, "line"):
        pass


def test_a_lock_that_cannot_be_made_is_a_letter(tmp_path: Path) -> None:
    (tmp_path / "locks").write_text("no folder", encoding="utf-8")
    with pytest.raises(OutsideError) as caught, locks.hold(tmp_path, "line"):
        pass
    assert "no_lock" == caught.value.code
    assert caught.value.cure
