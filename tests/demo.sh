#!/usr/bin/env bash
# What `make demo` runs in its Kubernetes: install, claim, train, compare, kill. Each step says how long it took.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

system=kube3fs-system
names=() times=()
if [[ -t 1 ]]; then bold=$'\033[1m' plain=$'\033[0m'; else bold='' plain=''; fi

say() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }

# step NAME COMMAND...: runs the command and remembers its time. Its output shows only when it fails.
step() {
    local name=$1 began=${EPOCHREALTIME/./} log
    shift
    if ! log=$("$@" 2>&1); then
        printf '%s\n\nThe demo ends here: %s failed.\n' "$log" "$name" >&2
        exit 1
    fi
    names+=("$name") times+=($((${EPOCHREALTIME/./} - began)))
    printf '  %-50s %6s s\n' "$name" "$((times[-1] / 1000000)).$((times[-1] / 100000 % 10))"
}

in_pod() { kubectl exec --quiet -n training trainer -- python3 "$@"; }

install() {
    kubectl create namespace $system
    kubectl label namespace $system pod-security.kubernetes.io/enforce=privileged
    helm install kube3fs charts/kube3fs --namespace $system --wait --timeout 3m
}

cluster() {
    kubectl apply -f docs/examples/storagecluster.yaml
    kubectl wait --for=condition=Ready storagecluster/demo --timeout=60s
}

pod() {
    kubectl create namespace training
    kubectl label namespace training pod-security.kubernetes.io/enforce=restricted
    kubectl apply --namespace training -f docs/examples/claim.yaml -f docs/examples/demo/trainer.yaml
    kubectl wait --namespace training --for=condition=Ready pod/trainer --timeout=90s
}

say 'Setting up'
step 'helm install kube3fs' install
step 'kubectl apply -f storagecluster.yaml, until Ready' cluster
step 'a claim and a pod in a restricted namespace' pod
kubectl get storageclusters,storagenodes,storagevolumes --all-namespaces

say 'Training on a real data set, its records read through a ring'
in_pod /opt/demo/train.py /data

say 'The same reads three ways'
in_pod /opt/demo/compare.py /data /plain-fuse

say 'kill -9 of the node daemon while the pod reads'
exec 3< <(in_pod /opt/demo/steady.py /data 6)
read -r -u 3 line
kubectl exec --quiet -n $system daemonset/kube3fs-csi-node -c csi-node -- sh -c '
for process in /proc/[0-9]*; do
    if [ "$(cat $process/comm 2>/dev/null)" = usrbiod ]; then
        kill -9 ${process#/proc/} && echo "killed usrbiod, pid ${process#/proc/}"
    fi
done'
cat <&3
kubectl get pods -n $system -l app.kubernetes.io/component=csi-node
kubectl get pods -n training

say 'Look around'
cat <<'TEXT'
  python3 -m tests.cluster shell --name demo            a shell with this Kubernetes' kubectl and helm
  kubectl get kube3fs -A                                clusters, nodes, volumes
  kubectl describe storagecluster demo                  conditions say what is wrong and what to do
  kubectl exec -it -n training trainer -- python3       the pod: uid 1000, nothing privileged
  make demo-down                                        ends it
TEXT
