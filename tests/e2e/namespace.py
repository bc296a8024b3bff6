"""A namespace of its own for one test: the commands that a user types, kubectl, and the bucket of the local overlay."""

from __future__ import annotations

import copy
import itertools
import json
import os
import re
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from google.api_core.exceptions import GoogleAPIError
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

ROOT = Path(__file__).parents[2]
COMMAND = str(Path(sys.executable).with_name("deepfake-detector"))
BUCKET = "videos"  # of the local overlay
LOOK_SECONDS = 0.2
KUBECTL_SECONDS = 180.0
REMOVAL_SECONDS = 120.0  # pods have 10 s for their end
SESSION = secrets.token_hex(4)  # in the name of every namespace that these tests make
Some = TypeVar("Some")
Object = dict[str, Any]


def eventually(what: str, seconds: float, look: Callable[[], Some | None]) -> Some:
    """The first true answer of `look`, asked again and again; a failure says `what` was awaited, and what was seen."""
    deadline = time.monotonic() + seconds
    while True:
        seen: Any = None
        try:
            if answer := look():
                return answer
            seen = answer
        except (GoogleAPIError, OSError) as error:  # the emulator can't be reached for a moment
            seen = error
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s; in the end: {seen!r}"
        time.sleep(LOOK_SECONDS)


@dataclass(frozen=True)
class Said:
    """What a command left on the terminal (stdout and stderr, in order), its exit status, and how long it took."""

    status: int
    text: str
    seconds: float

    def line(self, pattern: str) -> str:
        """The first line that matches."""
        found = next((line for line in self.text.splitlines() if re.search(pattern, line)), None)
        assert found is not None, f"no line like {pattern!r} in:\n{self.text}"
        return found


class Client:
    """A command that runs: its output goes to a file, as the terminal would have it."""

    def __init__(self, command: list[str], output: Path, environment: Mapping[str, str]) -> None:
        self._command, self._output = command, output
        self._begun = time.monotonic()
        with output.open("wb") as file:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    @property
    def text(self) -> str:
        return self._output.read_text(errors="replace")

    def says(self, pattern: str, seconds: float) -> str:
        """The first match of a regular expression in the output; the command has to go on until then."""

        def look() -> str:
            ended = self._process.poll() is not None
            found = re.search(pattern, self.text, re.MULTILINE)
            assert found or not ended, (
                f"{self}: ended with {self._process.returncode} without {pattern!r}:\n{self.text}"
            )
            return found[0] if found else ""

        try:
            return eventually(f"{pattern!r} from {self}", seconds, look)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.text}") from None

    def end(self, seconds: float) -> Said:
        """Wait for the command's own end."""
        try:
            status = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self}: still at work after {seconds:g} s:\n{self.text}") from None
        said = Said(status, self.text, time.monotonic() - self._begun)
        print(f"\n$ {self}\n{said.text}(status {status}, {said.seconds:.1f} s)", flush=True)
        return said

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()

    def __str__(self) -> str:
        return shlex.join([Path(self._command[0]).name, *self._command[1:]])


