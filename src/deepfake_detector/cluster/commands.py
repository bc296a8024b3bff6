"""The commands that need a cluster: arguments in, one function called. What they need is imported when they run."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from deepfake_detector.cluster.target import DEFAULT_NAMESPACE, DEFAULT_OVERLAY, Target
from deepfake_detector.core.errors import EXIT_OK, EXIT_PERMANENT

if TYPE_CHECKING:
    from deepfake_detector.adapters.cluster import Cluster

Commands = argparse._SubParsersAction
DEFAULT_PODS = 4


def add_commands(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Register them all; `common`: parent with the flags of every command."""
    parents = [common, cluster_flags(DEFAULT_OVERLAY)]
    _add_submit(commands, parents)
    _add_deploy(commands, parents)
    _add_doctor(commands, parents)
    _add_logs(commands, parents)
    _add_stop(commands, parents)
    _add_clean(commands, parents)
    _add_upload(commands, parents)
    _add_tensorboard(commands, parents)


def cluster_flags(overlay: str | None) -> argparse.ArgumentParser:
    """Parent with the flags that say which cluster. overlay: the default; None where storage alone may be meant."""
    flags = argparse.ArgumentParser(add_help=False)
    group = flags.add_argument_group("cluster")
    said = f" ({overlay})" if overlay else " (none: storage is reached from here)"
    group.add_argument("--overlay", metavar="NAME", default=overlay, help=f"folder of k8s/overlays: local, gke{said}")
    group.add_argument("--context", metavar="NAME", default=None, help="of the kubeconfig (its current one)")
    group.add_argument("--namespace", metavar="NAME", default=DEFAULT_NAMESPACE, help=f"({DEFAULT_NAMESPACE})")
    return flags


@contextmanager
def reach(arguments: argparse.Namespace, *uris: str) -> Iterator[None]:
    """While the block runs, gs:// URIs lead where pods of the chosen overlay find them. Local folders need nothing."""
    if not arguments.overlay or not any(uri.startswith("gs://") for uri in uris):
        yield
        return
    from deepfake_detector.cluster.emulator import storage_access

    with storage_access(connect(arguments), arguments.overlay):
        yield


def connect(arguments: argparse.Namespace) -> Cluster:
    """The cluster that the flags name; raises ClusterError."""
    from deepfake_detector.adapters.cluster import Cluster

    return Cluster.connect(arguments.context, arguments.namespace)


def _target(arguments: argparse.Namespace) -> Target:
    return Target(arguments.overlay, arguments.context, arguments.namespace)


