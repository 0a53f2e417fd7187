#!/usr/bin/env bash
# Starts a run on this machine, keeps its log, and starts it again if it dies.
#
#   launch/local.sh CONFIG WORKDIR [--config.FIELD=VALUE ...]
#
# Output goes to the terminal and to WORKDIR/log.txt. A run that ends with an error, or is
# killed, goes on from its last checkpoint, at most RESTARTS times (default 0).
# PYTHON is the interpreter (default: .venv/bin/python as `make install` makes it).
set -uo pipefail

if [ $# -lt 2 ]; then
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
config=$1
workdir=$2
shift 2
if ! command -v "$python" >/dev/null; then
    echo "no Python at $python: run 'make install' first, or set PYTHON" >&2
    exit 2
fi
mkdir -p "$workdir" || exit 2

for ((attempt = 0; attempt <= ${RESTARTS:-0}; attempt++)); do
    [ "$attempt" -gt 0 ] && echo "restart $attempt of $RESTARTS" | tee -a "$workdir/log.txt"
    PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} "$python" -m vrag_jax.main \
        --config="$config" --workdir="$workdir" "$@" 2>&1 | tee -a "$workdir/log.txt"
    code=${PIPESTATUS[0]}
    [ "$code" -eq 0 ] && exit 0
done
exit "$code"
