"""Make the bucket on the chart's own MinIO as soon as that answers."""

import os
import time
from urllib.parse import urlsplit

from minio import Minio
from urllib3 import PoolManager, Retry, Timeout

WAIT_SECONDS = 240


def main() -> None:
    """Try until it is there."""
    endpoint = urlsplit(os.environ["AWS_ENDPOINT_URL_S3"])
    client = Minio(
        endpoint=endpoint.netloc,
        access_key=os.environ["AWS_ACCESS_KEY_ID"],
        secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        secure=endpoint.scheme == "https",
        region=os.environ.get("AWS_REGION") or "us-east-1",
        http_client=PoolManager(timeout=Timeout(5), retries=Retry(0)),
    )
    bucket = os.environ["AUTOMONAI_STORE"].removeprefix("s3://")
    end = time.monotonic() + WAIT_SECONDS
    while not _make(client, bucket):
        if time.monotonic() > end:
            raise SystemExit(f"no answer from {endpoint.netloc} within {WAIT_SECONDS} s; look at the MinIO pod's log")
        time.sleep(2)


def _make(client: Minio, bucket: str) -> bool:
    try:
        if not client.bucket_exists(bucket_name=bucket):
            client.make_bucket(bucket_name=bucket)
    except Exception as error:  # noqa: BLE001 - until the server is up, anything; the deadline ends it
        print(f"not yet: {type(error).__name__}", flush=True)
        return False
    print(f"bucket {bucket} is there", flush=True)
    return True


if __name__ == "__main__":
    main()
