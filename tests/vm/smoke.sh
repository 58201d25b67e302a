#!/bin/sh
# One agent, one request through an unmodified server, and nothing left behind: run in another kernel by
#   ./x vm 6.1 -- tests/vm/smoke.sh
# SPANWIRE_BIN names the agent's binary (else the debug build), SPANWIRE_HOOKS the family of hooks to ask for.
set -eu

cd "$(dirname "$0")/../.."
agent=${SPANWIRE_BIN:-${CARGO_TARGET_DIR:-target}/debug/spanwire}
place=$(mktemp -d)
api=127.0.0.1:9464
pids=
trap 'for pid in $pids; do kill "$pid" 2>/dev/null || true; done; rm -rf "$place"' EXIT

fail() {
    echo "FAIL ($(uname -r)): $*"
    cat "$place/agent.log" 2>/dev/null || true
    exit 1
}

# wait_for WHAT COMMAND...: tries for up to two minutes (the verifier is slow in an emulated machine).
wait_for() {
    what=$1
    shift
    for _ in $(seq 240); do
        if "$@" >/dev/null 2>&1; then
            return 0
        fi
        sleep 0.5
    done
    fail "no $what"
}

loaded() {
    for kind in prog map link; do
        bpftool --json "$kind" list | tr '{' '\n' | sed -n "s/^\"id\":\([0-9]*\).*/$kind \1/p"
    done | sort
}

[ -x "$agent" ] || fail "$agent is not there: cargo build"
mkdir "$place/www" "$place/store"
echo hello >"$place/www/hello.txt"
python3 -m http.server --bind 127.0.0.1 --directory "$place/www" 8099 >"$place/server.log" 2>&1 &
server=$!
pids=$server
wait_for "server" curl -sf http://127.0.0.1:8099/hello.txt

loaded >"$place/before"
cat >"$place/spanwire.yaml" <<END
capture: {include: [{port: 8099}], paths: raw}
api: {listen: "$api"}
store: {path: "$place/store"}
END
"$agent" run --config "$place/spanwire.yaml" >"$place/agent.log" 2>&1 &
agent_pid=$!
pids="$pids $agent_pid"
started() { ! kill -0 "$agent_pid" 2>/dev/null || curl -sf "http://$api/readyz"; }
wait_for "answer of /readyz" started
kill -0 "$agent_pid" 2>/dev/null || fail "the agent has ended"
echo "ready: $(curl -s "http://$api/readyz")"

[ "$(curl -s http://127.0.0.1:8099/hello.txt)" = hello ] || fail "the server answers otherwise than without an agent"
curl -s -o "$place/missing" http://127.0.0.1:8099/missing
curl -s -o "$place/list" http://127.0.0.1:8099/

# A client's and a server's span for each of the three requests, joined.
spans() { curl -s "http://$api/api/traces?limit=10" | tr '{' '\n' | grep -c '"spanCount":2'; }
whole() { [ "$(spans)" -eq 3 ]; }
wait_for "three traces of two spans: $(curl -s "http://$api/api/traces?limit=10")" whole
"$agent" traces --api "http://$api" || fail "no list of traces"
trace=$(curl -s "http://$api/api/traces?limit=10" | tr ',{' '\n\n' | sed -n 's/.*"traceId":"\([0-9a-f]*\)".*/\1/p' | tail -n 1)
"$agent" trace "$trace" --api "http://$api" >"$place/tree" || fail "no trace $trace"
cat "$place/tree"
grep -q 'GET /hello.txt' "$place/tree" || fail "the first request is not in its trace"
# A process that is known by now asks on a new connection each time: its requests leave with a trace context.
python3 - <<'END' >"$place/client.log" 2>&1 &
import time, urllib.request
for _ in range(200):
    urllib.request.urlopen("http://127.0.0.1:8099/hello.txt").read()
    time.sleep(0.2)
END
pids="$pids $!"
injected() { curl -s "http://$api/metrics" | grep -q '^spanwire_injections_total{result="ok"} [1-9]'; }
wait_for "request with a trace context: $(curl -s "http://$api/readyz")" injected
curl -s "http://$api/metrics" | grep -E '^spanwire_injections_total'

curl -s "http://$api/metrics" | grep -E '^spanwire_(opaque|kernel_dropped|dropped|hook)[a-z_]*\{' | grep -v ' 0$' || true

kill -TERM "$agent_pid"
wait "$agent_pid" || fail "the agent ended with status $?"
gone() { loaded >"$place/after"; [ -z "$(comm -13 "$place/before" "$place/after")" ]; }
for _ in $(seq 20); do
    gone && break
    sleep 0.5
done
gone || fail "left in the kernel: $(comm -13 "$place/before" "$place/after" | tr '\n' ' ')"
echo "PASS: $(uname -r)"
