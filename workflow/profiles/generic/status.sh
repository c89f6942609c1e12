#!/bin/sh
# Print running, success or failed: status.sh ID. On a cluster, ask `qstat`, `bjobs` or `sacct`.
exit=.snakemake/submitted/$1.exit
if kill -0 "$1" 2>/dev/null && [ ! -s "$exit" ]; then
    echo running
elif [ "$(cat "$exit" 2>/dev/null)" = 0 ]; then
    echo success
else
    echo failed
fi
