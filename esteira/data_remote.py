"""Takes data/ from DVC's remote and puts it there, by the hash that data.dvc names; makes no data and commits nothing.

The remote's address goes into .dvc/config.local, which git does not see; credentials and S3's endpoint stay in the environment.
"""

import json
import subprocess
import sys
from pathlib import Path

from esteira.errors import ConfigError, OutsideError, Refused
from esteira.settings import redact

TRACKED = "data.dvc"
_NAME = "esteira"


def remote(url: str | None, root: Path) -> str:
    """The remote that DVC would use here, after `url` was made the default one; empty where there is none.

    Args:
        url: a folder or `s3://bucket/prefix`; None leaves DVC's own configuration alone.
        root: folder of data.dvc.

    Raises:
        ConfigError: a remote is asked for where data.dvc is not tracked.
        OutsideError: DVC cannot be run or refuses the address.
    """
    if not ((root / TRACKED).is_file() and (root / ".dvc").is_dir()):
        if url is None:
            return ""
        raise ConfigError(
            f"a remote is for data that DVC tracks, but here is no {TRACKED}",
            code="no_dvc", where="ESTEIRA_DVC_REMOTE", cure="run it in the project's folder",
        )  # fmt: skip
    if url is not None:
        _dvc(root, "remote", "add", "--local", "--force", "--default", _NAME, url)
    return _dvc(root, "config", "core.remote", fails={251: ""}).strip()


def pull(root: Path) -> None:
    """Bring data/ to what data.dvc names; what a person changed there is not overwritten.

    Raises:
        OutsideError: the remote does not have it, does not answer, or data/ holds something else.
    """
    _dvc(root, "pull", TRACKED)


def push(root: Path) -> None:
    """Put what data.dvc names into the remote.

    Raises:
        Refused: data/ is something else than data.dvc names.
        OutsideError: the remote does not take it.
    """
    status = json.loads(_dvc(root, "status", "--json", TRACKED))
    states = {state for changed in status.get(TRACKED, ()) for state in changed.get("changed outs", {}).values()}
    if states - {"not in cache"}:
        raise Refused(
            f"what is pushed is what {TRACKED} names, but data/ is {', '.join(sorted(states))}",
            code="other_data",
            where="data/",
            cure="`esteira data` brings back what is named; `dvc add data` names what is there",
        )
    if states:  # written, but never seen by DVC
        _dvc(root, "commit", "--force", TRACKED)
    _dvc(root, "push", TRACKED)


def _dvc(root: Path, *arguments: str, fails: dict[int, str] | None = None) -> str:
    """What DVC printed. `fails`: exit codes that are answers too."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=root, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if done.returncode in (fails or {}):
        return (fails or {})[done.returncode]
    if done.returncode != 0:
        lines = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        said = redact(" ".join(lines) or done.stderr.strip()[-300:])
        raise OutsideError(
            f"`dvc {arguments[0]}` must end with 0, but ended with {done.returncode}: {said[:500]}",
            code="dvc_failed",
            where=f"dvc {redact(' '.join(arguments))}",
            cure=f"check the remote's address and credentials, that it holds what {TRACKED} names, and that data/ holds nothing"
            f" else; `dvc remote list` shows where DVC looks, `dvc remote remove --local {_NAME}` forgets it",
        )
    return done.stdout
