#!/bin/bash
# Tells uv what pip was told about package indexes, by environment or file. Sourced, with $python set; exports variables only.

# uv does not read pip's configuration. What pip was told, by environment or file, is passed on; what uv was told wins.
told() {
    local variable="PIP_$1" option
    option="$(tr '[:upper:]_' '[:lower:]-' <<<"$1")"
    if [ -n "${!variable:-}" ]; then echo "${!variable}"; return; fi
    "$python" -m pip config get "global.$option" 2>/dev/null || "$python" -m pip config get "install.$option" 2>/dev/null || true
}
words() { tr -s ' \n' "$1" | sed "s/^$1//; s/$1\$//"; }
if [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then
    index="$(told INDEX_URL)"; [ -z "$index" ] || export UV_DEFAULT_INDEX="$index"
fi
if [ -z "${UV_INDEX:-}${UV_EXTRA_INDEX_URL:-}" ]; then
    # Every file must match a hash of the lock, so taking it from any index is safe.
    extra="$(told EXTRA_INDEX_URL | words ' ')"; [ -z "$extra" ] || export UV_INDEX="$extra" UV_INDEX_STRATEGY=unsafe-best-match
fi
if [ -z "${UV_FIND_LINKS:-}" ]; then
    links="$(told FIND_LINKS | words ,)"; [ -z "$links" ] || export UV_FIND_LINKS="$links"
fi
if [ -z "${SSL_CERT_FILE:-}" ]; then
    certificate="$(told CERT)"; [ -z "$certificate" ] || export SSL_CERT_FILE="$certificate"
fi
