"""Fail if a workflow template is missing or still has a mark of the chart in it."""

import json
import os
import re

from kubernetes import client, config

TEMPLATES = ("automonai-study", "automonai-predict", "automonai-train")


def main() -> None:
    """Read each template."""
    config.load_incluster_config()
    api = client.CustomObjectsApi()
    for name in TEMPLATES:
        found = api.get_namespaced_custom_object(
            "argoproj.io", "v1alpha1", os.environ["AUTOMONAI_NAMESPACE"], "workflowtemplates", name
        )
        assert not re.search(r"@@\w+@@", json.dumps(found)), f"{name} has a value that the chart did not fill in"
    print(f"found {', '.join(TEMPLATES)}")


if __name__ == "__main__":
    main()
