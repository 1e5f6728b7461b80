"""AWS as boto3 finds it: the clients of a deploy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from botocore.exceptions import NoRegionError

from infra.deploy.deployment import Session
from infra.deploy.terminal import agreed, say


def session_of(*, yes: bool = False) -> Session:
    """A session of the environment's credentials and region, which agrees to everything if ``yes``.

    Raises botocore's errors.
    """
    import boto3
    from botocore.config import Config

    mine = boto3.Session()
    if not mine.region_name:
        raise NoRegionError()
    config = Config(retries={"mode": "standard", "total_max_attempts": 6}, user_agent_extra="liveinsight-deploy")
    made: dict[tuple[str, str], Any] = {}
    make: Callable[..., Any] = mine.client

    def client(service: str, region: str) -> Any:
        if (service, region) not in made:
            made[service, region] = make(service, region_name=region, config=config)
        return made[service, region]

    return Session(client, mine.region_name, say, (lambda _: True) if yes else agreed)
