"""Named workloads, the peers side by side, one command: `python -m bench <workload>`.

Run from the root of the repository; needs the extra `bench` and, for two peers, torch.
"""
