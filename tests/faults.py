"""The faults that tests make on a real cluster: pods that are evicted, killed or starved, a store that is away."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import Any

from real_cluster import kubectl


def _python_in(pod: str, namespace: str, script: str) -> None:
    """Run a script in a pod, which may be gone before it answers."""
    command = ["kubectl", "exec", pod, "-n", namespace, "-c", "main", "--", "python", "-c", script]
    subprocess.run(command, capture_output=True, check=False)


def signal_step(number: signal.Signals, pod: str, namespace: str) -> None:
    """Send a signal to what a step's pod runs below Argo's own first process."""
    script = (
        "import os\n"
        "for name in filter(str.isdigit, os.listdir('/proc')):\n"
        f"    if int(name) not in (1, os.getpid()): os.kill(int(name), {number.value})"
    )
    _python_in(pod, namespace, script)


def exceed_cpu_limit(pod: str, namespace: str) -> None:
    """Make the kernel send SIGKILL to a pod's first process, which is deaf to one from within its own pod."""
    _python_in(pod, namespace, "import resource; resource.prlimit(1, resource.RLIMIT_CPU, (1, 1))")


def fill_shared_memory(pod: str, namespace: str) -> None:
    """Use up a pod's memory by a file in it; the kernel then kills the largest process, which is the worker."""
    script = "file = open('/dev/shm/filler', 'wb')\nfor _ in range(4096): file.write(bytes(2**20))"
    _python_in(pod, namespace, script)


def delete_at_once(pod: str, namespace: str) -> None:
    kubectl("delete", "pod", pod, "-n", namespace, "--grace-period=0", "--force", "--wait=false")


def evict(pod: str, namespace: str, *, grace_seconds: int | None = None) -> None:
    """Evict a pod; it has so long to end by itself, None: what its spec grants."""
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": namespace},
        "deleteOptions": {} if grace_seconds is None else {"gracePeriodSeconds": grace_seconds},
    }
    create(eviction, "--raw", f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction")


def create(manifest: dict[str, Any], *options: str) -> None:
    command = ["kubectl", "create", *options, "-f", "-"]
    done = subprocess.run(command, input=json.dumps(manifest), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def scale_minio(namespace: str, replicas: int) -> None:
    kubectl("scale", "statefulset/automonai-minio", f"--replicas={replicas}", "-n", namespace)
    kubectl("rollout", "status", "statefulset/automonai-minio", "--timeout=180s", "-n", namespace)
    if not replicas:
        kubectl("wait", "pod/automonai-minio-0", "--for=delete", "--timeout=60s", "-n", namespace)
