"""What every Python workload shares: which request this is, and what to call for it."""

import os


def calls(variable="CALLS"):
    """(hop, base URL) pairs, from CALLS="hop=URL hop=URL"."""
    return [tuple(item.split("=", 1)) for item in os.environ.get(variable, "").split()]


def request_id(path):
    """The id in /r/<id> or /o/<id>/<hop>."""
    return path.split("?", 1)[0].split("/")[2]
