"""Lambda handlers for the event source's tests. What happens is appended, as JSON, to a file that the environment names.

A record's data says what the handler is to do: "raise", "hang" or "exit" once, that is at the first invocation that
meets the record; "always hang"; anything else is just handled.
"""

import base64
import json
import os
import sys
import time
from pathlib import Path


def handler(event, context):
    texts = [base64.b64decode(record["kinesis"]["data"]).decode() for record in event["Records"]]
    shard = event["Records"][0]["eventID"].partition(":")[0]
    note("began", shard, texts)
    for record, text in zip(event["Records"], texts, strict=True):
        if text == "always hang" or (text in ("raise", "hang", "exit") and first_time(record["eventID"])):
            {"raise": fail, "exit": lambda: sys.exit(3)}.get(text, lambda: time.sleep(600))()
        if text.startswith("slow"):
            time.sleep(0.8)
    note("done", shard, texts)
    return {"batchItemFailures": []}


def describe(event, context):
    assert 0 < context.get_remaining_time_in_millis() <= 5000
    print("printed by the handler")
    return {
        "pid": os.getpid(),
        "event": event,
        "context": [
            context.function_name,
            context.memory_limit_in_mb,
            context.invoked_function_arn,
            context.aws_request_id,
            context.function_version,
        ],
    }


def with_powertools(event, context):
    from aws_lambda_powertools import Logger

    @Logger(service="test").inject_lambda_context
    def logged(event, context):
        return event

    return logged(event, context)


def no_json(event, context):
    return {"batchItemFailures": {1, 2}}


def obey(event, context):
    """What the event says: a pid, an exception, an exit, or no end."""
    match event["do"]:
        case "raise":
            fail()
        case "exit":
            os._exit(7)
        case "hang":
            time.sleep(600)
    return os.getpid()


def fail():
    raise ValueError("as the record says")


def first_time(event_id):
    marker = Path(os.environ["EVENT_SOURCE_TEST_LOG"]).with_name("met " + event_id.replace(":", "-"))
    if marker.exists():
        return False
    marker.touch()
    return True


def note(what, shard, texts):
    line = json.dumps({"what": what, "pid": os.getpid(), "shard": shard, "texts": texts}) + "\n"
    with open(os.environ["EVENT_SOURCE_TEST_LOG"], "ab", buffering=0) as log:
        log.write(line.encode())
