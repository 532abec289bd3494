"""The workloads by name; each is a module with `cases(setup) -> list[Case]`."""

WORKLOADS = {
    "decode": "bench.workloads.decode",
    "journal": "bench.workloads.journal",
    "paper": "bench.workloads.paper",
    "scale": "bench.workloads.scale",
    "store": "bench.workloads.store",
    "tables": "bench.workloads.tables",
}
"""Workload -> its module, imported only when it is asked for."""
