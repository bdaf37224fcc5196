"""A Kubernetes API over HTTP for tests: Jobs, pods, Leases and Workflows of one namespace, with watches.

It stands for the network's edge: what is tested speaks to it by its real client. `start_pod` and the like play kubelet
and Job controller.
"""

from __future__ import annotations

import copy
import json
import threading
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from automonai.execution.cluster_api import ClusterApi

NAMESPACE = "test"
KINDS = ("jobs", "pods", "leases", "workflows", "workflowtemplates")
Object = dict[str, Any]


class FakeCluster:
    """All state of the API; `start` and `stop` are the server's, which forgets nothing meanwhile."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Object]] = {kind: {} for kind in KINDS}
        self.requests: list[tuple[str, str]] = []
        self.logs: dict[str, str] = {}
        self.on_job: Callable[[Object], None] = lambda job: None
        self.refuse_jobs: tuple[int, str] | None = None
        self.page_limit = 500
        self._history: list[tuple[int, str, str, Object]] = []
        self._version, self._oldest = 100, 100
        self._changed = threading.Condition(threading.RLock())
        self._server: ThreadingHTTPServer | None = None
        self._port = 0

    def start(self) -> None:
        handler = type("Handler", (_Handler,), {"cluster": self})
        self._server = _Server(("127.0.0.1", self._port), handler)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            with self._changed:
                self._changed.notify_all()
            server.shutdown()
            server.server_close()

    @property
    def is_up(self) -> bool:
        return self._server is not None

    def api(self) -> ClusterApi:
        import urllib3

        return ClusterApi(urllib3.PoolManager(maxsize=8), f"http://127.0.0.1:{self._port}", NAMESPACE, dict)

    def break_watches(self) -> None:
        """End every watch in mid-sentence and forget the history: resuming gets 410 Gone."""
        with self._changed:
            self._history.clear()
            self._version += 1
            self._oldest = self._version
            self._changed.notify_all()

    def last_change(self, kind: str) -> int:
        """Return the version of the last change of a kind that watches are told of."""
        return max((version for version, of, *_ in self._history if of == kind), default=0)

    def count(self, method: str, part: str) -> int:
        return sum(asked == method and part in path for asked, path in self.requests)

    # What kubelet and the Job controller do.

    def only_job(self) -> Object:
        (job,) = self.objects["jobs"].values()
        return job

    def start_pod(self, job: Object, *, phase: str = "Running", status: Object | None = None) -> str:
        name = f"{job['metadata']['name']}-{uuid.uuid4().hex[:5]}"
        labels = {
            **job["spec"]["template"]["metadata"]["labels"],
            "batch.kubernetes.io/job-name": job["metadata"]["name"],
            "batch.kubernetes.io/controller-uid": job["metadata"]["uid"],
        }
        self.put("pods", {"metadata": {"name": name, "labels": labels}, "status": {"phase": phase, **(status or {})}})
        return name

    def run_pod(self, pod: str) -> None:
        """Start the container of a pod that was Pending."""
        self.put("pods", copy.deepcopy(self.objects["pods"][pod]) | {"status": {"phase": "Running"}})

    def refuse_pod(self, pod: str, reason: str) -> None:
        """Let the node's kubelet not admit a pod: no container of it ever runs."""
        with self._changed:
            job = self._job_of(pod)
            status = {"phase": "Failed", "reason": reason, "message": "the node does not take it"}
            self.put("pods", copy.deepcopy(self.objects["pods"][pod]) | {"status": status})
            self.end_job(job, "Failed", "BackoffLimitExceeded")

    def disrupt(self, pod: str, reason: str = "EvictionByEvictionAPI") -> None:
        """Take a pod away; the Job controller makes another, as the policy's Ignore says."""
        with self._changed:
            taken = copy.deepcopy(self.objects["pods"][pod])
            taken["status"]["conditions"] = [{"type": "DisruptionTarget", "status": "True", "reason": reason}]
            self.put("pods", taken)
            self._end_container(pod, 143, "Error", phase="Failed")
            job = self._job_of(pod)
            self.delete("pods", pod)
            self.start_pod(job)

    def end_pod(self, pod: str, exit_code: int, reason: str = "", *, message: str = "") -> None:
        with self._changed:
            job = self._job_of(pod)
            phase = "Failed" if exit_code else "Succeeded"
            self._end_container(pod, exit_code, reason, phase=phase, message=message)
            if exit_code:
                self.end_job(job, "Failed", "BackoffLimitExceeded")
            else:
                self.end_job(job, "Complete", "")

    def end_job(self, job: Object, kind: str, reason: str) -> None:
        ended = copy.deepcopy(job)
        ended["status"] = {"conditions": [{"type": kind, "status": "True", "reason": reason, "message": "it says so"}]}
        self.put("jobs", ended)

    def _end_container(self, pod: str, exit_code: int, reason: str, *, phase: str, message: str = "") -> None:
        ended = copy.deepcopy(self.objects["pods"][pod])
        state = {"terminated": {"exitCode": exit_code, "reason": reason, "message": message}}
        ended["status"] |= {"phase": phase, "containerStatuses": [{"name": "main", "state": state}]}
        self.put("pods", ended)

    def _job_of(self, pod: str) -> Object:
        return self.objects["jobs"][self.objects["pods"][pod]["metadata"]["labels"]["batch.kubernetes.io/job-name"]]

    # What the API does.

    def put(self, kind: str, thing: Object) -> Object:
        with self._changed:
            name = thing["metadata"]["name"]
            known = self.objects[kind].get(name)
            self._version += 1
            thing["metadata"]["resourceVersion"] = str(self._version)
            thing["metadata"].setdefault("uid", known["metadata"]["uid"] if known else str(uuid.uuid4()))
            self.objects[kind][name] = thing
            self._tell("MODIFIED" if known else "ADDED", kind, thing)
            return thing

    def delete(self, kind: str, name: str) -> None:
        with self._changed:
            thing = copy.deepcopy(self.objects[kind].pop(name))
            self._version += 1
            thing["metadata"]["resourceVersion"] = str(self._version)
            self._tell("DELETED", kind, thing)
            uid = thing["metadata"]["uid"]
            for pod, found in list(self.objects["pods"].items()):
                if kind == "jobs" and found["metadata"]["labels"].get("batch.kubernetes.io/controller-uid") == uid:
                    self.delete("pods", pod)

    def _tell(self, change: str, kind: str, thing: Object) -> None:
        self._history.append((self._version, kind, change, copy.deepcopy(thing)))
        self._changed.notify_all()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A connection that was cut is what the tests want."""


class _Handler(BaseHTTPRequestHandler):
    cluster: FakeCluster
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None: ...

    def _route(self) -> tuple[str, str | None, str | None, dict[str, str]]:
        if not self.cluster.is_up:
            raise ConnectionAbortedError
        url = urlsplit(self.path)
        parts = url.path.split(f"/namespaces/{NAMESPACE}/")[1].split("/")
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        self.cluster.requests.append((self.command, self.path))
        return parts[0], *([*parts[1:], None, None][:2]), query

    def _answer(self, status: int, document: object) -> None:
        content = document.encode() if isinstance(document, str) else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _refuse(self, status: int, message: str) -> None:
        self._answer(status, {"kind": "Status", "code": status, "message": message})

    def _body(self) -> Object:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def do_GET(self) -> None:
        kind, name, part, query = self._route()
        if query.get("watch"):
            self._watch(kind, query)
        elif part == "log":
            self._answer(200, self.cluster.logs.get(name, ""))
        elif name is None:
            self._list(kind, query)
        elif name in self.cluster.objects[kind]:
            self._answer(200, self.cluster.objects[kind][name])
        else:
            self._refuse(404, f"{kind} {name} not found")

    def _list(self, kind: str, query: dict[str, str]) -> None:
        cluster = self.cluster
        with cluster._changed:
            found = [thing for thing in cluster.objects[kind].values() if _matches(thing, query)]
            start = int(query.get("continue", 0))
            stop = start + min(cluster.page_limit, int(query.get("limit", 10**9)))
            metadata = {"resourceVersion": str(cluster._version)}
            if stop < len(found):
                metadata["continue"] = str(stop)
            self._answer(200, {"metadata": metadata, "items": found[start:stop]})

    def do_POST(self) -> None:
        kind, _, _, _ = self._route()
        body, cluster = self._body(), self.cluster
        if "generateName" in body["metadata"]:
            body["metadata"]["name"] = f"{body['metadata']['generateName']}{uuid.uuid4().hex[:5]}"
        if kind == "jobs" and cluster.refuse_jobs is not None:
            self._refuse(*cluster.refuse_jobs)
            return
        with cluster._changed:
            if body["metadata"]["name"] in cluster.objects[kind]:
                self._refuse(409, "already exists")
                return
            made = cluster.put(kind, body)
        self._answer(201, made)
        if kind == "jobs":
            cluster.on_job(made)

    def do_PUT(self) -> None:
        kind, name, _, _ = self._route()
        body = self._body()
        with self.cluster._changed:
            known = self.cluster.objects[kind].get(name)
            if known is None:
                self._refuse(404, "not found")
            elif known["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"]:
                self._refuse(409, "the object has been modified")
            else:
                self._answer(200, self.cluster.put(kind, body))

    def do_PATCH(self) -> None:
        kind, name, _, _ = self._route()
        patched = copy.deepcopy(self.cluster.objects[kind][name])
        patched["spec"] = {**patched.get("spec", {}), **self._body()["spec"]}
        self._answer(200, self.cluster.put(kind, patched))

    def do_DELETE(self) -> None:
        kind, name, _, _ = self._route()
        assert self._body() == {"propagationPolicy": "Background"}
        if name not in self.cluster.objects[kind]:
            self._refuse(404, "not found")
            return
        self.cluster.delete(kind, name)
        self._answer(200, {})

    def _watch(self, kind: str, query: dict[str, str]) -> None:
        cluster, version = self.cluster, int(query["resourceVersion"])
        if version < cluster._oldest:
            self._refuse(410, "too old resource version")
            return
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        try:
            while cluster.is_up:
                with cluster._changed:
                    news = [entry for entry in cluster._history if entry[0] > version]
                    if not news and version >= cluster._oldest:
                        cluster._changed.wait(timeout=5.0)
                        continue
                if not news:
                    self._event("ERROR", {"code": 410, "message": "too old resource version"})
                    break
                version = news[-1][0]
                for _, changed, change, thing in news:
                    if changed == kind and _matches(thing, query):
                        self._event(change, thing)
            self.close_connection = True
        except OSError:
            self.close_connection = True

    def _event(self, change: str, thing: Object) -> None:
        line = json.dumps({"type": change, "object": thing}).encode() + b"\n"
        self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
        self.wfile.flush()


def _matches(thing: Object, query: dict[str, str]) -> bool:
    labels = thing["metadata"].get("labels", {})
    return all(_has(labels, term) for term in query.get("labelSelector", "").split(",") if term)


def _has(labels: dict[str, str], term: str) -> bool:
    """Whether labels satisfy `key`, `key=value` or `key!=value`; as with the API, what lacks the key is no value."""
    key, equals, value = term.partition("=")
    if key.endswith("!"):
        return labels.get(key[:-1]) != value
    return key in labels and (not equals or labels[key] == value)
