"""A Kubernetes cluster on one Linux machine: a user's own context, kind, or a control plane built from Go modules.

Reading order: cli, built (what `up` and `down` do), controlplane and nodes (what runs), then the parts
they use: processes, cgroups, network, pki, images. Only the standard library, because this runs before
anything else is installed.
"""
