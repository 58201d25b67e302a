"""client.py http.client|urllib|requests BASE LIST: makes the requests of a list, one after the other, prints what came.

A line of the list: METHOD PATH BYTES. A line of the output: PATH, status, length and sum of the body, or the error's name.
"""

import http.client
import sys
import urllib.error
import urllib.parse
import urllib.request
import zlib

KIND, BASE, LIST = sys.argv[1:4]
TIMEOUT = 20


def told(path, status, body):
    print(path, status, len(body), zlib.crc32(body), flush=True)


def failed(path, error):
    cause = error
    while cause.__cause__ or cause.__context__:
        cause = cause.__cause__ or cause.__context__
    print(path, type(error).__name__, type(cause).__name__, flush=True)


class Kept:
    """http.client over one connection, as long as it lasts."""

    def __init__(self):
        self.connection = None

    def request(self, method, path, body):
        if self.connection is None:
            self.connection = http.client.HTTPConnection(urllib.parse.urlsplit(BASE).netloc, timeout=TIMEOUT)
        try:
            self.connection.request(method, path, body=body)
            response = self.connection.getresponse()
            return response.status, response.read()
        except Exception:
            self.connection.close()
            self.connection = None
            raise


def with_urllib(method, path, body):
    request = urllib.request.Request(BASE + path, data=body, method=method)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def with_requests():
    import requests

    session = requests.Session()

    def request(method, path, body):
        response = session.request(method, BASE + path, data=body, timeout=TIMEOUT)
        return response.status_code, response.content

    return request


def main():
    request = {"http.client": Kept().request, "urllib": with_urllib}.get(KIND) or with_requests()
    with open(LIST, encoding="ascii") as lines:
        for line in lines:
            method, path, size = line.split()
            body = b"x" * int(size) if int(size) else None
            try:
                told(path, *request(method, path, body))
            except Exception as error:
                failed(path, error)


main()
