#!/usr/bin/env bash
# Starts a run on all hosts of a TPU slice, one process a host, and again if it dies.
#
#   TPU=NAME ZONE=ZONE launch/tpu_vm.sh install
#   TPU=NAME ZONE=ZONE launch/tpu_vm.sh CONFIG WORKDIR [--config.FIELD=VALUE ...]
#   TPU=NAME ZONE=ZONE launch/tpu_vm.sh stop
#
# `install` copies what is committed here to every host, into ~/vrag_jax, and makes the
# environment there. WORKDIR is a path on the hosts, on a file system that they share (NFS,
# or a bucket that is mounted). Output goes to the terminal and to LOG (default: NAME.log).
# A run that ends with an error goes on from its last checkpoint, at most RESTARTS times
# (default 0). If this script is interrupted the run goes on; `stop` ends it.
# gcloud's PROJECT is the current one unless set.
set -uo pipefail

if [ $# -lt 1 ] || { [ $# -lt 2 ] && [ "$1" != install ] && [ "$1" != stop ]; }; then
    sed -n '2,13s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
if [ -z "${TPU:-}" ] || [ -z "${ZONE:-}" ]; then
    echo "set TPU to the name of the TPU VM and ZONE to its zone" >&2
    exit 2
fi
if ! command -v gcloud >/dev/null; then
    echo "no gcloud here: install the Google Cloud CLI" >&2
    exit 2
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
where=(--zone="$ZONE" ${PROJECT:+--project="$PROJECT"} --worker=all)

on_all_hosts() {
    gcloud compute tpus tpu-vm ssh "$TPU" "${where[@]}" --command="$1"
}

case $1 in
install)
    archive=$(mktemp -d)/vrag_jax.tar.gz
    trap 'rm -r "$(dirname "$archive")"' EXIT
    git -C "$root" archive --format=tar.gz --output="$archive" HEAD || exit
    gcloud compute tpus tpu-vm scp "$archive" "$TPU:vrag_jax.tar.gz" "${where[@]}" || exit
    on_all_hosts 'mkdir -p vrag_jax && tar -xzf vrag_jax.tar.gz -C vrag_jax &&
        make -C vrag_jax install ACCELERATOR=tpu'
    exit
    ;;
stop)
    # The brackets keep the shell that runs this from being found.
    on_all_hosts "pkill -f '[v]rag_jax.main' || true"
    exit
    ;;
esac

config=$1
workdir=$2
log=${LOG:-$TPU.log}
shift 2
command="cd vrag_jax && .venv/bin/python -u -m vrag_jax.main$(
    printf ' %q' --config="$config" --workdir="$workdir" "$@")"

for ((attempt = 0; attempt <= ${RESTARTS:-0}; attempt++)); do
    [ "$attempt" -gt 0 ] && echo "restart $attempt of $RESTARTS" | tee -a "$log"
    on_all_hosts "$command" 2>&1 | tee -a "$log"
    code=${PIPESTATUS[0]}
    [ "$code" -eq 0 ] && exit 0
done
exit "$code"
