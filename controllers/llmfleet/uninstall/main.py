"""`llmfleet uninstall`: drain and delete the instances of a release, before Helm deletes their operator; or, with
`--operator`, let go of what is left after it did.

In: a namespace and a release. Out: progress lines, and exit code 0, always: a `helm uninstall` must never hang on us.
Autoscalers go first, or they would replace what is deleted; then the instances, through their drain; then, when nobody
drains them or a deadline has passed, their finalizers. What stays is said.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import click

from llmfleet import names
from llmfleet.kube.client import Api
from llmfleet.kube.errors import Conflict, Forbidden, KubeError, NotFound
from llmfleet.kube.execute import execute
from llmfleet.kube.refs import AUTOSCALER, CLAIM, LLMCLUSTER, Kind, Manifest, ref_of, uid_of
from llmfleet.kube.transport.client import Transport, find_credentials
from llmfleet.uninstall.client import Release
from llmfleet.uninstall.progress import Deleted, Wait, belongs, describe, overdue, plan_strip, shows_life

USER_AGENT: Final = f"llmfleet-uninstall/{names.VERSION}"
MANAGER: Final = "llmfleet-uninstall"
LOOK_SECONDS: Final = 1.0
SAY_SECONDS: Final = 10.0
RETRY_SECONDS: Final = 2.0

Say = Callable[[str], None]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--namespace",
    "namespaces",
    multiple=True,
    metavar="NS",
    help="Namespace of the release. With --operator: a namespace that it watched; repeat it. Default then: all.",
)
@click.option("--release", metavar="NAME", help="Drain and delete the instances of this Helm release.")
@click.option(
    "--operator",
    metavar="NS/RELEASE",
    help="Instead: take this operator's finalizers off, after it was deleted; its instances keep running.",
)
@click.option(
    "--lease", "leases", multiple=True, metavar="NAME", help="With --operator: its Lease, to delete; repeat it."
)
@click.option(
    "--timeout",
    type=click.FloatRange(1, 86_400),
    default=600,
    show_default=True,
    metavar="SECONDS",
    help="When finalizers are taken off whatever happens.",
)
@click.option("--kubeconfig", metavar="FILE", help="Kubeconfig to use instead of the pod's own account.")
def command(
    namespaces: tuple[str, ...],
    release: str | None,
    operator: str | None,
    leases: tuple[str, ...],
    timeout: float,
    kubeconfig: str | None,
) -> None:
    """Drain and delete the instances of a release before it goes; or let go of what a deleted operator held."""
    check_choice(namespaces, release, operator)
    try:
        credentials = find_credentials(kubeconfig)
    except Exception as error:
        raise click.UsageError(f"cannot log in to a cluster: {error}; pass --kubeconfig FILE") from error
    api = Api(Transport(credentials, user_agent=USER_AGENT), manager=MANAGER)
    if operator:
        Release(api, operator, namespaces=namespaces, leases=leases, timeout=timeout, say=click.echo).run()
    elif release:
        Uninstall(api, namespaces[0], release, timeout, say=click.echo).run()


def check_choice(namespaces: tuple[str, ...], release: str | None, operator: str | None) -> None:
    """A release in one namespace, or an operator; else one line that says what to write."""
    if bool(release) == bool(operator):
        raise click.UsageError("write --release NAME, or --operator NS/RELEASE, and not both")
    if release and len(namespaces) != 1:
        raise click.UsageError("--release NAME needs one --namespace NS, where its instances are")
    if operator and not all(operator.partition("/")):
        raise click.UsageError(f"--operator {operator!r} is not NS/RELEASE, such as llmfleet-system/llmfleet")


class Uninstall:
    """One run."""

    def __init__(
        self, api: Api, namespace: str, release: str, timeout: float, *, say: Say, look_seconds: float = LOOK_SECONDS
    ) -> None:
        self._api, self._namespace, self._release = api, namespace, release
        self._say, self._look_seconds = say, look_seconds
        self._wait = Wait(began=time.monotonic(), timeout=timeout)
        self._owners: frozenset[str] = frozenset()
        self._stripped: set[str] = set()

    def run(self) -> None:
        """Everything, in order; whatever goes wrong is said and never raised."""
        for kind in (AUTOSCALER, LLMCLUSTER):
            try:
                self._remove(kind)
            except KubeError as error:
                self._say(f"giving up on {kind.plural}: {error}")
        self._say_what_stays()

    def _remove(self, kind: Kind) -> None:
        """Delete all of one kind and wait until they are gone."""
        deleted: dict[str, Deleted] = {}
        said, said_at = "", -math.inf
        while left := self._find(kind):
            if kind is AUTOSCALER:
                self._owners |= {uid_of(obj) for obj in left}
            self._delete_new(left, deleted)
            now = time.monotonic()
            self._wait = replace(self._wait, alive=self._wait.alive or shows_life(left, deleted, self._stripped))
            self._strip(left, deleted, now)
            if now - self._wait.began > self._wait.timeout + self._look_seconds * 10:
                self._say(f"leaving {describe(left)}: still there after the time limit")
                return
            line = f"{len(left)} {kind.plural} left: {describe(left)}"
            if line != said or now - said_at >= SAY_SECONDS:
                self._say(line)
                said, said_at = line, now
            time.sleep(self._look_seconds)
        if deleted:
            self._say(f"all {len(deleted)} {kind.plural} are gone")

    def _find(self, kind: Kind) -> Sequence[Manifest]:
        """What is left of the release. An apiserver that does not answer is asked again until the time is up."""
        while True:
            try:
                found, _ = self._api.list(kind, namespace=self._namespace)
            except NotFound:
                return ()
            except Forbidden:
                raise
            except KubeError as error:
                if time.monotonic() - self._wait.began > self._wait.timeout:
                    raise
                self._say(f"the apiserver does not answer, trying again: {error}")
                time.sleep(max(RETRY_SECONDS, error.retry_after))
            else:
                return [obj for obj in found if belongs(obj, self._release, self._owners)]

    def _delete_new(self, left: Sequence[Manifest], deleted: dict[str, Deleted]) -> None:
        """Ask for the deletion of what is not being deleted; note what each looks like from then on."""
        for obj in left:
            uid, metadata = uid_of(obj), obj["metadata"]
            if metadata.get("deletionTimestamp"):
                deleted.setdefault(uid, Deleted(version=metadata.get("resourceVersion", ""), at=time.monotonic()))
                continue
            try:
                # The version right after the deletion: whatever is written later is a sign of life.
                version = self._api.delete(ref_of(obj), uid, propagation="Background")
                deleted[uid] = Deleted(version=version, at=time.monotonic())
                self._say(f"deleting {ref_of(obj)}")
            except NotFound:
                continue
            except KubeError as error:
                self._say(f"cannot delete {ref_of(obj)}: {error}")

    def _strip(self, left: Sequence[Manifest], deleted: dict[str, Deleted], now: float) -> None:
        for obj, reason in overdue(left, deleted, self._wait, now):
            self._stripped.add(uid_of(obj))  # before the write: its end is ours even when the answer is lost
            try:
                execute((plan_strip(obj),), self._api)
                self._say(f"took the finalizer off {ref_of(obj)}: {reason}; its pods end by their own preStop drain")
            except Conflict:
                self._stripped.discard(uid_of(obj))  # somebody else wrote: that is a sign
            except NotFound:
                continue
            except KubeError as error:
                self._say(f"cannot take the finalizer off {ref_of(obj)}: {error}")

    def _say_what_stays(self) -> None:
        """Model files are kept on purpose."""
        try:
            claims, _ = self._api.list(CLAIM, namespace=self._namespace, label_selector=names.CLUSTER_LABEL)
            others, _ = self._api.list(LLMCLUSTER, namespace=self._namespace)
        except KubeError:
            self._say(
                "model files in PersistentVolumeClaims are kept; list them with: "
                f"kubectl get pvc -n {self._namespace} -l {names.CLUSTER_LABEL}"
            )
            return
        for claim in claims:
            self._say(f"kept: PersistentVolumeClaim {claim['metadata']['name']} (model files)")
        for other in others:
            self._say(f"left alone: LLMCluster {other['metadata']['name']} (not of release {self._release})")
