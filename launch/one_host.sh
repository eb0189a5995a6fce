#!/bin/bash
# What:   a command on all GPUs of one host, in one process; after a crash it goes on from its checkpoint.
# Run:    launch/one_host.sh defend text --config defend_text --model M --names N --captions C --out RUN
# Change: GPUS=0,1 for some of them, RETRIES after a crash, JAXDEFENSE for another installation.
set -euo pipefail
if [[ -n "${GPUS:-}" ]]; then export CUDA_VISIBLE_DEVICES="$GPUS"; fi
read -ra command <<<"${JAXDEFENSE:-jaxdefense}"
for ((left = ${RETRIES:-2}, before = 0; ; left--)); do
  code=0
  "${command[@]}" "$@" || code=$?
  # Refused after it had run: that run was finished, and said what is wrong with it.
  if ((code == 2 && before)); then exit "$before"; fi
  before=$code
  # 0 is done, 2 a wrong input, above 128 a signal: only the rest may go better the next time.
  if ((code == 0 || code == 2 || code > 128 || left <= 0)); then exit "$code"; fi
  echo "one_host.sh: exit code $code; going on from the last checkpoint, $left left" >&2
  sleep "${PAUSE:-5}"
done
