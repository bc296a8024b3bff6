"""The adapter on an API server that loses connections, forgets positions and refuses."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from deepfake_detector.adapters import cluster as adapter
from deepfake_detector.adapters import kube_api
from deepfake_detector.adapters.cluster import Cluster
from deepfake_detector.core.errors import EXIT_PERMANENT, EXIT_RETRY, ClusterAwayError, ClusterError


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_api, "RETRY_SECONDS", (0.01, 0.01))


class Stop(threading.Event):
    """Notes how long the watch pauses, and doesn't."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float] = []
        self._owner = threading.current_thread()

    def wait(self, timeout: float | None = None) -> bool:
        if threading.current_thread() is not self._owner:
            return super().wait(timeout)
        self.pauses.append(timeout or 0.0)
        return self.is_set()


def seen(watch: Iterator[tuple[str, dict[str, Any]]], count: int) -> list[tuple[str, str]]:
    return [(change, thing["metadata"]["name"]) for change, thing in (next(watch) for _ in range(count))]


def test_a_watch_tells_what_is_there_and_then_what_changes(server, cluster):
    server.put("pods", "a", metadata={"labels": {"run": "1"}})
    server.put("pods", "other", metadata={"labels": {"run": "2"}})
    watch = cluster.watch("pods", "run=1")
    assert seen(watch, 1) == [("ADDED", "a")]
    server.put("pods", "other", metadata={"labels": {"run": "2"}})
    server.put("pods", "a", metadata={"labels": {"run": "1"}}, status={"phase": "Running"})
    server.put("pods", "b", metadata={"labels": {"run": "1"}})
    server.remove("pods", "a")
    assert seen(watch, 3) == [("MODIFIED", "a"), ("ADDED", "b"), ("DELETED", "a")]
    assert cluster.requests == len(server.requests) == 2, "one list and one watch"


def test_a_watch_tells_what_became_of_what_was_known_before(server, cluster):
    known = [server.put("pods", name) for name in ("same", "changed", "removed")]
    server.put("pods", "changed", status={"phase": "Running"})
    server.remove("pods", "removed")
    assert seen(cluster.watch("pods", known=known), 2) == [("DELETED", "removed"), ("MODIFIED", "changed")]


def test_a_watch_survives_a_lost_connection(server, cluster):
    stop, away, back = Stop(), [], []
    server.put("pods", "kept")
    server.put("pods", "changed")
    server.put("pods", "removed")
    watch = cluster.watch("pods", stop=stop, on_away=away.append, on_back=lambda: back.append(1))
    assert len(seen(watch, 3)) == 3
    server.put("pods", "changed", status={"phase": "Running"})
    assert seen(watch, 1) == [("MODIFIED", "changed")]
    server.wait_for_watches(1)
    server.drop_watches()
    server.put("pods", "changed", status={"phase": "Succeeded"})
    server.remove("pods", "removed")
    server.put("pods", "new")
    assert sorted(seen(watch, 3)) == [("ADDED", "new"), ("DELETED", "removed"), ("MODIFIED", "changed")]
    assert stop.pauses == [0.0, 1.0]
    assert len(away) == len(back) == 1
    assert "context test" in away[0]
    server.put("pods", "kept", status={"phase": "Running"})
    assert seen(watch, 1) == [("MODIFIED", "kept")]


def test_a_watch_lists_anew_where_its_position_has_expired(server, cluster):
    stop = Stop()
    server.put("pods", "a")
    watch = cluster.watch("pods", stop=stop)
    assert seen(watch, 1) == [("ADDED", "a")]
    server.expire()  # between the list and the watch
    server.put("pods", "b")
    assert seen(watch, 1) == [("ADDED", "b")], "and nothing about a, which did not change"
    assert stop.pauses == [0.0, 1.0]


def test_a_watch_waits_longer_and_longer_for_a_server_that_is_away(server, cluster):
    stop = Stop()
    tries: list[str] = []

    def give_up(reason: str) -> None:
        tries.append(reason)
        if len(tries) == 7:
            stop.set()

    server.close()
    assert list(cluster.watch("pods", stop=stop, on_away=give_up)) == []
    assert stop.pauses == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert cluster.requests == 7


def test_a_watch_ends_at_once_when_it_is_stopped(server, cluster):
    stop = threading.Event()
    ended = threading.Thread(target=lambda: list(cluster.watch("pods", stop=stop)))
    ended.start()
    server.wait_for_watches(1)
    stop.set()
    ended.join(20)
    assert not ended.is_alive()


