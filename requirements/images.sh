#!/bin/bash
# Builds the images named on the command line from the Dockerfile; called by `make images`.
#   images.sh TARGET...
# Read from the environment: ENGINE (docker or buildah), PREFIX, BASE, BUILD_FLAGS, REVISION.
# The package index that pip or uv is told of, and the certificate, go in as build secrets.
set -euo pipefail
cd "$(dirname "$0")/.."

# A docker client without BuildKit (one without its buildx plugin, say) cannot mount a secret; another one may lie beside it.
can_build() { DOCKER_BUILDKIT=1 "$1" build --help 2>/dev/null | grep -q -e --secret; }
engine="${ENGINE:-}"
for candidate in docker /usr/bin/docker; do
    [ -n "$engine" ] || ! can_build "$candidate" || engine="$candidate"
done
[ -n "$engine" ] || { echo "images: needs docker with BuildKit on PATH, or ENGINE=buildah" >&2; exit 2; }
prefix="${PREFIX:-localhost}" python="${PYTHON:-python3}"
version="$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' esteira/__init__.py)"
revision="${REVISION:-$(git rev-parse --verify --quiet HEAD || echo unknown)}"
if [ -z "${REVISION:-}" ] && [ "$revision" != unknown ] && ! git diff --quiet HEAD 2>/dev/null; then revision="$revision-dirty"; fi

. requirements/index.sh
secrets="$(mktemp -d)"
trap 'rm -rf "$secrets"' EXIT
touch "$secrets/index" "$secrets/ca"
# A folder of this machine is no address in a container: only addresses go in; wheels beside us go into build/wheels.
addresses() { tr ' ,' '\n' <<<"${!1:-}" | grep -E '^(.*=)?https?://' | paste -sd ' ' || true; }
for name in UV_DEFAULT_INDEX UV_INDEX_URL UV_INDEX UV_EXTRA_INDEX_URL UV_FIND_LINKS; do
    found="$(addresses "$name")"
    [ "$name" != UV_FIND_LINKS ] || found="${found// /,}"
    [ -z "$found" ] || printf 'export %s=%q\n' "$name" "$found"
done > "$secrets/index"
index="${UV_DEFAULT_INDEX:-${UV_INDEX_URL:-}}"
[ -z "$index" ] || printf 'export PIP_INDEX_URL=%q\n' "$index" >> "$secrets/index"
[ -z "${UV_INDEX_STRATEGY:-}" ] || printf 'export UV_INDEX_STRATEGY=%q\n' "$UV_INDEX_STRATEGY" >> "$secrets/index"
[ -z "${SSL_CERT_FILE:-}" ] || cp "$SSL_CERT_FILE" "$secrets/ca"

rm -rf build/wheels
mkdir -p build/wheels
for folder in $(tr , ' ' <<<"${UV_FIND_LINKS:-}"); do
    torch="$(sed -n 's/^torch==\([^ ;+]*\).*/\1/p' requirements/torch.lock)"
    [ ! -d "$folder" ] || find "$folder" -maxdepth 1 -name "torch-$torch*.whl" -exec cp --reflink=auto {} build/wheels/ \;
done

case "$(basename "$engine")" in
    # Only the docker format keeps a health check.
    buildah) build=("$engine" build --layers --isolation chroot --format docker) ;;
    *) export DOCKER_BUILDKIT=1; build=("$engine" build) ;;
esac
[ -z "${BASE:-}" ] || build+=(--build-arg "BASE=$BASE")
for target in "$@"; do
    echo "images: $prefix/esteira-$target:$version"
    # shellcheck disable=SC2086 # flags are words
    "${build[@]}" --network host --target "$target" --tag "$prefix/esteira-$target:$version" \
        --secret "id=index,src=$secrets/index" --secret "id=ca,src=$secrets/ca" \
        --build-arg "VERSION=$version" --build-arg "REVISION=$revision" \
        ${BUILD_FLAGS:-} .
done
