"""Throwaway environments of the peers, made from the hash-pinned lock beside each; kept until its lock changes.

python -m benchmarks.orchestrators.environments          # make those that are missing
python -m benchmarks.orchestrators.environments --lock   # take newer versions into the locks
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.orchestrators.peers import PROJECTS

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "orchestrators"
# The lock pins every file by hash; packages come from where pip is told to take them from.
_MAKE = """
set -euo pipefail
python="$2"; uv="$3"; . requirements/index.sh
"$uv" venv --quiet --clear --python "$python" "$1"
"$uv" pip sync --quiet --python "$1/bin/python" --require-hashes --compile-bytecode "$4"
"""


def ensure(lock: Path, folder: Path = BUILD) -> Path:
    """The environment of one lock, made if it is not there.

    Args:
        lock: `requirements.lock` of a peer.
        folder: holds the environments, `<peer>-<hash of the lock and this Python>`.

    Returns:
        Its folder of commands.

    Raises:
        SystemExit: it could not be made; what was begun is removed.
    """
    key = hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()[:12]
    place = folder / f"{lock.parent.name}-{key}"
    if not (place / "ready").exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        base = str(Path(sys.base_prefix) / "bin" / "python3")
        done = subprocess.run(
            ["bash", "-c", _MAKE, "make", str(place), base, uv(), str(lock)],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            shutil.rmtree(place, ignore_errors=True)
            raise SystemExit(f"the environment of {lock.parent.name} could not be made:\n{done.stderr[-3000:]}")
        (place / "ready").touch()
    return place / "bin"


def uv() -> str:
    """The uv beside this Python, or on PATH.

    Raises:
        SystemExit: there is none.
    """
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        raise SystemExit("needs uv, which `make setup` installs beside this Python")
    return found


def lock_all() -> None:
    """Write every lock anew from the `requirements.in` beside it: names, versions and hashes, no address and no path."""
    kept = {name: value for name, value in os.environ.items() if name not in {"UV_FIND_LINKS", "PIP_FIND_LINKS"}}
    for asked in sorted(PROJECTS.glob("*/requirements.in")):
        subprocess.run(
            [
                uv(), "pip", "compile", "--quiet", "--universal", "--generate-hashes", "--upgrade", "--python-version", "3.11",
                "--custom-compile-command", "python -m benchmarks.orchestrators.environments --lock",
                asked.name, "--output-file", "requirements.lock",
            ],
            cwd=asked.parent, env=kept, check=True,
        )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lock", action="store_true", help="write the locks instead")
    if parser.parse_args().lock:
        lock_all()
    else:
        for file in sorted(PROJECTS.glob("*/requirements.lock")):
            print(ensure(file))
