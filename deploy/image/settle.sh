#!/bin/sh
# Numba's cache of a kernel holds while its source's time and size are the same, and image layers keep whole seconds
# only. Every build has a time of its own: an older image's kernels in a volume must not be taken for this one's.
set -eu
built=$(date -u '+%Y-%m-%d %H:%M:%S')
for package in headway services; do
    folder=$(cd / && python -c "import $package; print($package.__path__[0])")
    find "$folder" -name '*.py' -exec touch -d "$built" {} +
    python -m compileall -q "$folder"
done
