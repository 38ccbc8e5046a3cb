{{/* What is checked of a pod, and of every template of pods: (dict "root" $ "pod" EXPRESSION), where the CEL expression has
     metadata and spec of the pod. */}}

{{/* A quantity that can be compared: the API server takes minutes and gigabytes to compare 1e99999999. As kube3fs_crds.quantity. */}}
{{- define "kube3fs.admission.quantity" -}}
'^[+]?([0-9]{1,19}([.][0-9]{0,9})?|[.][0-9]{1,9})([KMGTPE]i|[mkMGTPE]|[eE][+-]?[0-9]{1,2})?$'
{{- end }}

{{/* What is refused: variables and validations. */}}
{{- define "kube3fs.admission.refusals" -}}
{{- $default := .root.Values.injection.defaultShmSize -}}
variables:
  - name: pod
    expression: {{ .pod | quote }}
  - name: inject
    expression: "variables.pod.?metadata.?labels[?'kube3fs.io/inject'].orValue('')"
  - name: annotations
    expression: "variables.pod.?metadata.?annotations.orValue({})"
  - name: size
    expression: "variables.annotations[?'kube3fs.io/shm-size'].orValue('{{ $default }}')"
  - name: isSize
    expression: "variables.size.matches({{ include "kube3fs.admission.quantity" . }}) && isQuantity(variables.size)"
  - name: named
    expression: "variables.annotations[?'kube3fs.io/containers'].orValue('').split(',').map(n, n.trim())"
  - name: names
    expression: "variables.pod.spec.containers.map(c, c.name) + variables.pod.spec.?initContainers.orValue([]).map(c, c.name)"
  - name: strangers
    expression: "variables.named.filter(n, !(n in variables.names))"
  # Volumes of ours that are there already, from a template that was copied from a running pod.
  - name: shm
    expression: >-
      variables.pod.spec.?volumes.orValue([]).filter(v,
        v.name == 'kube3fs-shm' && v.?csi.driver.orValue('') == 'csi.kube3fs.io')
  - name: shmSize
    expression: >-
      size(variables.shm) == 0 ? variables.size :
        variables.shm[0].csi.?volumeAttributes[?'csi.kube3fs.io/size'].orValue('')
  - name: client
    expression: >-
      variables.pod.spec.?volumes.orValue([]).filter(v,
        v.name == 'kube3fs-client' && v.?csi.driver.orValue('') == 'csi.kube3fs.io')
validations:
  - expression: "variables.inject in ['true', 'false']"
    messageExpression: >-
      'label kube3fs.io/inject: "' + variables.inject + '" means nothing; write "true" to have
      /dev/shm and /opt/usrbio added to the pod, or remove the label'
  - expression: "variables.isSize"
    messageExpression: >-
      'annotation kube3fs.io/shm-size: "' + variables.size + '" is not a quantity; write for example "8Gi"'
  - expression: "variables.isSize ? !quantity(variables.size).isLessThan(quantity('1Mi')) : true"
    messageExpression: >-
      'annotation kube3fs.io/shm-size: "' + variables.size + '" is too small; write at least "1Mi"'
  - expression: "variables.annotations[?'kube3fs.io/rdma'].orValue('true') in ['true', 'false']"
    messageExpression: >-
      'annotation kube3fs.io/rdma: "' + variables.annotations['kube3fs.io/rdma'] + '" means nothing; write "true" to ask
      for an RDMA device, or remove the annotation'
  - expression: "!('kube3fs.io/containers' in variables.annotations) || size(variables.strangers) == 0"
    messageExpression: >-
      'annotation kube3fs.io/containers: the pod has no container "' + variables.strangers.join('", "') + '"; write
      names out of ' + variables.names.join(', ') + ', separated by commas, or remove the annotation to mean all'
  - expression: >-
      variables.pod.spec.?volumes.orValue([]).all(v, !(v.name in ['kube3fs-shm', 'kube3fs-client']) ||
        v.?csi.driver.orValue('') == 'csi.kube3fs.io')
    message: >-
      the volume names kube3fs-shm and kube3fs-client are taken for what is added to the pod; give your own volumes
      other names
  - expression: >-
      variables.inject != 'true' || variables.shm.all(v, !v.csi.?readOnly.orValue(false) &&
        v.csi.?volumeAttributes[?'csi.kube3fs.io/kind'].orValue('') == 'shm')
    message: >-
      the volume kube3fs-shm is not what is added to the pod, shared memory that can be written; remove it with its
      mounts, and it is added anew
  - expression: >-
      variables.inject != 'true' || variables.client.all(v, v.csi.?readOnly.orValue(false) &&
        v.csi.?volumeAttributes[?'csi.kube3fs.io/kind'].orValue('') == 'client')
    message: >-
      the volume kube3fs-client is not what is added to the pod, the read-only client library; remove it with its
      mounts, and it is added anew
  - expression: >-
      variables.inject != 'true' || !variables.isSize ? true :
        variables.shmSize.matches({{ include "kube3fs.admission.quantity" . }}) && isQuantity(variables.shmSize) ?
          quantity(variables.shmSize).compareTo(quantity(variables.size)) == 0 : false
    messageExpression: >-
      'the volume kube3fs-shm has the size "' + variables.shmSize + '", and "' + variables.size + '" is asked for by ' +
      ('kube3fs.io/shm-size' in variables.annotations ? 'the annotation kube3fs.io/shm-size' : 'default') +
      '; remove the volume with its mounts, and it is added anew, or make both the same'
{{- end }}

