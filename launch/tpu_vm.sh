#!/bin/bash
# What:   a defense on all hosts of a Cloud TPU slice, by ssh; JAX finds the hosts itself.
# Run:    TPU=my-v5e-256 ZONE=us-west4-a launch/tpu_vm.sh text --config configs/defend_text.py --model M --names N --captions C --out RUN
# Change: TPU, ZONE, PROJECT; CODE: the checkout on a file system all hosts mount, and paths M N C RUN under it.
set -euo pipefail
: "${TPU:?name of the slice}" "${ZONE:?zone of the slice}"
CODE="${CODE:-/mnt/shared/jaxdefense}"
where=(--zone="$ZONE" --worker=all)
if [[ -n "${PROJECT:-}" ]]; then where+=(--project="$PROJECT"); fi
printf -v arguments '%q ' "$@"
printf -v code '%q' "$CODE"
gcloud compute tpus tpu-vm ssh "$TPU" "${where[@]}" --command="
  set -e
  cd $code
  test -x ~/.venv/bin/jaxdefense || { python3 -m venv ~/.venv && ~/.venv/bin/pip install -q '.[tpu]'; }
  exec ~/.venv/bin/jaxdefense defend $arguments"
