#!/bin/bash
# Join the shards: sbatch --dependency=afterok:JOB slurm-merge.sh, where JOB is the array's number.
#SBATCH --job-name=gbad-batch-merge
#SBATCH --mem=8G
set -eu
results=${RESULTS:-results}

gbad-batch merge "$results"/shard-*.parquet --out "$results/results.parquet" --overwrite
