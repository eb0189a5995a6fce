#!/bin/bash
# What:   a command on all hosts of a Cloud TPU slice, by ssh; JAX finds the hosts itself.
# Run:    TPU=my-v5e-256 ZONE=us-west4-a launch/tpu_vm.sh defend text --config defend_text --model M --names N --captions C --out RUN
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
  if ! test -x ~/.venv/bin/jaxdefense; then
    # The hosts' own Python may be too old: uv brings one.
    command -v uv >/dev/null || python3 -m pip install -q --user uv
    PATH=\$PATH:\$HOME/.local/bin
    uv venv -q --allow-existing --python 3.12 ~/.venv
    uv pip install -q --python ~/.venv/bin/python '.[tpu]'
  fi
  exec ~/.venv/bin/jaxdefense $arguments"