def test_a_watch_that_is_not_permitted_raises(server, cluster):
    message = 'pods is forbidden: User "ann" cannot list resource "pods" in API group "" in the namespace "mine"'
    server.refusals.append((403, {"reason": "Forbidden", "message": message}))
    with pytest.raises(ClusterError, match="user ann may not list pods: expected the Role 'submitter' of k8s/base"):
        next(cluster.watch("pods"))


def test_jobs_are_created_once(server, cluster):
    job = {"metadata": {"name": "train-x", "labels": {"run": "1"}}, "spec": {"completions": 2}}
    assert cluster.get_job("train-x") is None
    assert cluster.create_job(job) is True
    assert cluster.create_job(job) is False
    assert cluster.get_job("train-x")["spec"] == {"completions": 2}
    assert [each["metadata"]["name"] for each in cluster.jobs("run=1")] == ["train-x"]
    assert cluster.jobs("run=2") == []
    assert cluster.exists("jobs", "train-x")


def test_a_deleted_job_is_gone_with_the_return(server, cluster):
    server.put("jobs", "train-x")
    cluster.delete_job("train-x")
    assert cluster.get_job("train-x") is None
    cluster.delete_job("train-x")  # nothing there, nothing happens


def test_a_job_that_goes_before_the_watch_for_it_begins(server, cluster, monkeypatch):
    """Its pods end just after a look that still finds it."""
    server.put("jobs", "train-x")
    remove, listed = server.remove, server.listed

    def listed_once(kind, query):
        found = listed(kind, query)
        if kind == "jobs" and found:
            remove("jobs", "train-x")
        return found

    monkeypatch.setattr(server, "remove", lambda *_: None)  # the deletion is accepted, and its pods still run
    monkeypatch.setattr(server, "listed", listed_once)
    cluster.delete_job("train-x", budget_seconds=20)
    assert cluster.get_job("train-x") is None


def test_a_deletion_that_takes_too_long_says_so(server, cluster, monkeypatch):
    server.put("jobs", "train-x")
    monkeypatch.setattr(server, "remove", lambda *_: None)  # a finalizer that nobody takes away
    with pytest.raises(ClusterAwayError, match=r"job train-x .*: not gone 0\.2 s after its deletion"):
        cluster.delete_job("train-x", budget_seconds=0.2)


def test_a_busy_server_is_asked_again(server, cluster, short_pauses):
    server.refusals.extend([(503, {"message": "etcd leader changed"}), (429, {})])
    assert cluster.version() == (1, 34)
    assert cluster.requests == 3


def test_a_server_that_stays_busy_is_worth_another_try(server, cluster, short_pauses):
    server.refusals.extend([(503, {"message": "etcd leader changed"})] * 3)
    with pytest.raises(ClusterAwayError, match=r"context test.* 503 \(etcd leader changed\)") as caught:
        cluster.version()
    assert caught.value.exit_status == EXIT_RETRY


def test_an_answer_that_is_not_kubernetes(server, cluster, short_pauses):
    server.refusals.extend([(200, ["Welcome", "to our network"])] * 3)
    with pytest.raises(ClusterAwayError, match=r"Welcome.*: expected a JSON object of Kubernetes"):
        cluster.version()


def test_a_server_out_of_reach(server, cluster, short_pauses):
    server.close()
    with pytest.raises(ClusterAwayError, match=r"context test: http://127\.0\.0\.1:\d+ does not answer \(.*refused"):
        cluster.version()
    assert cluster.requests == 3


@pytest.mark.parametrize(
    ("status", "answer", "says"),
    [
        pytest.param(401, {"message": "Unauthorized"}, "does not accept the credentials (401): log in again", id="401"),
        pytest.param(
            403,
            {"message": 'jobs.batch is forbidden: User "system:anonymous" cannot create resource "jobs"'},
            "does not accept the credentials (403)",
            id="no credentials were sent",
        ),
        pytest.param(
            403,
            {"message": 'jobs.batch is forbidden: User "ann" cannot create resource "jobs" in API group "batch" in'},
            "context test, namespace mine: user ann may not create jobs.batch: expected the Role 'submitter'",
            id="permission",
        ),
        pytest.param(
            403,
            {"message": "jobs.batch is forbidden: exceeded quota: few, requested: count/jobs.batch=1"},
            "refused (403): jobs.batch is forbidden: exceeded quota: few",
            id="quota",
        ),
        pytest.param(422, {"message": "spec.completions:\n Invalid"}, "spec.completions: Invalid", id="invalid"),
        pytest.param(400, ["no object"], 'refused (400): ["no object"]', id="not a status"),
    ],
)
def test_refusals_in_words(server, cluster, status, answer, says):
    server.refusals.append((status, answer))
    with pytest.raises(ClusterError) as caught:
        cluster.create_job({"metadata": {"name": "x"}})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == EXIT_PERMANENT


