"""Files of a step appear whole or not at all, under their own names only: nothing that was put in the way is followed."""

import os
import stat
from pathlib import Path

import pytest

from esteira import outputs
from esteira.errors import OutsideError


def _temporary(folder: Path, name: str) -> Path:
    return folder / f".{name}.{os.getpid()}.tmp"


def test_a_link_under_a_temporary_name_is_replaced_and_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"not ours")
    out = tmp_path / "out"
    out.mkdir()
    _temporary(out, "a.json").symlink_to(other)

    outputs.write(out, {"a.json": b"{}", "b.json": b"[]"})

    assert b"not ours" == other.read_bytes()
    assert {"a.json": b"{}", "b.json": b"[]"} == {path.name: path.read_bytes() for path in out.iterdir()}
    assert not (out / "a.json").is_symlink()


def test_what_a_process_of_the_same_number_left_is_written_anew(tmp_path: Path) -> None:
    _temporary(tmp_path, "a.json").write_bytes(b"much more than what is written now")

    outputs.write(tmp_path, {"a.json": b"{}"})

    assert b"{}" == (tmp_path / "a.json").read_bytes()
    assert ["a.json"] == [path.name for path in tmp_path.iterdir()]


def test_a_folder_under_a_temporary_name_stops_all_of_it_with_a_letter(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"former")
    _temporary(tmp_path, "b.json").mkdir()

    with pytest.raises(OutsideError) as caught:
        outputs.write(tmp_path, {"a.json": b"{}", "b.json": b"[]"})

    assert "cannot_write" == caught.value.code
    assert b"former" == (tmp_path / "a.json").read_bytes()
    assert {"a.json", _temporary(tmp_path, "b.json").name} == {path.name for path in tmp_path.iterdir()}


def test_a_file_may_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    former = os.umask(0o027)
    try:
        outputs.write(tmp_path, {"a.json": b"{}"})
    finally:
        os.umask(former)

    assert 0o640 == stat.S_IMODE((tmp_path / "a.json").stat().st_mode)
