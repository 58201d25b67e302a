"""Asks one server again and again, for so many seconds, and says what that took: one line of JSON.

    steady_client.py URL SECONDS kept|fresh|requests

`kept`: http.client on one connection. `fresh`: http.client on a new connection each time. `requests`: a session of the
package of that name.
"""

import http.client
import json
import sys
import time
from urllib.parse import urlsplit

# Upper bounds in microseconds; Nagle and delayed acknowledgements would show from 38 ms on.
BOUNDS_US = [100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 38_000]


def asking(url, manner):
    parts = urlsplit(url)
    if manner == "requests":
        import requests

        session = requests.Session()
        session.trust_env = False
        return lambda: (lambda answer: (answer.status_code, answer.content))(session.get(url))
    held = [http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)]

    def ask():
        if manner == "fresh":
            held[0].close()
            held[0] = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
        held[0].request("GET", parts.path)
        answer = held[0].getresponse()
        return answer.status, answer.read()

    return ask


def main():
    url, seconds, manner = sys.argv[1], float(sys.argv[2]), sys.argv[3]
    ask = asking(url, manner)
    # What the first request sets up is nobody's to measure; and the process shows what it is.
    for _ in range(20):
        ask()
    time.sleep(0.5)
    latencies = [0] * (len(BOUNDS_US) + 1)
    requests = 0
    cpu, begin = time.process_time(), time.perf_counter()
    end = begin + seconds
    now = begin
    while now < end:
        status, _ = ask()
        if status != 200:
            sys.exit(f"status {status}")
        then, now = now, time.perf_counter()
        took_us = (now - then) * 1e6
        latencies[sum(took_us >= bound for bound in BOUNDS_US)] += 1
        requests += 1
    print(json.dumps({
        "requests": requests,
        "seconds": now - begin,
        "cpu_seconds": time.process_time() - cpu,
        "bounds_us": BOUNDS_US,
        "latencies": latencies,
    }))


main()
