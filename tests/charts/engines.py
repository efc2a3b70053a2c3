"""What the operator makes of the instances of a release, built by the operator's own code.

In: rendered objects. Out: StatefulSets, Services, budgets and claims as they would reach an apiserver. It asks nobody.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from charts.rendering import Object, made_from, of_kind
from llmfleet.api.parse import parse_spec
from llmfleet.deploy.objects.budget import Holder, build_fleet_budget, build_own_budget
from llmfleet.deploy.objects.claim import build_claim
from llmfleet.deploy.objects.identity import Identity
from llmfleet.deploy.objects.pod import build_template
from llmfleet.deploy.objects.services import build_group_service, build_service
from llmfleet.deploy.objects.statefulset import build_statefulset
from llmfleet.names import FLEET_LABEL


def engines(objects: Sequence[Object]) -> Iterator[Object]:
    """The objects of every instance, and of one that each autoscaler would make."""
    for name, fleet, written in instances(objects):
        identity = Identity(namespace="team-a", name=name, uid="u", fleet=fleet, manager="team-a/demo")
        spec = parse_spec(written)
        built = build_template(identity, spec)
        yield build_statefulset(
            identity,
            replicas=spec.replicas,
            template=built.manifest,
            template_hash=built.hash,
            annotations={},
            queue=spec.scheduling.queue_name,
        )
        yield build_group_service(identity, spec)
        yield build_service(identity, spec)
        yield build_fleet_budget(identity, [Holder(name=identity.name, uid=identity.uid)])
        yield from (o for o in (build_own_budget(identity, spec), build_claim(identity, spec)) if o is not None)


def instances(objects: Sequence[Object]) -> Iterator[tuple[str, str, Object]]:
    """Name, fleet and spec of each."""
    for one in of_kind(objects, "LLMCluster"):
        yield one["metadata"]["name"], one["metadata"]["labels"][FLEET_LABEL], one["spec"]
    for made in made_from(objects).values():
        yield f"{made['namePrefix']}x7k2p", made["labels"][FLEET_LABEL], made["spec"]
