"""Where a job runs: the `distillery` command, run folders, and the places jobs are started in."""
