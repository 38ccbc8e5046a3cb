{{/* Name of everything in this release: the release's name, which may carry the chart's. */}}
{{- define "kube3fs.fullname" -}}
{{- if contains "kube3fs" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-kube3fs" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* Labels of every object. */}}
{{- define "kube3fs.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: kube3fs
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: kube3fs
{{- end }}

{{/* Labels that select a component's pods: (dict "root" $ "component" "operator"). */}}
{{- define "kube3fs.selector" -}}
app.kubernetes.io/name: kube3fs
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* An image by digest or tag: (dict "root" $ "image" .Values.operator.image). */}}
{{- define "kube3fs.image" -}}
{{- $image := .image -}}
{{- if $image.digest }}{{ printf "%s@%s" $image.repository $image.digest }}
{{- else }}{{ printf "%s:%s" $image.repository ($image.tag | default .root.Chart.AppVersion) }}{{ end }}
{{- end }}

{{/* Not empty when pods are injected: wanted, and the cluster can do it without a webhook. */}}
{{- define "kube3fs.injection" -}}
{{- if and .Values.injection.enabled (.Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy") }}yes{{ end }}
{{- end }}

{{/* What every unprivileged container of ours may do: nothing. */}}
{{- define "kube3fs.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* The spec of a pod that runs one program of the operator's image and ends:
     (dict "root" $ "account" NAME "module" PYTHON_MODULE). */}}
{{- define "kube3fs.oneShotPod" -}}
serviceAccountName: {{ .account }}
restartPolicy: Never
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  seccompProfile: {type: RuntimeDefault}
{{- with .root.Values.operator.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
containers:
  - name: main
    image: {{ include "kube3fs.image" (dict "root" .root "image" .root.Values.operator.image) }}
    imagePullPolicy: {{ .root.Values.operator.image.pullPolicy }}
    command: [python3, -m, {{ .module }}]
    env:
      - name: KUBE3FS_NAMESPACE
        valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
    resources:
      requests: {cpu: 20m, memory: 64Mi}
      limits: {memory: 256Mi}
    securityContext:
      {{- include "kube3fs.restricted" .root | nindent 6 }}
{{- end }}
