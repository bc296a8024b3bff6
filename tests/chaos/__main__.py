"""`python -m tests.chaos`: see the package. Exit status 1 when a run hangs, fails, or gives other bits."""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from demo.synthesise import Settings, synthesise
from tests.chaos.report import HEAD, by_family, line
from tests.chaos.scenarios import STEPS, Scenario, draw
from tests.chaos.stage import Play, Result, World
from tests.integration.fault_proxy import FaultProxy
from tests.integration.gcs_server import GcsServer, available

GROUPS = 24  # of the demo's clips: 48 of them, and 5 that are broken
EPOCHS = 2
SCRATCH_MB = 48  # of the folder that is filled
SETTINGS = (
    "data.shards=2",
    "sampling.frames=4",
    "faces.size=32",
    "model.lstm_units=8",
    f"train.epochs={EPOCHS}",
    f"train.steps_per_epoch={STEPS // EPOCHS}",
    "train.global_batch=8",
    "train.threads=1",
    "operations.checkpoint_steps=3",
    "operations.decoders=2",
    "operations.attempts=40",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=None, help="(a fresh one, which is printed)")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the runs, from 0")
    chosen = parser.parse_args()
    seed = chosen.seed if chosen.seed is not None else random.SystemRandom().randrange(10**6)
    numbers = chosen.only if chosen.only is not None else range(chosen.runs)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C does: servers end, what is mounted is unmounted
    print(f"chaos: {len(numbers)} runs, SEED={seed}", flush=True)
    with world() as here:
        bucket = "gs://chaos" if here.proxy else str(here.folder)
        references = {whole: undisturbed(here, whole, bucket) for whole in (True, False)}
        cold = references[False].first_step or 0.0
        print(f"undisturbed: {references[False].seconds:.0f} s, {cold:.1f} s of them to the first step\n", flush=True)
        print(HEAD)
        runs = [played(here, draw(seed, number), bucket, references) for number in numbers]
    print(f"\n{by_family(runs)}")
    bad = [run.scenario.number for run in runs if run.problems]
    print(f"\n{len(runs) - len(bad)} of {len(runs)} identical (SEED={seed})")
    if bad:
        again = " ".join(map(str, bad))
        print(f"again: python -m tests.chaos --seed {seed} --only {again}", file=sys.stderr)
    return 1 if bad else 0


def played(here: World, scenario: Scenario, bucket: str, references: dict[bool, Result]) -> Result:
    """Play it, judge whether it is as if nothing had happened, and print its line."""
    if here.proxy:
        here.proxy.rate = scenario.rate
    play = Play(here, scenario, f"{bucket}/run-{scenario.number}")
    result = play.play()
    if here.proxy:
        here.proxy.rate = 0.0
    expected = references[scenario.whole].outcome
    if result.outcome:
        result.problems += [f"other {name}" for name in expected if result.outcome.get(name) != expected[name]]
    print(line(result), flush=True)
    if result.problems:
        print(f"--- run {scenario.number}: {play.said()}", file=sys.stderr, flush=True)
    return result


def undisturbed(here: World, whole: bool, bucket: str) -> Result:
    """What the others are compared with; from the videos it makes the records that the others train on."""
    place = here.records if whole else f"{bucket}/undisturbed"
    play = Play(here, Scenario(number=-1 - whole, family="undisturbed", whole=whole), place)
    result = play.play()
    if result.problems:
        raise SystemExit(f"the undisturbed run: {result.problems}\n{play.said()}")
    return result


@contextlib.contextmanager
def world() -> Iterator[World]:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        videos = folder / "videos"
        synthesise(videos, Settings(groups=GROUPS))
        scratch, can_fill = stack.enter_context(small_folder(folder / "scratch"))
        proxy, records = None, str(folder / "records")
        if available():
            proxy = stack.enter_context(storage(folder))
            records = "gs://chaos/records"
        else:
            print("storage is a local folder, and no fault of storage is tried: neither fake-gcs-server nor Go is here")
        yield World(folder, SETTINGS, str(videos), records, scratch, can_fill, proxy)


@contextlib.contextmanager
def storage(folder: Path) -> Iterator[FaultProxy]:
    with FaultProxy() as proxy:
        server = GcsServer(folder / "server.log", public_port=proxy.port)
        proxy.server_port = server.port
        server.start()
        os.environ["STORAGE_EMULATOR_HOST"] = proxy.url
        try:
            server.make_bucket("chaos")
            yield proxy
        finally:
            server.kill()


@contextlib.contextmanager
def small_folder(folder: Path) -> Iterator[tuple[Path, bool]]:
    """A folder of SCRATCH_MB, and whether it is: only root may mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SCRATCH_MB}m", "tmpfs", str(folder)]
    small = sys.platform == "linux" and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    if not small:
        print("no disk is filled: mounting a small tmpfs needs root")
    try:
        yield folder, small
    finally:
        if small:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


if __name__ == "__main__":
    sys.exit(main())