class Namespace:
    """A fresh namespace with the local overlay in it. folder: for the output of commands."""

    def __init__(self, image: str, folder: Path) -> None:
        self.name = fresh_name()
        self.image = image
        self._folder = folder
        self._clients: list[Client] = []
        self._environment: dict[str, str] = {}

    def as_account(self, account: str) -> Namespace:
        """The same namespace, for whom commands run as one of its ServiceAccounts; `kubectl` stays the tests' own."""
        return self.by(kubeconfig_of(account, self.name, self._folder))

    def by(self, kubeconfig: Path) -> Namespace:
        """The same namespace, for whom commands run with another kubeconfig."""
        other = copy.copy(self)
        other._environment = {"KUBECONFIG": str(kubeconfig)}
        return other

    def start(self, *arguments: str) -> Client:
        """`deepfake-detector ARGUMENTS` in this namespace, not waited for."""
        return self._start([COMMAND, *arguments, "--namespace", self.name])

    def run(self, *arguments: str, status: int = 0, seconds: float = 300) -> Said:
        """The same, to its end, which has to be the exit status `status`."""
        return self._ended(self.start(*arguments), status, seconds)

    def run_alone(self, *arguments: str, status: int = 0, seconds: float = 300) -> Said:
        """A command that knows no cluster."""
        return self._ended(self._start([COMMAND, *arguments]), status, seconds)

    def submit(self, stage: str, run: str, *arguments: str) -> Client:
        return self.start("submit", stage, "--run", run, "--image", self.image, *arguments)

    def make(self, target: str, *variables: str, status: int = 0, seconds: float = 300) -> Said:
        """`make TARGET VARIABLES` in this namespace."""
        environment = [f"VENV={sys.prefix}", f"--assume-old={sys.prefix}/.installed"]  # this one, as it is
        command = ["make", "--no-print-directory", *environment, target, f"NAMESPACE={self.name}", *variables]
        return self._ended(self._start(command), status, seconds)

    def _start(self, command: list[str]) -> Client:
        client = Client(command, self._folder / f"{len(self._clients)}.txt", self._environment)
        self._clients.append(client)
        return client

    def _ended(self, client: Client, status: int, seconds: float) -> Said:
        said = client.end(seconds)
        assert said.status == status, f"{client}: status {said.status}, expected {status}:\n{said.text}"
        return said

    def kubectl(self, *arguments: str, given: str | None = None) -> str:
        """kubectl's stdout; a failure shows its stderr."""
        return kubectl("--namespace", self.name, *arguments, given=given)

    def objects(self, kind: str, selector: str = "") -> list[Object]:
        """As the API has them."""
        items: list[Object] = json.loads(self.kubectl("get", kind, "--selector", selector, "-o", "json"))["items"]
        return items

    def job(self, stage: str) -> Object:
        """The only Job of a stage."""
        [job] = self.objects("jobs", f"app.kubernetes.io/component={stage}")
        return job

    def pods(self, stage: str) -> list[Object]:
        """A stage's pods, the failed ones included, oldest first."""
        found = self.objects("pods", f"app.kubernetes.io/component={stage}")
        return sorted(found, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def delete_running_pod(self, stage: str, index: int) -> str:
        """`kubectl delete pod` of the index's running pod, without waiting for its end; returns its name."""
        [name] = [
            pod["metadata"]["name"]
            for pod in self.pods(stage)
            if index_of(pod) == index and pod["status"]["phase"] == "Running"
        ]
        self.kubectl("delete", "pod", name, "--wait=false")
        return str(name)

    @contextmanager
    def bucket(self) -> Iterator[storage.Bucket]:
        """The emulator's bucket from outside, through a port-forward."""
        command = ["kubectl", "--namespace", self.name, "port-forward", "service/object-store", ":4443"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as forward:
            try:
                assert forward.stdout is not None
                first = forward.stdout.readline()
                found = re.match(r"Forwarding from (127\.0\.0\.1:\d+) ", first)
                assert found, f"{shlex.join(command)}: {first}"
                endpoint = {"api_endpoint": f"http://{found[1]}"}
                client = storage.Client("e2e", credentials=AnonymousCredentials(), client_options=endpoint)
                yield client.bucket(BUCKET)
            finally:
                forward.terminate()

    def start_pod(
        self,
        name: str,
        command: Sequence[str],
        *,
        labels: Mapping[str, str] | None = None,
        cpu: str = "10m",
        node: str = "",
        user: int | None = None,
    ) -> None:
        """A pod of the image, and no Job's, that Pod Security `restricted` admits.

        node: where it has to run. user: instead of the image's, for which `baseline` has to do where it is root.
        """
        container = {
            "name": "main",
            "image": self.image,
            "command": list(command),
            "resources": {"requests": {"cpu": cpu, "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }
        spec = {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "nodeSelector": {"kubernetes.io/hostname": node} if node else {},
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "securityContext": {
                "runAsNonRoot": user != 0,
                "seccompProfile": {"type": "RuntimeDefault"},
                **({} if user is None else {"runAsUser": user}),
            },
            "containers": [container],
        }
        metadata = {"name": name, "labels": dict(labels or {})}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        self.kubectl("create", "--filename", "-", given=json.dumps(pod))

    def pod(self, name: str) -> Object:
        found: Object = json.loads(self.kubectl("get", "pod", name, "-o", "json"))
        return found

    def remove(self) -> None:
        """End what the test left running, and have the namespace deleted; `require_all_removed` sees to its end."""
        for client in self._clients:
            client.kill()
        delete_namespace(self.name)


def kubectl(*arguments: str, given: str | None = None, statuses: Container[int] = (0,)) -> str:
    """Its stdout; raises AssertionError with its stderr at an exit status that is not expected."""
    command = ["kubectl", *arguments]
    result = subprocess.run(command, input=given, capture_output=True, text=True, timeout=KUBECTL_SECONDS, check=False)
    assert result.returncode in statuses, f"{shlex.join(command)}: {result.stderr}"
    return result.stdout


_NUMBERS = itertools.count(1)


def fresh_name() -> str:
    """For a namespace that no other test has."""
    return f"e2e-{SESSION}-{next(_NUMBERS)}"


def delete_namespace(name: str) -> None:
    """Without waiting for its end; an AssertionError tells why it can't be deleted."""
    kubectl("delete", "namespace", name, "--ignore-not-found", "--wait=false")


def namespaces() -> dict[str, Object]:
    """Those that these tests have made and that are still there, the ones that are being deleted included."""
    found = json.loads(kubectl("get", "namespaces", "-o", "json"))["items"]
    named: dict[str, Object] = {each["metadata"]["name"]: each for each in found}
    return {name: each for name, each in named.items() if name.startswith(f"e2e-{SESSION}-")}


def await_removals() -> None:
    """Until no namespace is being deleted any more: its pods took room. A failure says what holds it."""
    _require_gone("deleted namespaces are gone", lambda each: each["status"]["phase"] == "Terminating")


def require_all_removed() -> None:
    """Until no namespace of these tests is left. A failure says which ones stay, and what holds them."""
    _require_gone("all namespaces of the tests are gone", lambda each: True)


def _require_gone(what: str, concerns: Callable[[Object], bool]) -> None:
    left: dict[str, list[str]] = {}

    def none_left() -> bool:
        left.clear()
        for name, each in namespaces().items():
            if concerns(each):
                status = each["status"]
                left[name] = [status["phase"], *(held["message"] for held in status.get("conditions", ()))]
        return not left

    try:
        eventually(what, REMOVAL_SECONDS, none_left)
    except AssertionError as error:
        raise AssertionError(f"{error}: {json.dumps(left, indent=1)}") from None


def kubeconfig_of(account: str, namespace: str, folder: Path) -> Path:
    """A file in `folder`: the current context for who has nothing but a ServiceAccount's token."""
    token = kubectl("create", "token", account, "--namespace", namespace).strip()
    config = json.loads(kubectl("config", "view", "--raw", "--minify", "--flatten", "--output", "json"))
    config["users"][0]["user"] = {"token": token}
    path = folder / f"{account}.kubeconfig"
    path.touch(mode=0o600)
    path.write_text(json.dumps(config))
    return path


def index_of(pod: Object) -> int:
    return int(pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"])


def names(bucket: storage.Bucket, prefix: str) -> list[str]:
    """Of the objects under a prefix."""
    return sorted(blob.name for blob in bucket.list_blobs(prefix=prefix))


def read(bucket: storage.Bucket, name: str) -> bytes:
    data: bytes = bucket.blob(name).download_as_bytes()
    return data


def download(bucket: storage.Bucket, prefix: str, folder: Path) -> None:
    """All objects under a prefix into a local folder."""
    for name in names(bucket, prefix):
        file = folder / name.removeprefix(prefix)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(read(bucket, name))


def put(bucket: storage.Bucket, path: Path, name: str) -> None:
    """A local file as an object, or all files of a folder as objects under a prefix."""
    for file in [path] if path.is_file() else filter(Path.is_file, path.rglob("*")):
        suffix = "" if path.is_file() else f"/{file.relative_to(path).as_posix()}"
        bucket.blob(name + suffix).upload_from_filename(str(file))


def unless_set(name: str) -> str | None:
    """A variable of the environment, or None where it is empty."""
    return os.environ.get(name) or None
