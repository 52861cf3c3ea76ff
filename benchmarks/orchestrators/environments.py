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
from collections.abc import Callable, Iterable, Mapping, Sequence
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


def write_locks(
    projects: Path, module: str, environment: Mapping[str, str], words: Callable[[Path], Sequence[str]]
) -> None:
    """Write every lock anew from the `requirements.in` beside it: names, versions and hashes, no address and no path.

    Args:
        projects: holds a folder for each environment.
        module: whose `--lock` this is; a lock names it.
        environment: of uv.
        words: of uv, for what is asked in a file.
    """
    for asked in sorted(projects.glob("*/requirements.in")):
        subprocess.run(
            [
                uv(), "pip", "compile", "--quiet", "--generate-hashes", "--upgrade", "--python-version", "3.11", *words(asked),
                "--custom-compile-command", f"python -m {module} --lock", asked.name, "--output-file", "requirements.lock",
            ],
            cwd=asked.parent, env=environment, check=True,
        )  # fmt: skip


def lock_all() -> None:
    """Write the peers' locks anew, for every platform."""
    kept = {name: value for name, value in os.environ.items() if name not in {"UV_FIND_LINKS", "PIP_FIND_LINKS"}}
    write_locks(PROJECTS, "benchmarks.orchestrators.environments", kept, lambda _asked: ["--universal"])


def main(doc: str, locks: Callable[[], None], make: Callable[[], Iterable[Path]]) -> None:
    """The command: make what is missing, or with `--lock` write locks."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lock", action="store_true", help="write the locks instead")
    if parser.parse_args().lock:
        locks()
    else:
        for place in make():
            print(place)


if __name__ == "__main__":
    main(__doc__, lock_all, lambda: map(ensure, sorted(PROJECTS.glob("*/requirements.lock"))))
