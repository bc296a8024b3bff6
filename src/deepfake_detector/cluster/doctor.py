"""Whether work can be submitted from here, and what to do where it can't: a line for each thing that is needed."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from typing import Any

from deepfake_detector.adapters.cluster import Cluster, Kind
from deepfake_detector.adapters.kubectl import kubectl_version
from deepfake_detector.adapters.storage import Storage
from deepfake_detector.cluster.emulator import storage_access
from deepfake_detector.core import capacity
from deepfake_detector.core.errors import ClusterError, ConfigError, CorruptError, DetectorError

OLDEST_SERVER = (1, 31)
FEATURES = {  # of a Job: the first version in which it is stable, or beta and on
    "podFailurePolicy": (1, 31),
    "backoffLimitPerIndex": (1, 29),
    "podReplacementPolicy": (1, 29),
}
DEPLOYED: tuple[tuple[Kind, str], ...] = (
    ("services", "training"),
    ("serviceaccounts", "stages"),
    ("configmaps", "settings"),
)
DEPLOYED_LOCAL: tuple[tuple[Kind, str], ...] = (("services", "object-store"),)
_JOBS, _CORE = "batch", ""
PERMISSIONS = (  # verb, resource, group, subresource: the Role `submitter`
    *((verb, "jobs", _JOBS, "") for verb in ("create", "get", "list", "watch", "delete")),
    *((verb, resource, _CORE, "") for resource in ("pods", "events") for verb in ("list", "watch")),
    ("get", "pods", _CORE, "log"),
)
PERMISSIONS_LOCAL = (("create", "pods", _CORE, "portforward"),)
LISTED_IMAGES = 50  # a node's status lists no more (kubelet, nodeStatusMaxImages)
OUTAGE_SECONDS, GRACE_SECONDS = 10.0, 1.0  # of the bucket: a person waits; new credentials are for pods only
_BUCKET_REMEDY = "create the bucket, or name one that you may write to: RUN=gs://bucket/..."
_THREADS = 8  # most of the time is spent on the way to the server


@dataclass(frozen=True)
class Check:
    """One line. blocks: nothing can be submitted while it is not ok; room and images may come later."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    blocks: bool = True


def examine(context: str | None, namespace: str, overlay: str, **wanted: Any) -> list[Check]:
    """Everything, from kubectl and the kubeconfig on; wanted: as for `check`. Raises nothing that a line can say."""
    checks = [_attempt("kubectl", "install it: https://kubernetes.io/docs/tasks/tools/", _kubectl)]
    try:
        cluster = Cluster.connect(context, namespace)
    except ClusterError as error:
        return [*checks, Check("context", False, str(error), "name a context of your kubeconfig: CONTEXT=...")]
    return checks + check(cluster, overlay, **wanted)


def check(
    cluster: Cluster,
    overlay: str,
    *,
    image: str = "",
    run: str = "",
    videos: str = "",
    pods: int = 0,
    spec: Mapping[str, Any] | None = None,
) -> list[Check]:
    """What a submitted stage needs, about 20 requests. Nothing is looked at that is left empty.

    image: as in the Job; run: a run's URI or a bucket's, which is written to and cleaned again; videos: to be read;
    pods: how many of the pod template's `spec` (camelCase) shall run at a time.
    """
    server = _attempt("server", "is the cluster up? another one: CONTEXT=...", lambda: _server(cluster))
    if not server.ok:
        return [server]
    checks = [
        server,
        _attempt("deployed", f"make deploy OVERLAY={overlay}", lambda: _deployed(cluster, overlay)),
        _attempt("permissions", "have your user bound to the Role `submitter`", lambda: _permissions(cluster, overlay)),
    ]
    if run or videos:
        checks += _storage(cluster, overlay, run, videos, reachable=all(each.ok for each in checks))
    if image or pods:
        checks += _placement(cluster, overlay, image, pods, spec or {})
    return checks


def to_text(checks: Sequence[Check]) -> str:
    """A line each, and a second one with the remedy for what is not ok."""
    lines = []
    for each in checks:
        lines.append(f"{'ok' if each.ok else 'FAILS' if each.blocks else 'waits':<6} {each.name:<12} {each.detail}")
        if not each.ok and each.remedy:
            lines.append(f"{'':<20}remedy: {each.remedy}")
    return "\n".join(lines)


