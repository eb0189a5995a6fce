#!/bin/bash
# What:   a command in several processes on this machine's CPU, joined over loopback: a rehearsal of a cluster.
# Run:    NUM=4 launch/local_cpu.sh jaxdefense defend text --model M --names N --captions C --out RUN
# Change: NUM processes, DEVICES simulated in each, PORT of the first.
set -euo pipefail
NUM="${NUM:-2}"
export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES="${DEVICES:-1}" JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo
export JAX_COORDINATOR_ADDRESS="127.0.0.1:${PORT:-8476}" JAX_NUM_PROCESSES="$NUM"
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true' INT TERM
for ((i = 0; i < NUM; i++)); do
  JAX_PROCESS_ID="$i" "$@" &
  pids+=("$!")
done
worst=0
for pid in "${pids[@]}"; do
  code=0
  wait "$pid" || code=$?
  # A signal's trap ends the wait, not the process.
  while kill -0 "$pid" 2>/dev/null; do
    code=0
    wait "$pid" || code=$?
  done
  if ((code > worst)); then worst=$code; fi
done
exit "$worst"
