"""The workloads by name; each is a module with `cases(setup) -> list[Case]`."""

WORKLOADS = {"store": "bench.workloads.store"}
"""Workload -> its module, imported only when it is asked for."""