def _attempt(name: str, remedy: str, look: Callable[[], Check]) -> Check:
    try:
        return look()
    except DetectorError as error:
        return Check(name, False, str(error), remedy)


def _kubectl() -> Check:
    major, minor = kubectl_version()
    return Check("kubectl", True, f"{major}.{minor}")


def _server(cluster: Cluster) -> Check:
    version = cluster.version()
    shown = f"{version[0]}.{version[1]} (context {cluster.context}, namespace {cluster.namespace})"
    if version >= OLDEST_SERVER:
        return Check("server", True, shown)
    missing = [name for name, since in FEATURES.items() if version < since]
    return Check(
        "server",
        False,
        f"{shown}: expected at least {OLDEST_SERVER[0]}.{OLDEST_SERVER[1]}, since it lacks {', '.join(missing)}",
        "upgrade the cluster, or name another one: CONTEXT=...",
    )


def _deployed(cluster: Cluster, overlay: str) -> Check:
    wanted = DEPLOYED + (DEPLOYED_LOCAL if overlay == "local" else ())
    with ThreadPool(_THREADS) as pool:
        there = pool.starmap(cluster.exists, wanted)
    missing = [f"{kind}/{name}" for (kind, name), found in zip(wanted, there, strict=True) if not found]
    if missing:
        return Check(
            "deployed",
            False,
            f"namespace {cluster.namespace} lacks {', '.join(missing)}",
            f"make deploy OVERLAY={overlay} CONTEXT={cluster.context} NAMESPACE={cluster.namespace}",
        )
    return Check("deployed", True, f"namespace {cluster.namespace}, overlay {overlay}")


def _permissions(cluster: Cluster, overlay: str) -> Check:
    wanted = PERMISSIONS + (PERMISSIONS_LOCAL if overlay == "local" else ())
    with ThreadPool(_THREADS) as pool:
        allowed = pool.starmap(cluster.can, wanted)
    refused = [
        f"{verb} {resource}{subresource and '/'}{subresource}"
        for (verb, resource, _, subresource), may in zip(wanted, allowed, strict=True)
        if not may
    ]
    if refused:
        return Check(
            "permissions",
            False,
            f"you may not: {', '.join(refused)} (namespace {cluster.namespace})",
            "have your user bound to the Role `submitter`: kubectl create rolebinding NAME --role submitter "
            f"--user YOU --namespace {cluster.namespace}",
        )
    return Check("permissions", True, "submit, follow, logs, stop, clean")


def _storage(cluster: Cluster, overlay: str, run: str, videos: str, *, reachable: bool) -> Iterator[Check]:
    if not reachable and overlay == "local":
        yield Check("bucket", False, "not tried, since it is reached through the cluster", "first what is above")
        return
    try:
        with storage_access(cluster, overlay):
            if run:
                yield _attempt("bucket", _BUCKET_REMEDY, lambda: _bucket(run))
            if videos:
                yield _attempt("videos", f"make upload VIDEOS=folder TO={videos}", lambda: _videos(videos))
    except ClusterError as error:
        yield Check("bucket", False, str(error), f"make deploy OVERLAY={overlay}")


def _bucket(uri: str) -> Check:
    storage = _impatient(uri)
    name, data = f"doctor-{secrets.token_hex(8)}", b"written by deepfake-detector doctor, which deletes it\n"
    storage.create(name, data)
    try:
        read = storage.read(name)
    finally:
        storage.delete(name)
    if read != data:
        raise CorruptError(f"{storage.uri}/{name}: read {read!r}: expected {data!r}, as it was written")
    return Check("bucket", True, f"{storage.uri}: read and written from this machine")


def _videos(uri: str) -> Check:
    first = next(_impatient(uri).list(), None)
    if first is None:
        return Check("videos", False, f"{uri}: holds nothing", f"make upload VIDEOS=folder TO={uri}")
    return Check("videos", True, f"{uri}: {first.name} and so on")