{{/* What is no mistake but may surprise. */}}
{{- define "kube3fs.admission.surprises" -}}
variables:
  - name: pod
    expression: {{ .pod | quote }}
  - name: annotations
    expression: "variables.pod.?metadata.?annotations.orValue({})"
  - name: size
    expression: "variables.annotations[?'kube3fs.io/shm-size'].orValue('{{ .root.Values.injection.defaultShmSize }}')"
  - name: named
    expression: "variables.annotations[?'kube3fs.io/containers'].orValue('').split(',').map(n, n.trim())"
  - name: chosen
    expression: >-
      (variables.pod.spec.containers + variables.pod.spec.?initContainers.orValue([])).filter(c,
        !('kube3fs.io/containers' in variables.annotations) || c.name in variables.named)
  - name: ownShm
    expression: >-
      variables.chosen.filter(c, c.?volumeMounts.orValue([]).exists(m,
        m.mountPath in ['/dev/shm', '/dev/shm/'] && m.name != 'kube3fs-shm')).map(c, c.name)
  - name: ownClient
    expression: >-
      variables.chosen.filter(c, c.?volumeMounts.orValue([]).exists(m,
        m.mountPath in ['/opt/usrbio', '/opt/usrbio/'] && m.name != 'kube3fs-client')).map(c, c.name)
  - name: small
    expression: >-
      !variables.size.matches({{ include "kube3fs.admission.quantity" . }}) || !isQuantity(variables.size) ? [] :
        variables.chosen.filter(c, c.?resources.?limits[?'memory'].hasValue() &&
          string(c.resources.limits['memory']).matches({{ include "kube3fs.admission.quantity" . }}) &&
          isQuantity(string(c.resources.limits['memory'])) ?
            quantity(string(c.resources.limits['memory'])).isLessThan(quantity(variables.size)) : false
        ).map(c, c.name)
validations:
  - expression: "size(variables.ownShm) == 0"
    messageExpression: >-
      'kube3fs.io/inject does nothing here: container ' + variables.ownShm.join(', ') + ' mounts its own /dev/shm, which
      usrbiod cannot see; remove that mount, or name the other containers in the annotation kube3fs.io/containers'
  - expression: "size(variables.ownClient) == 0 || size(variables.ownShm) > 0"
    messageExpression: >-
      'container ' + variables.ownClient.join(', ') + ' mounts its own /opt/usrbio and does not get the client library
      of this cluster'
  - expression: "size(variables.small) == 0 || size(variables.ownShm) > 0"
    messageExpression: >-
      'container ' + variables.small.join(', ') + ' has a memory limit below the ' + variables.size + ' of /dev/shm,
      which counts as its memory: it is killed when it fills /dev/shm; raise the limit, or lower the annotation
      kube3fs.io/shm-size'
{{- end }}

{{/* Metadata of a policy: (dict "root" $ "name" NAME "component" COMPONENT); component defaults to injection. */}}
{{- define "kube3fs.admission.metadata" -}}
metadata:
  name: {{ .name }}
  labels:
    {{- include "kube3fs.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .component | default "injection" }}
{{- end }}

{{/* The binding of a policy, for the same and "action". */}}
{{- define "kube3fs.admission.binding" -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
{{ include "kube3fs.admission.metadata" . }}
spec:
  policyName: {{ .name }}
  validationActions: [{{ .action }}]
{{- end }}
