#!/usr/bin/env bash
# The runs of the study, one after the other; each goes on where it was if it is started again.
set -euo pipefail
cd "$(dirname "$0")"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
for run in folded no_batchnorm plain; do
  spectralnorm train --config "$run.toml" --out "runs/$run" --resume
done
python table.py