def _impatient(uri: str) -> Storage:
    if not uri.startswith("gs://"):
        raise ConfigError(f"{uri!r}: expected gs://bucket/prefix, since pods reach no folder of this machine")
    from deepfake_detector.adapters.storage_gcs import GcsStorage

    return GcsStorage(uri, outage_seconds=OUTAGE_SECONDS, grace_seconds=GRACE_SECONDS)


def _placement(cluster: Cluster, overlay: str, image: str, pods: int, spec: Mapping[str, Any]) -> Iterator[Check]:
    nodes = cluster.nodes()
    if image:
        yield image_check(image, nodes, overlay)
    if pods:
        everywhere = cluster.all_pods() if nodes is not None else None
        yield room_check(pods, spec, nodes, everywhere)


def image_check(image: str, nodes: Sequence[Mapping[str, Any]] | None, overlay: str) -> Check:
    """Whether nodes hold the image, or could pull it; which of them may pull from where is not known here."""
    full = full_name(image)
    loaded = (
        "nodes tell of an image that was just loaded up to a minute late; make cluster builds and loads it; "
        "or name what the nodes can pull: IMAGE=registry/name:tag"
    )
    pullable = full.partition("/")[0] != "docker.io" or image.startswith("docker.io/")
    if nodes is None:
        return Check("image", True, f"{image}: unknown, you may not list nodes")
    having = [node for node in nodes if full in _images(node)]
    if having:
        rest = len(nodes) - len(having)
        others = f"; {rest} others pull it" if rest and pullable else f"; not on {rest} others" if rest else ""
        return Check("image", True, f"{image}: on {len(having)} of {len(nodes)} nodes{others}")
    if pullable:
        return Check("image", True, f"{image}: on no node yet; whether they may pull it can't be told from here")
    if overlay == "local" and any(len(node.get("status", {}).get("images") or ()) >= LISTED_IMAGES for node in nodes):
        return Check("image", True, f"{image}: unknown, a node lists only {LISTED_IMAGES} of its images")
    return Check("image", False, f"{image}: on none of {len(nodes)} nodes, and names no registry", loaded, blocks=False)


def full_name(image: str) -> str:
    """As container runtimes complete it: "a:1" is docker.io/library/a:1 (github.com/distribution/reference)."""
    first, slash, _ = image.partition("/")
    if not slash:
        image = f"docker.io/library/{image}"
    elif not re.search(r"[.:]|^localhost$", first):
        image = f"docker.io/{image}"
    return image if re.search(r"[:@][^/]+$", image) else f"{image}:latest"


def room_check(
    pods: int,
    spec: Mapping[str, Any],
    nodes: Sequence[Mapping[str, Any]] | None,
    running: Sequence[Mapping[str, Any]] | None,
) -> Check:
    """How many of `pods` pods of this spec would start now, and what is short for the others."""
    if nodes is None or running is None:
        return Check("room", True, "unknown, you may not list nodes and all pods", blocks=False)
    asked = capacity.requests_of(spec)
    found = capacity.rooms(nodes, running, spec)
    fit = capacity.places(asked, found)
    each = ", ".join(f"{name} {capacity.describe(name, amount)}" for name, amount in asked.items() if amount)
    if fit >= pods:
        return Check("room", True, f"for {pods} pods of {each or 'no requests'}", blocks=False)
    free = "; ".join(_free(room, asked) for room in found[:3]) or "no node takes these pods"
    more = f"; and {len(found) - 3} more nodes" if len(found) > 3 else ""
    return Check(
        "room",
        False,
        f"for {fit} of {pods} pods of {each or 'no requests'} (free: {free}{more})",
        "the others wait for room: lower WORKERS, PODS or REQUESTS=cpu=...,memory=..., or add nodes",
        blocks=False,
    )


def _free(room: capacity.Room, asked: Mapping[str, float]) -> str:
    names = [*(name for name, amount in asked.items() if amount), "pods"]
    return f"{room.node} " + ", ".join(
        f"{name} {capacity.describe(name, max(0.0, room.free.get(name, 0.0)))}" for name in names
    )


def _images(node: Mapping[str, Any]) -> set[str]:
    return {name for image in node.get("status", {}).get("images") or () for name in image.get("names") or ()}
