#!/bin/sh
# Installs one lock in a build stage of the Dockerfile, so that the same lock always leaves the same bytes. Not for a laptop.
#   install.sh LOCK VENV [uv pip install options]
# The package index and a private certificate come as build secrets (requirements/images.sh); neither stays in a layer.
set -eu
lock=$1 venv=$2
shift 2
[ ! -s /run/secrets/index ] || . /run/secrets/index
[ ! -s /run/secrets/ca ] || export SSL_CERT_FILE=/run/secrets/ca PIP_CERT=/run/secrets/ca
export UV_CACHE_DIR=/cache UV_LINK_MODE=copy UV_NO_PROGRESS=1 PYTHONHASHSEED=0

if ! command -v uv >/dev/null; then
    # The lock of the steps pins uv itself; pip fetches that one, checked by hash.
    python3 -m venv /uv
    awk '/^[^ #]/ {take = /^uv==/} take' requirements/pipeline.lock > /uv/uv.lock
    /uv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r /uv/uv.lock
    PATH="/uv/bin:$PATH"
fi
case " $* " in
    *" --target "*) ;;
    # Two packages come as source only; what builds them is pinned by the same lock.
    *) uv venv --quiet --python python3 "$venv"; set -- --require-hashes --build-constraints "$lock" --python "$venv" "$@" ;;
esac
uv pip install --quiet --no-deps --requirement "$lock" "$@"

# Compiled here: a root file system that is read-only has no other chance. A hash in place of a time, and one worker, keep the
# bytes the same from build to build; a few packages carry test files of another Python, which nobody imports.
python3 -m compileall -q -q --invalidation-mode unchecked-hash "$venv" >/dev/null || true
find "$venv" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
