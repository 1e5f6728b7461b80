"""Demo traffic: posts what invented visitors do to the collector, as browsers with the tracker would."""

from __future__ import annotations

import argparse
import http.client
import json
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from urllib.parse import urlsplit

from infra.local.demo_visitors import Request, bundle, traffic

#: What is past already is sent at this rate (events per second), in requests of this many.
FILL_RATE, BUNDLE = 400.0, 100
#: Seconds by which a request may be behind its time.
MOST_LATE = 60.0


class Sender:
    """Posts requests to the collector, several at once, and again when it cannot take them."""

    def __init__(self, url: str, stop: threading.Event) -> None:
        parts = urlsplit(url)
        self._host, self._port, self._path = parts.hostname or "", parts.port or 80, parts.path
        self._stop = stop
        self._local = threading.local()

    def send(self, request: Request) -> bool:
        """Send until it is accepted; False if told to stop before, or if the collector refuses it for good."""
        wait = 0.2
        while not self._stop.is_set():
            try:
                status = self._post(request)
            except (OSError, http.client.HTTPException):
                self._local.connection = None
                status = 503
            if status < 500 and status != 429:
                return status < 300
            self._stop.wait(random.uniform(wait / 2, wait))
            wait = min(wait * 2, 5.0)
        return False

    def _post(self, request: Request) -> int:
        connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = http.client.HTTPConnection(self._host, self._port, timeout=40)
        body = json.dumps({"events": request.events, "sent_at": int(time.time() * 1000)})
        connection.request("POST", self._path, body, {"Content-Type": "text/plain", **request.headers})
        response = connection.getresponse()
        response.read()
        return response.status


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.local.demo", description="Demo traffic for a collector.")
    parser.add_argument("--url", default="http://127.0.0.1:8080/events", help="where to post (default %(default)s)")
    parser.add_argument("--rate", type=float, default=8.0, help="events per second, about (default %(default)s)")
    parser.add_argument("--history", type=float, default=45.0, help="minutes to begin before now (default %(default)s)")
    parser.add_argument("--seed", type=int, help="for the same visitors again")
    options = parser.parse_args(arguments)
    if options.rate <= 0 or options.history < 0:
        parser.error("--rate must be above 0, and --history not below")

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    sender = Sender(options.url, stop)
    start = int(time.time() * 1000)
    requests = traffic(random.Random(options.seed), start, options.rate, int(options.history * 60_000))
    past: list[Request] = []
    for request in requests:
        if request.at > start:
            requests = chain([request], requests)
            break
        past.append(request)
    filling = threading.Thread(target=_fill_in, args=(past, sender, stop))
    filling.start()
    _keep_up(requests, sender, stop, workers=min(32, max(4, round(options.rate))))
    filling.join()
    return 0


def _fill_in(past: list[Request], sender: Sender, stop: threading.Event) -> None:
    """Send what was before the start, the latest first, and slowly enough to leave the live traffic its room."""
    for request in reversed(bundle(past, BUNDLE)):
        if stop.wait(BUNDLE / FILL_RATE):
            return
        sender.send(request)


def _keep_up(requests: Iterator[Request], sender: Sender, stop: threading.Event, workers: int) -> None:
    """Send each request at its time, until told to stop."""
    free = threading.Semaphore(workers * 2)

    def send(request: Request) -> None:
        try:
            sender.send(request)
        finally:
            free.release()

    with ThreadPoolExecutor(workers) as pool:
        for request in requests:
            ahead = request.at / 1000 - time.time()
            # A collector that was away is not flooded afterwards with all that it missed.
            if ahead < -MOST_LATE:
                continue
            if stop.wait(max(0.0, ahead)):
                return
            free.acquire()
            pool.submit(send, request)


if __name__ == "__main__":
    sys.exit(main())
