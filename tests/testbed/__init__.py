"""A real Kubernetes cluster on one machine, for tests and the demo, that is thrown away without a trace.

    python -m tests.testbed up        and down, status, env, exec, proxy, …: `__main__.py`
    Cluster("name").up()              the same for tests: `cluster.py`

From the outside in: a cluster has a control plane, a registry behind a proxy, and nodes; each of these is a `sandbox`
of daemons (`processes`) that dies with one init; names, addresses and paths are decided in `layout`.
"""