def _add_submit(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    submit = commands.add_parser("submit", help="have a stage done in the cluster, and follow it")
    stages = submit.add_subparsers(required=True, metavar="STAGE", title="stages")
    preprocess = stages.add_parser("preprocess", parents=parents, help="videos to records, a Job index for each shard")
    preprocess.add_argument("--videos", metavar="GS", default="", help="labelled videos (as given to the run before)")
    preprocess.add_argument(
        "--pods", metavar="N", type=_at_least_one, default=DEFAULT_PODS, help=f"at a time ({DEFAULT_PODS})"
    )
    preprocess.add_argument("--retry-lost", action="store_true", help="try lost videos again, before any training")
    train = stages.add_parser("train", parents=parents, help="records to a model, a pod for each worker")
    train.add_argument("--records", metavar="GS", default="", help="finished records of another run (its own)")
    train.add_argument("--workers", metavar="N", type=_at_least_one, default=None, help="pods (as before; recipe's)")
    train.add_argument("--spares", metavar="N", type=int, help="more pods, that take over for lost ones (as before; 0)")
    export = stages.add_parser("export", parents=parents, help="the export by itself: training ends with one")
    for stage, parser in (("preprocess", preprocess), ("train", train), ("export", export)):
        _add_submission(parser)
        parser.set_defaults(command=_submit, stage=stage)


def _add_submission(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", metavar="GS", required=True, help="gs:// folder of the run")
    parser.add_argument("--image", metavar="NAME:TAG", required=True, help="of the stage's pods")
    parser.add_argument("--recipe", metavar="NAME", default=None, help="settings by name (as before; dfdc)")
    parser.add_argument("--set", metavar="KEY=VALUE", nargs="+", action="extend", default=[], help="settings to change")
    parser.add_argument("--requests", metavar="cpu=1,memory=2Gi", default="", help="instead of the overlay's")
    parser.add_argument("--limits", metavar="cpu=1,memory=2Gi", default="", help="instead of the overlay's")
    parser.add_argument("--dry-run", action="store_true", help="print the Job's YAML; nothing is written anywhere")
    parser.add_argument("--detach", action="store_true", help="do not follow the Job")


def _submit(arguments: argparse.Namespace) -> int:
    from deepfake_detector.cluster.submit import Submission, submit
    from deepfake_detector.core.jobspec import Resources, parse_resources

    assignments = list(arguments.set)
    if workers := vars(arguments).get("workers"):
        assignments.append(f"train.workers={workers}")
    if (spares := vars(arguments).get("spares")) is not None:
        assignments.append(f"operations.spares={spares}")
    wanted = Submission(
        stage=arguments.stage,
        run=arguments.run,
        image=arguments.image,
        videos=vars(arguments).get("videos", ""),
        records=vars(arguments).get("records", ""),
        recipe=arguments.recipe,
        assignments=assignments,
        pods=vars(arguments).get("pods", 1),
        retry_lost=vars(arguments).get("retry_lost", False),
        resources=Resources(
            requests=parse_resources(arguments.requests, "--requests"),
            limits=parse_resources(arguments.limits, "--limits"),
        ),
        dry_run=arguments.dry_run,
        detach=arguments.detach,
    )
    return submit(wanted, _target(arguments))


def _add_deploy(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("deploy", parents=parents, help="apply what is applied once, before any stage")
    parser.add_argument("--dry-run", action="store_true", help="print the YAML instead")
    parser.set_defaults(command=_deploy)


def _deploy(arguments: argparse.Namespace) -> int:
    from deepfake_detector.cluster.deploy import deploy

    return deploy(_target(arguments), dry_run=arguments.dry_run)


def _add_doctor(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("doctor", parents=parents, help="check all that submitting needs, with remedies")
    parser.add_argument("--image", metavar="NAME:TAG", default="", help="whether nodes have it")
    parser.add_argument("--workers", metavar="N", type=_at_least_one, default=0, help="whether so many fit")
    parser.add_argument("--run", metavar="GS", default="", help="whether its bucket can be read and written")
    parser.set_defaults(command=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from deepfake_detector.cluster.deploy import stage_template
    from deepfake_detector.cluster.doctor import examine, to_text

    spec = stage_template(arguments.overlay, "train")["spec"]["template"]["spec"] if arguments.workers else None
    checks = examine(
        arguments.context,
        arguments.namespace,
        arguments.overlay,
        image=arguments.image,
        run=arguments.run,
        pods=arguments.workers,
        spec=spec,
    )
    print(to_text(checks))
    return EXIT_PERMANENT if any(each.blocks and not each.ok for each in checks) else EXIT_OK


def _add_logs(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("logs", parents=parents, help="what the pods said, also after they are gone")
    parser.add_argument("--run", metavar="URI", required=True)
    parser.add_argument("--stage", choices=("preprocess", "train", "export"), default=None, help="(all)")
    parser.add_argument("--pod", metavar="INDEX_OR_NAME", default=None, help="(all)")
    parser.add_argument("--follow", action="store_true", help="until the pods end")
    parser.set_defaults(command=_logs)


def _logs(arguments: argparse.Namespace) -> int:
    from deepfake_detector.cluster.logs import show_logs

    with reach(arguments, arguments.run):
        cluster = connect(arguments) if arguments.run.startswith("gs://") else None  # no pod writes to a local folder
        return show_logs(cluster, arguments.run, stage=arguments.stage, pod=arguments.pod, follow=arguments.follow)


def _add_stop(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("stop", parents=parents, help="end a run's Jobs; what is done stays")
    parser.add_argument("--run", metavar="URI", required=True)
    parser.set_defaults(command=_stop)


def _stop(arguments: argparse.Namespace) -> int:
    from deepfake_detector.cluster.clean import stop

    return stop(connect(arguments), arguments.run)


def _add_clean(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("clean", parents=parents, help="remove a run's objects from the cluster")
    parser.add_argument("--run", metavar="URI", required=True)
    parser.add_argument("--data", action="store_true", help="the run's folder, too, after listing it and asking")
    parser.add_argument("--yes", action="store_true", help="don't ask")
    parser.set_defaults(command=_clean)


def _clean(arguments: argparse.Namespace) -> int:
    from deepfake_detector.cluster.clean import clean

    with reach(arguments, *([arguments.run] if arguments.data else [])):  # Jobs can be removed without any storage
        return clean(connect(arguments), arguments.run, data=arguments.data, yes=arguments.yes)


def _add_upload(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("upload", parents=parents, help="a local data set into the bucket, resumable")
    parser.add_argument("--videos", metavar="DIR", type=Path, required=True)
    parser.add_argument("--to", metavar="GS", required=True)
    parser.set_defaults(command=_upload)


def _upload(arguments: argparse.Namespace) -> int:
    from deepfake_detector.stages.upload import to_text, upload

    with reach(arguments, arguments.to):
        print(to_text(upload(arguments.videos, arguments.to)))
    return EXIT_OK


def _add_tensorboard(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("tensorboard", parents=parents, help="a run's curves in the browser")
    parser.add_argument("--run", metavar="URI", required=True)
    parser.add_argument("--port", metavar="N", type=int, default=6006, help="(6006)")
    parser.set_defaults(command=_tensorboard)


def _tensorboard(arguments: argparse.Namespace) -> int:
    from deepfake_detector.cluster.tensorboard import tensorboard

    with reach(arguments, arguments.run):
        return tensorboard(arguments.run, port=arguments.port)


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)
