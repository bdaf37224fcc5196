"""A worker without torch for the contract suite: a run id tells it what to do."""

import json
import os
import signal
import sys
import time
from pathlib import Path

study = Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
for line in sys.stdin:
    run_id = line.strip()
    request = json.loads((study / "runs" / run_id / "request.json").read_text())
    trial = request["run"]["trial"]
    if trial == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    if trial == 14:
        Path(sys.argv[sys.argv.index("--last-words") + 1]).write_text("the disk is full\n")
        sys.exit(3)
    if trial == 99:
        time.sleep(60)
    with (study / "started.txt").open("a") as started:
        started.write(run_id + "\n")
    target = study / "runs" / run_id / "result.json"
    temporary = target.with_name(".result")
    temporary.write_text(json.dumps({"run_id": run_id, "state": "complete", "loss": 0.5}))
    temporary.replace(target)
    if trial == 66:
        time.sleep(0.3)  # in which the next id comes
        sys.exit(66)
