#!/bin/sh
# Submit a job and print its id: submit.sh THREADS MEGABYTES SCRIPT. On a cluster, in place of all that follows:
#   qsub -terse -cwd -V -pe smp "$1" -l h_vmem="$2"M "$3"         (Grid Engine)
#   qsub -V -d "$PWD" -l nodes=1:ppn="$1",mem="$2"mb "$3"         (PBS)
#   bsub -n "$1" -R "rusage[mem=$2]" sh "$3" | sed 's/.*<\([0-9]*\)>.*/\1/;q'   (LSF)
threads=$1 script=$3
[ -f "$script" ] || script=.snakemake/${3##*/.snakemake/}  # where a shell took a $ of the folder's path for its own
jobs=.snakemake/submitted
mkdir -p "$jobs"
export OMP_NUM_THREADS="$threads"
# in a session of its own, which cancel.sh ends whole; the id is the session's
setsid sh -c 'rm -f "$0/$$.exit"; sh "$1"; echo $? >"$0/$$.exit"' "$jobs" "$script" \
    >"$jobs/$(basename "$script").log" 2>&1 </dev/null &
id=$!
# the session begins a moment after the process; cancel.sh would miss it until then
until kill -s 0 -- "-$id" 2>/dev/null || ! kill -0 "$id" 2>/dev/null; do
    sleep 0.05
done
echo "$id"
