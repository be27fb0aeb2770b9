#!/bin/sh
# Numba wants its cache in a folder that it may write to, and the image's own is read-only: what the image has compiled
# and the folder has not, or older, is copied there first.
set -eu
if [ -n "${NUMBA_CACHE_DIR:-}" ] && mkdir -p "$NUMBA_CACHE_DIR"; then
    cp -ru /app/numba/. "$NUMBA_CACHE_DIR"
fi
exec "$@"
