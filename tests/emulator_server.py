"""Runs ministack, in its own environment. One thing is mended there: on AWS, a function that is invoked by an alias is
told the ARN of that alias, and a replay's generation is its name; ministack tells the ARN of the version behind it.
"""

from typing import Any

from ministack.app import main
from ministack.services import lambda_svc

_resolved = lambda_svc._get_func_record_for_qualifier


def _with_the_aliass_arn(name: str, qualifier: str | None) -> tuple[Any, Any]:
    record, config = _resolved(name, qualifier)
    function = lambda_svc._functions.get(name)
    if record and function and qualifier in function.get("aliases", {}):
        config = {**config, "FunctionArn": f"{function['config']['FunctionArn']}:{qualifier}"}
        record = {**record, "config": config}
    return record, config


lambda_svc._get_func_record_for_qualifier = _with_the_aliass_arn
main()
