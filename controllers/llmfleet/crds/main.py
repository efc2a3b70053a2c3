"""`llmfleet apply-crds`: apply the CRDs of a folder server-side, before `helm upgrade` changes anything else.

In: a folder of YAML files. Out: one line for each CRD, and exit code 0 when the apiserver serves them all; 1 when it
refuses one, 2 for wrong input. An object that is right already is not written to. It never deletes a CRD, because that
would delete every object of its kind.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from llmfleet import names
from llmfleet.crds.files import CrdError, is_served, parse_files
from llmfleet.kube.client import Api
from llmfleet.kube.diff import plan_apply
from llmfleet.kube.errors import KubeError, NotFound
from llmfleet.kube.execute import execute
from llmfleet.kube.refs import Manifest, ref_of
from llmfleet.kube.transport.client import Transport, find_credentials

MANAGER: Final = "llmfleet-crds"
LOOK_SECONDS: Final = 0.5


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--from",
    "folder",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Folder with the CRDs as *.yaml files.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(1, 3600),
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="How long the apiserver may take to serve a new kind.",
)
@click.option("--kubeconfig", metavar="FILE", help="Kubeconfig to use instead of the pod's own account.")
def command(folder: Path, timeout: float, kubeconfig: str | None) -> None:
    """Apply the CRDs of a folder."""
    crds = read_folder(folder)
    try:
        credentials = find_credentials(kubeconfig)
    except Exception as error:
        raise click.UsageError(f"cannot log in to a cluster: {error}; pass --kubeconfig FILE") from error
    api = Api(Transport(credentials, user_agent=f"llmfleet-apply-crds/{names.VERSION}"), manager=MANAGER)
    try:
        apply_all(api, crds, timeout)
    except KubeError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)


def read_folder(folder: Path) -> Sequence[Manifest]:
    """Every CRD in the folder; one line when there is none or something else."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.yaml"))}
    try:
        crds = list(parse_files(texts))
    except CrdError as error:
        raise click.UsageError(str(error)) from error
    if not crds:
        raise click.UsageError(f"no *.yaml file with a CustomResourceDefinition in {folder}")
    return crds


def apply_all(api: Api, crds: Sequence[Manifest], timeout: float) -> None:
    """Write what differs, then wait until everything is served."""
    for crd in crds:
        ref = ref_of(crd)
        try:
            live = api.get(ref)
        except NotFound:
            live = None
        plan = plan_apply(crd, live, MANAGER)
        execute(plan, api)
        click.echo(f"{ref.name}: {'created' if live is None else 'updated' if plan else 'already right'}")
    deadline = time.monotonic() + timeout
    for crd in crds:
        while not is_served(api.get(ref_of(crd))):
            if time.monotonic() > deadline:
                raise KubeError(f"{ref_of(crd).name} is not served after {timeout:.0f} s")
            time.sleep(LOOK_SECONDS)
