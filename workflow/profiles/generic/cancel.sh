#!/bin/sh
# End jobs: cancel.sh ID... On a cluster: qdel "$@", bkill "$@".
for id in "$@"; do
    kill -- "-$id"
done
