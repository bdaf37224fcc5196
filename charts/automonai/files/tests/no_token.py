"""Fail if a training's pod has a token for the API server."""

from pathlib import Path

TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")

if __name__ == "__main__":
    assert not TOKEN.exists(), f"{TOKEN} is mounted in a training's pod"
    print("a training's pod has no token")
