"""torchrun, but a failed rank is told in one line: `python -m launcher.torchrun`, with its arguments.

The exit code is 2 where the first rank to fail refused to run, which it has told itself; otherwise 1.
"""

from __future__ import annotations

import logging
import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

REFUSED = 2

if __name__ == "__main__":
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it would tell the same
    try:
        main()
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        if failure.exitcode == REFUSED:
            sys.exit(REFUSED)
        how = failure.signal_name() if failure.exitcode < 0 else f"exit code {failure.exitcode}"
        print(f"distillery: error: rank {number} (process {failure.pid}) ended: {how}", file=sys.stderr)
        sys.exit(1)
