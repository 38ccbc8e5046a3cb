#!/usr/bin/env bash
# What `make demo` shows: a pod that may do nothing special, on our image, asks the API server for its own name.
set -euo pipefail
step() { printf '\n\033[1m%s\033[0m\n' "$*"; }

step 'A Kubernetes of your own:'
kubectl get nodes -o wide

step 'A namespace under the restricted Pod Security level, and a pod in it:'
kubectl apply -f - <<'YAML'
apiVersion: v1
kind: Namespace
metadata:
  name: demo
  labels: {pod-security.kubernetes.io/enforce: restricted}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader, namespace: demo}
rules: [{apiGroups: [""], resources: [pods], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader, namespace: demo}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects: [{kind: ServiceAccount, name: default}]
YAML
image=$(kubectl get node node-1 -o json | grep -o '"ghcr.io/kube3fs/client:[^"]*"' | head -n 1 | tr -d '"')
kubectl apply -f - <<YAML
apiVersion: v1
kind: Pod
metadata: {name: hello, namespace: demo}
spec:
  restartPolicy: Never
  securityContext: {runAsNonRoot: true, runAsUser: 1000, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: main
      image: $image
      securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
      command:
        - python3
        - -c
        - |
          import json, os, ssl, urllib.request
          own = "/var/run/secrets/kubernetes.io/serviceaccount/"
          request = urllib.request.Request(
              "https://kubernetes.default.svc/api/v1/namespaces/demo/pods/hello",
              headers={"Authorization": "Bearer " + open(own + "token").read()},
          )
          tls = ssl.create_default_context(cafile=own + "ca.crt")
          pod = json.load(urllib.request.urlopen(request, context=tls))
          print(f"I am {pod['metadata']['name']} on {pod['spec']['nodeName']}, uid {os.getuid()}.")
          print("/opt/usrbio has", *sorted(os.listdir("/opt/usrbio")))
YAML
kubectl -n demo wait --for=jsonpath='{.status.phase}'=Succeeded pod/hello --timeout=60s

step 'What it says:'
kubectl -n demo logs hello
