"""What can go wrong at AWS, in words that name the cause and the remedy. Pure."""

from __future__ import annotations

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProfileNotFound,
    TokenRetrievalError,
)

_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "InvalidClientTokenId", "UnrecognizedClientException"}
_DENIED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "Forbidden", "403"}
_SIGN_IN = "sign in (aws sso login, or set AWS_PROFILE) and give the command again"


class Failed(Exception):  # noqa: N818 - carries a sentence to the user
    """A command cannot go on; the message names the cause and what to do."""


def explained(error: ClientError | BotoCoreError) -> str:
    """What an error of AWS or boto3 means to an operator."""
    if isinstance(error, NoCredentialsError | PartialCredentialsError | ProfileNotFound | TokenRetrievalError):
        return f"there are no usable AWS credentials ({error}): {_SIGN_IN}"
    if isinstance(error, NoRegionError):
        return "no AWS region is set: set AWS_REGION, or a region in the profile"
    if isinstance(error, EndpointConnectionError):
        return f"AWS cannot be reached ({error}): is the network up, and AWS_REGION a region?"
    if isinstance(error, ClientError):
        code = error.response["Error"].get("Code", "")
        said = error.response["Error"].get("Message", "")
        if code in _EXPIRED:
            return f"AWS does not know the credentials any more ({code}): {_SIGN_IN}"
        if code in _DENIED:
            return (
                f"{error.operation_name} is not allowed to you: {said or code}\n"
                "Have the action allowed to the role that you deploy with, and give the command again."
            )
        return f"{error.operation_name}: {said or code} ({code})"
    return str(error)


def is_code(error: ClientError, *codes: str) -> bool:
    """Whether AWS answered with one of these error codes."""
    return error.response["Error"].get("Code") in codes
