"""Make ``docs/reliability.md`` from the record of a run of the fault suite: ``python tests/faults/page.py``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]
RESULTS = HERE / "results.jsonl"
PAGE = PROJECT / "docs" / "reliability.md"

PROMISES = """\
# Reliability

What diffats promises when something breaks, and what was broken to show it. This page is made by the fault suite
(`make test-faults`) from what it tried; nothing in the table is written by hand.

## What is promised

- **Committed work stays, and the same command does the rest.** A stage that was killed, that ran out of disk, or whose
  workers or servers went away leaves what it had committed. Run again, it computes only what is missing, and stores,
  checkpoints and generated samples are equal bit for bit to those of a run that nothing disturbed, on the same machine.
  No sample is lost, stored twice or half written.
- **A crash loses little:** the shards of the last ten seconds (in runs longer than a quarter of an hour, of the last
  hundredth), and the training steps since the last checkpoint (`train.checkpoint_every`).
- **SIGTERM and Ctrl-C stop it cleanly**, within ten seconds: training writes a checkpoint first (at the end of its
  step), shards that are done are committed, workers are stopped, MLflow and Prefect are told. The exit code is 143
  after SIGTERM and 130 after Ctrl-C. A second signal acts at once. A process that is asked before it has begun, while
  Python starts, ends as the system does it (one of some hundred crashed then); nothing is lost by that. A signal in the
  midst of an import waits for its end, since libraries drop what comes there, or crash.
- **One writer a root.** A second run on the same root is refused with the process that is at work and since when. The
  lock is the system's: it is free as soon as its owner is dead, however it died. On object storage, which has no
  locks, the second of two commits is refused.
- **MLflow and Prefect are told, not obeyed.** While a server is away the stages go on. Metrics wait in memory and are
  delivered when MLflow is back, or their loss is said at the end. A Prefect server that stays away ends the command
  with exit code 1 after its last stage. A flow run that was killed stays "Running" in Prefect until the next flow run
  on the same root, which marks it as crashed.
- **Damage is noticed.** `diffats verify` reads everything back: each shard, commit and manifest of the stores, their
  tags, each checkpoint, each model, and every sample of the source, whose digests are stored with what was made of it.
  It names the shard, file or sample that is not what it was, also where a byte changed under the same time. Training
  goes on from the newest checkpoint that is whole, and says which one was not; a damaged model is refused. Any other
  command that meets damage ends with a message that says where.
- **Clocks do not matter**: neither jumps nor time zones change what is computed or found.

Bad data and bad recipes have a page of their own kind: `tests/bad_inputs.py` lists each input with what comes of it.

## What was tried
"""


def page(lines: Iterable[str]) -> str:
    """The page as Markdown."""
    first, *faults = [json.loads(line) for line in lines if line.strip()]
    rows = [f"| {each['kind']} | {each['where']} | {each['count']} | {each['outcome']} |" for each in merged(faults)]
    seeds = sorted({each["seed"] for each in faults if each["seed"] is not None})
    total = sum(each["count"] for each in faults)
    kills = sum(each["count"] for each in faults if "random moment" in each["kind"])
    foot = [
        f"{total} faults in all, {kills} of them kills at a random moment of a running stage. Random moments and "
        f"places come from the seeds {', '.join(map(str, seeds))}; `DIFFATS_FAULTS_SEED` sets the first.",
        f"{first['machine']}; {first['date']}.",
    ]
    table = ["| Fault | Where | Times | Outcome |", "|---|---|---:|---|", *rows]
    return "\n".join([PROMISES, *table, "", *foot, ""])


def merged(faults: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each kind, place and outcome, in the order of the first."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for each in faults:
        key = (each["kind"], each["where"], each["outcome"])
        if key in found:
            found[key]["count"] += each["count"]
        else:
            found[key] = dict(each)
    return [each for each in found.values() if each["count"]]


def main() -> None:
    """Begin a record (``--begin FILE``), or write the page."""
    if sys.argv[1:2] == ["--begin"]:
        from benchmarks.common import machine

        facts = machine()
        words = f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB, Python {facts['python']}"
        Path(sys.argv[2]).write_text(json.dumps({"machine": words, "date": facts["date"]}) + "\n", encoding="utf-8")
    else:
        PAGE.write_text(page(RESULTS.read_text(encoding="utf-8").splitlines()), encoding="utf-8")


if __name__ == "__main__":
    main()
