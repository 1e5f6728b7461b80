"""``python -m query_api keys`` as an operator runs it: real processes and an embedded DynamoDB."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from infra.local.stacks import DATA, load_template
from query_api.read_keys import ReadKeys, Refused
from tests.query_api.stored import NAMES

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def aws():
    """The environment of an embedded AWS that has the table."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environ = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "LIVEINSIGHT_ROLLUPS_TABLE": NAMES.rollups,
    }
    properties = load_template(DATA)["Resources"]["RollUpsTable"]["Properties"]
    wanted = {name: properties[name] for name in ("BillingMode", "AttributeDefinitions", "KeySchema")}
    client(environ).create_table(TableName=NAMES.rollups, **wanted)
    yield environ
    server.stop()


def client(environ):
    return boto3.client(
        "dynamodb",
        endpoint_url=environ["AWS_ENDPOINT_URL"],
        region_name="us-east-1",
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
    )


def keys(*arguments, **environ):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "LIVEINSIGHT_"))}
    return subprocess.run(
        [sys.executable, "-m", "query_api", "keys", *arguments],
        cwd=ROOT,
        env=clean | {"AWS_CONFIG_FILE": os.devnull} | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_from_create_to_revoke(aws) -> None:
    made = keys("create", "--site", "blog", "--name", "wall", **aws)
    key = made.stdout.strip()
    assert made.returncode == 0
    assert made.stdout == f"{key}\n"
    assert re.fullmatch(r"li_[0-9a-f]+_[0-9a-f]+", key)
    assert made.stderr == "Keep it: it is not shown again. It reads site blog alone.\n"
    server = ReadKeys(client(aws), NAMES, lambda: 0)
    server.check(f"Bearer {key}", "blog")

    _, key_id, secret = key.split("_")
    listed = keys("list", **aws)
    assert re.fullmatch(rf"{key_id}  20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ  blog  wall\n", listed.stdout)
    as_json = keys("list", "--site", "blog", "--json", **aws)
    facts = json.loads(as_json.stdout)
    assert (facts["id"], facts["site"], facts["name"]) == (key_id, "blog", "wall")
    assert secret not in listed.stdout + as_json.stdout
    other = keys("list", "--site", "shop", **aws)
    assert (other.returncode, other.stdout, other.stderr) == (0, "", "there are no read keys of site shop\n")

    revoked = keys("revoke", key_id, **aws)
    assert (revoked.returncode, revoked.stdout) == (0, "")
    assert "within a minute" in revoked.stderr
    again = keys("revoke", key_id, **aws)
    assert (again.returncode, again.stderr) == (1, f"keys: there is no read key '{key_id}'\n")
    with pytest.raises(Refused):
        ReadKeys(client(aws), NAMES, lambda: 0).check(f"Bearer {key}", "blog")


def test_a_site_that_cannot_be_is_one_clear_line(aws) -> None:
    made = keys("create", "--site", "my blog", **aws)
    assert (made.returncode, made.stdout) == (1, "")
    assert made.stderr == "keys: 'my blog' is no site: 1 to 64 letters, digits, '.', '_' and '-'\n"


def test_without_an_environment_it_is_the_make_run_of_this_machine() -> None:
    with socket.socket() as nobody:  # bound, and never listening
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        listed = keys("list", AWS_PORT=str(port))
    assert listed.returncode == 1
    assert listed.stderr == (
        f'keys: Could not connect to the endpoint URL: "http://127.0.0.1:{port}/"\n'
        "Is `make run` running, or do AWS_* and LIVEINSIGHT_* name the table?\n"
    )


def test_a_table_that_is_not_there_is_told_of(aws) -> None:
    listed = keys("list", **aws | {"LIVEINSIGHT_ROLLUPS_TABLE": "elsewhere"})
    assert listed.returncode == 1
    assert "ResourceNotFoundException" in listed.stderr
    assert "do AWS_* and LIVEINSIGHT_* name the table?" in listed.stderr
    assert "Traceback" not in listed.stderr


@pytest.mark.parametrize("arguments", [[], ["create"], ["revoke"], ["lend"]])
def test_a_wrong_command_line(arguments) -> None:
    ended = keys(*arguments)
    assert ended.returncode == 2
    assert ended.stderr.startswith("usage: python -m query_api keys")
