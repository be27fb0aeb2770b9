#!/bin/sh
# Runs while a worker's image is built: starts the worker (`prebuild.sh ADDRESS COMMAND...`) until it serves, so that
# its kernels are compiled, and leaves them in /app/numba. What it measured of this machine is not kept.
set -eu
address=$1
shift
export NUMBA_CACHE_DIR=/app/numba
"$@" --listen "$address" --cache-dir /tmp/calibration &
worker=$!
tries=0
until headway health "$address" >/dev/null 2>&1; do
    kill -0 "$worker"
    tries=$((tries + 1))
    [ "$tries" -lt 120 ]
    sleep 1
done
kill -TERM "$worker"
wait "$worker"
rm -rf /tmp/calibration
