"""Simulate for longer than the tests do, or replay one schedule.

python -m tests.simulation                     # every small log, then random ones for --seconds
python -m tests.simulation 12345               # the schedule of one seed, and what it did
python -m tests.simulation 12345 --planted "no memory of event ids"
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections import Counter

from tqdm import tqdm

from tests.simulation.exhaustive import check, erasing_logs, small_logs
from tests.simulation.planted import PLANTED, simulate


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("seed", type=int, nargs="?", help="replay this random schedule alone")
    parser.add_argument("--planted", choices=list(PLANTED), help="with a fault planted into the consumer")
    parser.add_argument("--seconds", type=float, default=300, help="how long to run random schedules (default 300)")
    parser.add_argument("--from", dest="first", type=int, default=0, help="first seed of the random ones (default 0)")
    given = parser.parse_args()
    if given.seed is not None:
        world, wrong = simulate(given.seed, given.planted)
        shards = [(shard.shard_id, len(shard.records)) for shard in world.shards]
        print(f"shards and records {shards}\nfaults {dict(world.dynamo.faults)}\n{world.ledger}")
        print("\n".join(wrong) or "the tables equal the fold of the log")
        return bool(wrong)
    logs = [log for size in (1, 2, 3) for log in small_logs(size) + erasing_logs(size)]
    ran, injected, all_wrong = 0, Counter[str](), []
    for log in tqdm(logs, desc="small logs", unit="log", disable=None):
        more, faults, wrong = check([log])
        ran, injected, all_wrong = ran + more, injected + faults, all_wrong + wrong
    print(f"{ran:,} schedules of {len(logs)} small logs, {injected.total():,} faults, {len(all_wrong)} wrong")
    until = time.monotonic() + given.seconds
    ran, injected = 0, Counter()
    with tqdm(desc="random schedules", unit="schedule", disable=None) as bar:
        for seed in itertools.count(given.first):
            if time.monotonic() > until:
                break
            world, wrong = simulate(seed)
            ran, injected = ran + 1, injected + world.dynamo.faults
            bar.update()
            if wrong:
                all_wrong.append(f"seed {seed}: {wrong}")
    print(f"{ran:,} random schedules, faults {dict(injected)}, {len(all_wrong)} wrong in all")
    print("\n".join(all_wrong[:20]))
    return bool(all_wrong)


if __name__ == "__main__":
    sys.exit(main())
