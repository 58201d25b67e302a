"""A Flask service that calls others with requests, each thread with a session of its own (keep-alive)."""

import threading

import requests
from flask import Flask, request
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from calls import calls, request_id

app = Flask(__name__)
local = threading.local()


def session():
    if not hasattr(local, "session"):
        local.session = requests.Session()
        # urllib3's own retries, as services configure them: three on 503 and on failed connects and reads.
        retry = Retry(total=3, backoff_factor=0, status_forcelist=[503], raise_on_status=False)
        local.session.mount("http://", HTTPAdapter(max_retries=retry))
    return local.session


@app.route("/<path:_path>", methods=["GET", "POST"])
def answer(_path):
    ident = request_id(request.path)
    for hop, base in calls():
        try:
            status = session().get(f"{base}/o/{ident}/{hop}", timeout=30).status_code
        except requests.RequestException as error:
            return f"{ident} {hop} {type(error).__name__}", 502
        if status != 200:
            return f"{ident} {hop} {status}", 502
    return f"{ident} ok"
