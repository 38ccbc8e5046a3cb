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
