"""The Kubernetes API as far as it is needed; the only importer of the kubernetes package.

That package's part is to find and refresh credentials. Its generated classes are left out: they parse every field of
every object, which costs a controller with many runs more time and memory than all else that it does.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlencode

from pydantic import BaseModel, Field, JsonValue, ValidationError

from automonai.errors import ClusterError, UserError
from automonai.execution.cluster_objects import Change, Job, Kind, Lease, Pod, Workflow, WorkflowTemplate
from automonai.execution.jobs import JsonObject

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

Items = list[JsonValue]
M = TypeVar("M", bound=BaseModel)
Credentials = Callable[[], dict[str, str]]
"""Returns the headers that identify us in a request made now: tokens of a service account change by the hour."""

logger = logging.getLogger(__name__)

UNREACHABLE = 0
FORBIDDEN, NOT_FOUND, CONFLICT, GONE = 403, 404, 409, 410
STARTING_SECONDS = 60.0
"""For so long an API server that was just started may not know tokens and roles yet, and refuse what it will allow."""
CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 30.0
WATCH_SECONDS = 1800
"""How long one watch lasts: two requests each half hour, however much happens."""
PAGE = 500
NOT_COMPLETED = "workflows.argoproj.io/completed!=true"
"""Label selector: Argo sets that label once a Workflow is over."""
LOG_LINES = 1000
_PATHS = {
    "jobs": "/apis/batch/v1/namespaces/{namespace}/jobs",
    "pods": "/api/v1/namespaces/{namespace}/pods",
    "workflows": "/apis/argoproj.io/v1alpha1/namespaces/{namespace}/workflows",
    "workflowtemplates": "/apis/argoproj.io/v1alpha1/namespaces/{namespace}/workflowtemplates",
    "leases": "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases",
}
_KEEP_ALIVE = [  # a watch whose server vanished without a word ends within a minute
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
        if hasattr(socket, name)
    ),
]


@dataclass(frozen=True)
class Listing:
    """All objects of a kind at one moment."""

    objects: tuple[Job | Pod, ...]
    resource_version: str
    """Where a watch goes on."""


@dataclass(frozen=True)
class WatchEvent:
    """One change."""

    change: Change
    object: Job | Pod
    """Of a bookmark, only the resource version means something."""


class Stream:
    """A watch at work: iterate over it, end it from another thread."""

    def __init__(self, response: BaseHTTPResponse, kind: Kind) -> None:
        """Remember the open response."""
        self._response = response
        self._model: type[Job] | type[Pod] = Job if kind == "jobs" else Pod

    def __iter__(self) -> Iterator[WatchEvent]:
        """Yield changes until the server or `end` ends the watch.

        Raises:
            ClusterError: With status 410 if the watch must begin anew from a list, 0 if the connection broke.
        """
        from urllib3.exceptions import HTTPError

        try:
            for line in _lines(self._response.stream(None)):
                yield self._event(line)
        except (HTTPError, OSError, ValueError, KeyError) as error:
            raise ClusterError(f"the watch broke: {error}", status=UNREACHABLE) from error
        finally:
            self._response.close()

    def end(self) -> None:
        """Make the iteration end."""
        from urllib3.exceptions import HTTPError

        try:
            self._response.shutdown()
        except (HTTPError, OSError, ValueError) as error:
            logger.debug("the watch had ended before: %s", error)

    def _event(self, line: bytes) -> WatchEvent:
        document = json.loads(line)
        if document["type"] == "ERROR":
            status = document["object"]
            raise ClusterError(f"the watch ended: {status.get('message')}", status=int(status.get("code") or 0))
        return WatchEvent(Change(document["type"]), self._model.model_validate(document["object"]))


class ClusterApi:
    """One namespace of a cluster. Every call is one bounded request, counted; nothing is repeated here."""

    def __init__(self, pool: PoolManager, host: str, namespace: str, credentials: Credentials) -> None:
        """Remember how to reach the API; see `connect`."""
        self.namespace = namespace
        self.requests = 0
        """How many requests were made."""
        self._pool = pool
        self._host = host
        self._credentials = credentials
        self._lock = threading.Lock()

    def create_job(self, manifest: JsonObject) -> Job:
        """Create a Job and return it.

        Raises:
            ClusterError: With status 409 if there is one of that name.
        """
        return self._read(Job, "POST", self._path("jobs"), body=manifest)

    def find_job(self, name: str) -> Job | None:
        """Return a Job, None if there is none of that name."""
        with _none_if_missing():
            return self._read(Job, "GET", self._path("jobs", name))
        return None

    def delete_job(self, name: str) -> None:
        """Delete a Job and its pods; one that is not there is no error."""
        with _none_if_missing():
            options: JsonObject = {"propagationPolicy": "Background"}
            self._call("DELETE", self._path("jobs", name), body=options)

    def list(self, kind: Kind, selector: str) -> Listing:
        """Return all objects of a kind with these labels, read in pages."""
        model = Job if kind == "jobs" else Pod
        items, version = self._pages(kind, selector)
        with _answers_of_the_api(f"GET {self._path(kind)}"):
            return Listing(tuple(model.model_validate(item) for item in items), version)

    def _pages(self, resource: str, selector: str) -> tuple[Items, str]:
        """Return all objects with these labels, read in pages, and the list's resource version."""
        found: Items = []
        query = {"labelSelector": selector, "limit": str(PAGE)}
        while True:
            page = self._read(_Page, "GET", self._path(resource), query=query)
            found += page.items or ()
            if not page.metadata.continue_:
                return found, page.metadata.resource_version
            query["continue"] = page.metadata.continue_

    def list_jobs(self, selector: str) -> tuple[Job, ...]:
        """Return the Jobs with these labels."""
        return tuple(job for job in self.list("jobs", selector).objects if isinstance(job, Job))

    def watch(self, kind: Kind, selector: str, resource_version: str) -> Stream:
        """Open a watch that goes on from a listing or an earlier watch's last event."""
        query = {
            "watch": "true",
            "labelSelector": selector,
            "resourceVersion": resource_version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        answer_seconds = WATCH_SECONDS + ANSWER_SECONDS
        return Stream(self._send("GET", self._path(kind), query=query, answer_seconds=answer_seconds), kind)

    def pod_log(self, pod: str) -> str:
        """Return the last lines of a pod's container."""
        query = {"container": "main", "tailLines": str(LOG_LINES)}
        return self._call("GET", f"{self._path('pods', pod)}/log", query=query).decode(errors="replace")

    def find_workflow(self, name: str) -> Workflow | None:
        """Return a Workflow, None if there is none of that name."""
        with _none_if_missing():
            return self._read(Workflow, "GET", self._path("workflows", name))
        return None

    def living_workflows(self) -> tuple[Workflow, ...]:
        """Return the namespace's Workflows that are not over; those that are may be many, and large."""
        with _answers_of_the_api(f"GET {self._path('workflows')}"):
            found = [Workflow.model_validate(item) for item in self._pages("workflows", NOT_COMPLETED)[0]]
        return tuple(workflow for workflow in found if not workflow.is_over)

    def create_workflow(self, manifest: JsonObject) -> Workflow:
        """Create a Workflow and return it."""
        return self._read(Workflow, "POST", self._path("workflows"), body=manifest)

    def find_workflow_template(self, name: str) -> WorkflowTemplate | None:
        """Return a WorkflowTemplate, None if there is none of that name."""
        with _none_if_missing():
            return self._read(WorkflowTemplate, "GET", self._path("workflowtemplates", name))
        return None

    def stop_workflow(self, name: str) -> None:
        """Ask Argo to end a Workflow as its UI's Stop does: its exit step still runs."""
        body: JsonObject = {"spec": {"shutdown": "Stop"}}
        self._call("PATCH", self._path("workflows", name), body=body, content_type="application/merge-patch+json")

    def find_lease(self, name: str) -> Lease | None:
        """Return a Lease, None if there is none of that name."""
        with _none_if_missing():
            return self._read(Lease, "GET", self._path("leases", name))
        return None

    def create_lease(self, manifest: JsonObject) -> Lease:
        """Create a Lease.

        Raises:
            ClusterError: With status 409 if somebody was faster.
        """
        return self._read(Lease, "POST", self._path("leases"), body=manifest)

    def replace_lease(self, name: str, manifest: JsonObject) -> Lease:
        """Replace a Lease of the manifest's resource version.

        Raises:
            ClusterError: With status 409 if it has another by now.
        """
        return self._read(Lease, "PUT", self._path("leases", name), body=manifest)

    def _path(self, resource: str, name: str | None = None) -> str:
        path = _PATHS[resource].format(namespace=self.namespace)
        return path if name is None else f"{path}/{name}"

    def _read(
        self,
        model: type[M],
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: JsonObject | None = None,
    ) -> M:
        """Return the object that the API answers with."""
        content = self._call(method, path, query=query, body=body)
        with _answers_of_the_api(f"{method} {path}"):
            return model.model_validate_json(content)

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: JsonObject | None = None,
        content_type: str = "application/json",
    ) -> bytes:
        from urllib3.exceptions import HTTPError

        response = self._send(method, path, query=query, body=body, content_type=content_type)
        try:
            return response.read()
        except (HTTPError, OSError) as error:
            raise ClusterError(f"{method} {path}: the answer broke off: {error}", status=UNREACHABLE) from error
        finally:
            response.release_conn()

    def _send(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: JsonObject | None = None,
        content_type: str = "application/json",
        answer_seconds: float = ANSWER_SECONDS,
    ) -> BaseHTTPResponse:
        from urllib3 import Timeout
        from urllib3.exceptions import HTTPError

        with self._lock:
            self.requests += 1
        try:
            response = self._pool.request(
                method,
                f"{self._host}{path}?{urlencode(query or {})}",
                body=None if body is None else json.dumps(body),
                headers={**self._credentials(), "Content-Type": content_type, "Accept": "application/json"},
                timeout=Timeout(connect=CONNECT_SECONDS, read=answer_seconds),
                retries=False,
                preload_content=False,
            )
        except (HTTPError, OSError) as error:
            raise ClusterError(f"{method} {path}: the Kubernetes API is away: {error}", status=UNREACHABLE) from error
        if response.status < 300:
            return response
        try:
            raise ClusterError(f"{method} {path}: {_refusal(response)}", status=response.status)
        finally:
            response.release_conn()


