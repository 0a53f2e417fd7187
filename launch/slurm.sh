#!/usr/bin/env bash
# Starts a run on all nodes of a SLURM job, one process a node, and again if it dies.
#
#   sbatch --nodes=4 --gpus-per-node=8 launch/slurm.sh CONFIG WORKDIR [--config.FIELD=VALUE ...]
#
# To be submitted from the repository's root. WORKDIR and the repository have to be on a
# file system that all nodes share. Output goes to SLURM's file and to WORKDIR/log.txt, each
# line with the number of its process. A run that ends with an error goes on from its last
# checkpoint, at most RESTARTS times (default 0).
# PYTHON is the interpreter (default: .venv/bin/python as `make install` makes it).
#SBATCH --job-name=vrag_jax
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
set -uo pipefail

if [ $# -lt 2 ]; then
    sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
if [ -z "${SLURM_JOB_ID:-}" ]; then
    echo "no SLURM job here: submit this script with sbatch, or run it inside salloc" >&2
    exit 2
fi
# SLURM runs a copy of this script that lies elsewhere.
root=${SLURM_SUBMIT_DIR:-$PWD}
python=${PYTHON:-$root/.venv/bin/python}
config=$1
workdir=$2
shift 2
if [ ! -f "$root/vrag_jax/main.py" ]; then
    echo "$root is not the repository: submit this script from its root" >&2
    exit 2
fi
if ! command -v "$python" >/dev/null; then
    echo "no Python at $python: run 'make install' first, or set PYTHON" >&2
    exit 2
fi
mkdir -p "$workdir" || exit 2
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

for ((attempt = 0; attempt <= ${RESTARTS:-0}; attempt++)); do
    [ "$attempt" -gt 0 ] && echo "restart $attempt of $RESTARTS" | tee -a "$workdir/log.txt"
    # A node's one process is not bound to one of its cores. When one has died SLURM ends the
    # others, sooner than they would miss it.
    srun --ntasks-per-node=1 --cpu-bind=none --kill-on-bad-exit=1 --label \
        "$python" -u -m vrag_jax.main \
        --config="$config" --workdir="$workdir" "$@" 2>&1 | tee -a "$workdir/log.txt"
    code=${PIPESTATUS[0]}
    [ "$code" -eq 0 ] && exit 0
done
exit "$code"
