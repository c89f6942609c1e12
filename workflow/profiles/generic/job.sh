#!/bin/sh
# properties = {properties}
# What Snakemake has a job run, as cd FOLDER && COMMAND && ...: its words are quoted as Python's, and a shell would take
# one with both ' and $ apart.
exec python -c 'import os, shlex, sys
_, folder, _, *words = shlex.split(sys.stdin.read())
os.chdir(folder)
os.execvp(words[0], words[: words.index("&&")])' <<'END'
{exec_job}
END
