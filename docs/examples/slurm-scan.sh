#!/bin/bash
# Scan an archive with an array of Slurm jobs, a shard each. Submit it again to resume: finished shards are only
# checked. `sbatch --array=3,7 slurm-scan.sh` runs two of them. slurm-merge.sh joins the results.
#SBATCH --job-name=gbad-batch
#SBATCH --array=0-15
#SBATCH --cpus-per-task=16
#SBATCH --mem=16G
#SBATCH --time=12:00:00
#SBATCH --requeue
set -u
shards=${SHARDS:-16}            # not SLURM_ARRAY_TASK_COUNT, which is smaller when only some are submitted again
archive=${ARCHIVE:-/archive}    # a path that every node has
results=${RESULTS:-results}     # a folder that every node can write to

mkdir -p "$results"
gbad-batch scan "$archive" --shard "$SLURM_ARRAY_TASK_ID/$shards" --update --quiet \
    --out "$results/shard-$SLURM_ARRAY_TASK_ID.parquet"
code=$?
[ "$code" -eq 3 ] && exit 0     # done, and some images have no score
exit "$code"