def test_only_the_job_that_is_meant_is_deleted(server, cluster):
    first = server.put("jobs", "train-x")["metadata"]["uid"]
    server.remove("jobs", "train-x")
    server.put("jobs", "train-x")
    cluster.delete_job("train-x", uid=first)
    second = cluster.get_job("train-x")["metadata"]["uid"]
    assert second != first
    cluster.delete_job("train-x", uid=second)
    assert cluster.get_job("train-x") is None


def test_jobs_of_all_namespaces(server, cluster):
    for name, run in (("a", "1"), ("b", "1"), ("c", "2")):
        server.put("jobs", name, metadata={"namespace": f"of-{name}", "labels": {"run": run}})
    assert [job["metadata"]["namespace"] for job in cluster.all_jobs("run=1")] == ["of-a", "of-b"]
    assert server.requests[-1] == "GET /apis/batch/v1/jobs?labelSelector=run%3D1"


def test_a_missing_namespace_has_a_remedy(server, tmp_path, cluster):
    other = Cluster.connect("test", "other")
    with pytest.raises(ClusterError, match=r"no such namespace: make deploy CONTEXT=test NAMESPACE=other"):
        other.create_job({"metadata": {"name": "x"}})


def test_permissions(server, cluster):
    server.denied.add(("delete", "jobs"))
    assert cluster.can("create", "jobs", "batch")
    assert not cluster.can("delete", "jobs", "batch")


def test_what_may_not_be_listed_is_none(server, cluster):
    message = 'nodes is forbidden: User "ann" cannot list resource "nodes" in API group "" at the cluster scope'
    server.refusals.extend([(403, {"message": message})] * 3)
    assert cluster.nodes() is None
    assert cluster.all_pods() is None
    assert cluster.all_jobs("run=1") is None
    assert cluster.nodes() == []


def test_logs_come_in_lines(server, cluster):
    assert list(cluster.pod_log("a", tail_lines=5)) == ["first", "second", "third"]
    assert server.requests[-1].endswith("/log?tailLines=5")


def test_an_unknown_context_names_those_that_there_are(server, tmp_path, use_kubeconfig):
    use_kubeconfig(server.kubeconfig(tmp_path / "kubeconfig", "one", "two"))
    assert Cluster.connect("two", "mine").context == "two"
    assert str(Cluster.connect(None, "mine")) == "context one, namespace mine"
    with pytest.raises(ClusterError, match="context three: expected one of one, two"):
        Cluster.connect("three", "mine")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(None, id="missing"),
        pytest.param("", id="empty"),
        pytest.param("{", id="not YAML"),
        pytest.param("apiVersion: v1\nkind: Config\ncontexts: []\nclusters: []\nusers: []\n", id="no context"),
    ],
)
def test_a_kubeconfig_that_cannot_be_used(tmp_path, use_kubeconfig, content):
    path = tmp_path / "kubeconfig"
    if content is not None:
        path.write_text(content)
    use_kubeconfig(path)
    with pytest.raises(ClusterError, match="no usable kubeconfig") as caught:
        Cluster.connect(None, "mine")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_exec_plugin_that_is_not_installed(server, tmp_path, use_kubeconfig, caplog):
    path = server.kubeconfig(tmp_path / "kubeconfig")
    document = json.loads(path.read_text())
    document["users"][0]["user"] = {
        "exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "no-such-plugin", "args": []}
    }
    path.write_text(json.dumps(document))
    use_kubeconfig(path)
    with pytest.raises(ClusterError, match=r"context test: no credentials .*no-such-plugin"):
        Cluster.connect(None, "mine")
    assert not caplog.records, "the client's own log line would be a second one"


def test_a_watch_lasts_as_long_as_the_server_is_asked_to(server, cluster):
    server.put("pods", "a")
    watch = cluster.watch("pods")
    next(watch)
    server.put("pods", "b")
    next(watch)
    assert f"timeoutSeconds={adapter.WATCH_SECONDS}" in server.requests[-1]
    assert "allowWatchBookmarks=true" in server.requests[-1]
