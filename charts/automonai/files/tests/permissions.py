"""Ask the API server about everything that this pod's account may do: what docs/security.md says, and nothing else."""

import os
import sys

from kubernetes import client, config

ALLOWED = {
    "controller": {
        ("batch", "jobs"): {"create", "get", "list", "watch", "delete"},
        ("", "pods"): {"list", "watch"},
        ("", "pods/log"): {"get"},
        ("argoproj.io", "workflows"): {"get"},
        ("argoproj.io", "workflowtaskresults"): {"create", "patch"},
        ("coordination.k8s.io", "leases"): {"create", "get", "update"},
    },
    "janitor": {("batch", "jobs"): {"list", "delete"}, ("argoproj.io", "workflows"): {"list"}},
    "step": {("argoproj.io", "workflowtaskresults"): {"create", "patch"}},
}
OTHERS = [
    ("", "secrets"),
    ("", "configmaps"),
    ("", "events"),
    ("", "serviceaccounts"),
    ("", "pods/exec"),
    ("", "persistentvolumeclaims"),
    ("apps", "deployments"),
    ("rbac.authorization.k8s.io", "roles"),
    ("rbac.authorization.k8s.io", "rolebindings"),
]
VERBS = ("create", "get", "list", "watch", "update", "patch", "delete", "deletecollection")


def main(account: str) -> None:
    """Fail with every difference between what is allowed and what should be."""
    config.load_incluster_config()
    api = client.AuthorizationV1Api()
    table = ALLOWED[account]
    resources = sorted({resource for allowed in ALLOWED.values() for resource in allowed} | set(OTHERS))
    wrong = []
    for group, resource in resources:
        for verb in VERBS:
            expected = verb in table.get((group, resource), set())
            if _may(api, group, resource, verb) != expected:
                wrong.append(f"{account} {'may not' if expected else 'may'} {verb} {resource}.{group}")
    if wrong:
        raise SystemExit("\n".join(wrong))
    print(f"{account}: {len(resources) * len(VERBS)} answers as expected")


def _may(api: client.AuthorizationV1Api, group: str, resource: str, verb: str) -> bool:
    name, _, sub = resource.partition("/")
    attributes = client.V1ResourceAttributes(
        namespace=os.environ["AUTOMONAI_NAMESPACE"], group=group, resource=name, subresource=sub, verb=verb
    )
    review = client.V1SelfSubjectAccessReview(spec=client.V1SelfSubjectAccessReviewSpec(resource_attributes=attributes))
    return bool(api.create_self_subject_access_review(review).status.allowed)


if __name__ == "__main__":
    main(sys.argv[1])
