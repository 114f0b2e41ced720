"""Speed and memory beside the peers: one file per workload, run in turn with theirs."""
