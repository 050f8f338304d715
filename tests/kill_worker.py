"""Trains one run again and again, killed by SIGKILL at another moment each time, until it is done.

Arguments: the run's composed config (YAML); how many kills; a seed; a file for what happened (JSON).
Every attempt is a process of its own, forked after the imports, which are most of a start. (`jepa_lm.run`
would import when it is called.)
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
from pathlib import Path

from omegaconf import OmegaConf

from jepa_lm import schema
from jepa_lm.training import train

WRITES = ("half", "complete", "named", "linked", "kept")
"""Moments of a checkpoint's write: half on the disk, complete but unnamed, named but not linked as
last.ckpt, linked but not yet renamed, renamed with the old ones still there."""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_write(moment: str, after: int) -> None:
    """Die in the write number `after` of this attempt."""
    writes = [0]
    fsync, replace, link, unlink = os.fsync, os.replace, os.link, Path.unlink

    def on_fsync(descriptor: int) -> None:
        writes[0] += 1
        if writes[0] == after and moment == "half":
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            die()
        fsync(descriptor)
        if writes[0] == after and moment == "complete":
            die()

    def on_replace(source: Path, target: Path) -> None:
        if writes[0] == after and moment == "linked" and Path(target).name == "last.ckpt":
            die()
        replace(source, target)
        if writes[0] == after and moment == "named" and Path(target).name != "last.ckpt":
            die()

    def on_unlink(path: Path, missing_ok: bool = False) -> None:
        if writes[0] == after and moment == "kept" and path.name.startswith("step-"):
            die()
        unlink(path, missing_ok=missing_ok)

    os.fsync, os.replace, os.link, Path.unlink = on_fsync, on_replace, link, on_unlink


def attempt(config: str, plan: tuple[str, float] | None) -> None:
    """Train in this process; with a plan, until it kills it."""
    if plan is not None and plan[0] == "time":
        timer = threading.Timer(plan[1], die)
        timer.daemon = True
        timer.start()
    elif plan is not None:
        kill_in_write(plan[0], int(plan[1]))
    train(OmegaConf.load(config))


def main() -> None:
    config, kills, seed, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    schema.register()
    draw = random.Random(seed)
    plans: list[tuple[str, float] | None] = [
        (WRITES[i % len(WRITES)], draw.randint(1, 3))
        if i % 2
        else ("time", draw.uniform(0.05, 2.5))
        for i in range(kills)
    ]
    history = []
    for plan in [*plans, None]:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                attempt(config, plan)
                code = 0
            finally:
                os._exit(code)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        history.append({"plan": plan, "status": status})
        assert status in (0, -signal.SIGKILL), history
    Path(out).write_text(json.dumps(history))


if __name__ == "__main__":
    main()
