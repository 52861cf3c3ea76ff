"""Objects of S3, or of anything that speaks it; the endpoint and the credentials come from the usual AWS variables."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from esteira.errors import ConfigError, OutsideError, SourceError
from esteira.sources.form import FORMATS, suffix, too_large


def fetch(uri: str, max_bytes: int) -> tuple[list[tuple[str, bytes]], list[str]]:
    """Names and bytes of an object, or of the tables in a folder (`s3://bucket/folder/`); and names that are no tables.

    Raises:
        SourceError: it is missing, or these credentials may not read it.
        ConfigError: the URI has another form, or there are no credentials.
        DataError: more bytes than max_bytes.
        OutsideError: S3 does not answer.
    """
    with failures(uri):
        client = connect()
        bucket, keys, ignored = find(client, uri)
        fetched: list[tuple[str, bytes]] = []
        budget = max_bytes
        for name, key in keys:
            fetched.append((name, _get(client, bucket, key, budget, max_bytes, uri)))
            budget -= len(fetched[-1][1])
        return fetched, ignored


def connect() -> Any:
    """A client; connects to nothing yet. Use it within `failures`."""
    import boto3
    from botocore.config import Config

    endpoint = _endpoint()
    style = {"addressing_style": "path"} if endpoint else {}
    config = Config(connect_timeout=5, read_timeout=60, retries={"max_attempts": 3, "mode": "standard"}, s3=style)
    return boto3.client("s3", endpoint_url=endpoint, config=config)


def split(uri: str) -> tuple[str, str]:
    """Bucket and key of `s3://BUCKET/KEY`.

    Raises:
        ConfigError: the URI has another form.
    """
    bucket, _, key = uri[len("s3://") :].partition("/")
    if not bucket or not key:
        raise ConfigError(
            f"an S3 source is s3://BUCKET/KEY or s3://BUCKET/FOLDER/, but got {uri!r}",
            code="bad_source",
            where="--source",
            cure="name the bucket and the object",
        )
    return bucket, key


def find(client: Any, uri: str) -> tuple[str, list[tuple[str, str]], list[str]]:
    """The bucket; name and key of the object, or of each table of the folder, by name; names of a folder that are no tables."""
    bucket, key = split(uri)
    if not key.endswith("/"):
        return bucket, [(key.rsplit("/", 1)[-1], key)], []
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key, Delimiter="/")
    names = sorted(entry["Key"].removeprefix(key) for page in pages for entry in page.get("Contents", ()))
    names = [name for name in names if name and not name.startswith(".")]
    taken = [name for name in names if suffix(name) in FORMATS]
    return bucket, [(name, key + name) for name in taken], [name for name in names if name not in taken]


@contextmanager
def failures(uri: str) -> Iterator[None]:
    """What goes wrong with S3 in the block becomes one of our errors.

    Raises:
        SourceError: it is missing, or these credentials may not read it.
        ConfigError: there are no credentials.
        OutsideError: S3 does not answer.
    """
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in {"NoSuchKey", "NoSuchBucket", "404", "NotFound"}:
            raise SourceError(
                f"the source must exist, but S3 answers {code}",
                code="missing_file",
                where=uri,
                cure="check bucket and key; a folder ends in '/'",
            ) from error
        if code in {"AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}:
            raise SourceError(
                f"the source must be readable with these credentials, but S3 answers {code}",
                code="access_denied",
                where=uri,
                cure="check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy",
            ) from error
        raise OutsideError(f"S3 answers {code}", code="s3_failed", where=uri, cure="try again") from error
    except NoCredentialsError as error:
        raise ConfigError(
            "S3 needs credentials, but found none",
            code="no_credentials",
            where=uri,
            cure="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile",
        ) from error
    except BotoCoreError as error:
        raise OutsideError(
            f"S3 must answer, but: {type(error).__name__}",
            code="s3_unreachable",
            where=f"{uri} at {_endpoint() or 'AWS'}",
            cure="check AWS_ENDPOINT_URL and the network, then run again",
        ) from error


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def _get(client: Any, bucket: str, key: str, budget: int, max_bytes: int, where: str) -> bytes:
    response = client.get_object(Bucket=bucket, Key=key)
    with response["Body"] as stream:
        if int(response["ContentLength"]) > budget:
            too_large(where, max_bytes)
        return bytes(stream.read())
