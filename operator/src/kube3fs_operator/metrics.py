"""What /metrics shows."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

RECONCILES = Counter(
    "kube3fs_operator_reconciles", "Reconciles by kind and result.", ["kind", "result"], registry=REGISTRY
)
DURATION = Histogram(
    "kube3fs_operator_reconcile_duration_seconds",
    "Time of one reconcile.",
    ["kind"],
    buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30),
    registry=REGISTRY,
)
WRITES = Counter("kube3fs_operator_writes", "Writes to the API server by step.", ["step"], registry=REGISTRY)
QUEUE_AGE = Gauge(
    "kube3fs_operator_queue_age_seconds", "Time that the oldest waiting key has waited.", registry=REGISTRY
)
LEADER = Gauge("kube3fs_operator_leader", "1 while this replica leads.", registry=REGISTRY)
CLUSTERS_READY = Gauge(
    "kube3fs_cluster_ready", "1 while the cluster is ready.", ["namespace", "name"], registry=REGISTRY
)
CLUSTER_BYTES = Gauge(
    "kube3fs_cluster_bytes",
    "Capacity, free and allocated bytes of a cluster.",
    ["namespace", "name", "what"],
    registry=REGISTRY,
)
CLUSTER_UNCLAIMED = Gauge(
    "kube3fs_cluster_unclaimed",
    "Volumes and snapshots, 10 minutes old, that no PersistentVolume or VolumeSnapshotContent refers to.",
    ["namespace", "name", "what"],
    registry=REGISTRY,
)
CLUSTER_NODES = Gauge(
    "kube3fs_cluster_nodes",
    "Nodes of a cluster: total, ready.",
    ["namespace", "name", "what"],
    registry=REGISTRY,
)
