#!/usr/bin/env bash
# Starts Ray on a node, and on the first one runs a command in the cluster that they form together.
#
#   with_ray.sh RANK HEAD NODES COMMAND…      on every node, at about the same time
#
# RANK: 0 on the head, whose address or name HEAD is. NODES: how many there are; the command starts when all have
# joined or after RAY_JOIN_SECONDS (default 300), with those that have. RAY_PORT: default 6379. RAY_START_OPTIONS:
# more options of `ray start`. RAY_AUTH_TOKEN: a secret that all nodes share, without which nobody talks to this Ray
# (it has to be at least 32 characters that nobody can guess). Leaves with the command's exit code. SIGTERM reaches the command, which may finish its
# units; other nodes ignore it and end with the head. Nothing else of Ray on the machine is touched.
set -euo pipefail

rank=$1 head=$2 nodes=$3
shift 3
port=${RAY_PORT:-6379}
join_seconds=${RAY_JOIN_SECONDS:-300}
read -ra options <<<"${RAY_START_OPTIONS:-}"
: "${RAY_AUTH_TOKEN:?is the secret that the nodes share, and is not set}"
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0

listening() { (exec 3<>"/dev/tcp/$head/$port") 2>/dev/null; }

if [[ $rank -ne 0 ]]; then
    trap '' TERM
    for ((waited = 0; waited < join_seconds; waited++)); do
        listening && break
        sleep 1
    done
    # Ends when the head does, however that counts.
    ray start --address="$head:$port" --block "${options[@]}" || true
    exit 0
fi

ray start --head --node-ip-address="$head" --port="$port" --include-dashboard=false --block "${options[@]}" &
ray=$!
command=
stop() { [[ -z $command ]] || kill -TERM "$command" 2>/dev/null || true; }
leave() {
    kill -TERM "$ray" 2>/dev/null || true
    wait "$ray" 2>/dev/null || true
}
trap stop TERM
trap leave EXIT

alive() {
    python3 - "$head:$port" <<'PYTHON'
import sys
from ray._raylet import GcsClient
print(sum(node.state == 0 for node in GcsClient(address=sys.argv[1]).get_all_node_info().values()))
PYTHON
}
for ((waited = 0; waited < join_seconds; waited += 2)); do
    kill -0 "$ray" || exit 1
    [[ $(alive 2>/dev/null || echo 0) -lt $nodes ]] || break
    sleep 2
done

export RAY_ADDRESS="$head:$port"
"$@" &
command=$!
code=0
# A trap interrupts `wait`; the command is what counts.
while kill -0 "$command" 2>/dev/null; do
    code=0
    wait "$command" || code=$?
done
exit "$code"