def connect(namespace: str) -> ClusterApi:
    """Return the API of the cluster that this pod runs in, or of KUBECONFIG's current context.

    Raises:
        UserError: If there is neither, or the package is not installed.
    """
    try:
        from kubernetes import client, config
    except ImportError as error:
        raise UserError("running on a cluster needs more packages: pip install '.[cluster]' in the clone") from error
    configuration = client.Configuration()
    try:
        if "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
            config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    except config.ConfigException as error:
        raise UserError(f"no cluster is configured: {error}; set KUBECONFIG to the cluster's file") from error
    configuration.socket_options = _KEEP_ALIVE
    configuration.connection_pool_maxsize = 8
    pool = client.ApiClient(configuration).rest_client.pool_manager

    def credentials() -> dict[str, str]:
        token = configuration.auth_settings().get("BearerToken")
        return {"Authorization": str(token["value"])} if token is not None and token["value"] else {}

    return ClusterApi(pool, str(configuration.host).rstrip("/"), namespace, credentials)


@contextmanager
def _none_if_missing() -> Iterator[None]:
    try:
        yield
    except ClusterError as error:
        if error.status != NOT_FOUND:
            raise


@contextmanager
def _answers_of_the_api(request: str) -> Iterator[None]:
    """Take an answer that is none of the API's, such as a proxy's page, for one that did not come."""
    try:
        yield
    except ValidationError as error:
        raise ClusterError(f"{request}: the answer is none of the Kubernetes API", status=UNREACHABLE) from error


class _PageFacts(BaseModel):
    continue_: str = Field(default="", alias="continue")
    resource_version: str = Field(alias="resourceVersion")


class _Page(BaseModel):
    items: Items | None = None
    metadata: _PageFacts


class _Status(BaseModel):
    message: str = ""


def _refusal(response: BaseHTTPResponse) -> str:
    """Return the API's own words for what it refused, as far as they arrive."""
    from urllib3.exceptions import HTTPError

    try:
        message = _Status.model_validate_json(response.read()).message
    except (ValidationError, HTTPError, OSError):
        message = ""
    return f"{response.status} {response.reason or ''}{': ' + message if message else ''}"


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line for line in lines if line)
    if rest:
        yield rest
