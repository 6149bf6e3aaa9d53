{{/* A Service's name has no dot and begins with a letter; a release's may. */}}
{{- define "manylora.fullname" -}}
{{- $name := .Values.fullnameOverride | default .Release.Name | replace "." "-" -}}
{{- if regexMatch "^[0-9]" $name -}}
{{- $name = printf "manylora-%s" $name -}}
{{- end -}}
{{- $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "manylora.selector" -}}
app.kubernetes.io/name: manylora
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: server
{{- end -}}

{{- define "manylora.workers" -}}
app.kubernetes.io/name: manylora
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: worker
{{- end -}}

{{- define "manylora.labels" -}}
app.kubernetes.io/name: manylora
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
{{- end -}}

{{/* The claim of the data volume. */}}
{{- define "manylora.claim" -}}
{{- .Values.persistence.existingClaim | default (include "manylora.fullname" .) -}}
{{- end -}}

{{/* One variable from the Secret. Takes name, secret, key and optional. */}}
{{- define "manylora.fromSecret" -}}
- name: {{ .name }}
  valueFrom:
    secretKeyRef:
      name: {{ .secret | quote }}
      key: {{ .key | quote }}
      {{- if .optional }}
      optional: true
      {{- end }}
{{- end -}}

{{/* What only some servers have, for files in an object store and the Hub. */}}
{{- define "manylora.storage" -}}
{{- $secret := .Values.secret -}}
{{- $variables := list -}}
{{- range $variable, $key := dict
  "MANYLORA_FILES_URL" $secret.optionalKeys.filesUrl
  "AWS_ACCESS_KEY_ID" $secret.optionalKeys.awsAccessKeyId
  "AWS_SECRET_ACCESS_KEY" $secret.optionalKeys.awsSecretAccessKey
  "AWS_ENDPOINT_URL" $secret.optionalKeys.awsEndpointUrl
  "HF_TOKEN" $secret.optionalKeys.hfToken -}}
{{- if $key -}}
{{- $entry := dict "name" $variable "secret" $secret.name "key" $key "optional" true -}}
{{- $variables = append $variables (include "manylora.fromSecret" $entry) -}}
{{- end -}}
{{- end -}}
{{- join "\n" $variables -}}
{{- end -}}

{{- define "manylora.image" -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}

{{- define "manylora.podRules" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "manylora.containerRules" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
capabilities:
  drop:
    - ALL
{{- end -}}

{{- define "manylora.placement" -}}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $tolerations := .Values.tolerations }}
{{- if .Values.gpus }}
{{- $tolerations = append $tolerations (dict "key" "nvidia.com/gpu" "operator" "Exists" "effect" "NoSchedule") }}
{{- end }}
{{- with $tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* What can't work is refused here, where a reason can be given. */}}
{{- define "manylora.check" -}}
{{- if gt (int .Values.replicaCount) 1 -}}
{{- if not .Values.secret.keys.registryUrl -}}
{{- fail "replicaCount: several servers need one registry: name the key of its URL in secret.keys.registryUrl" -}}
{{- end -}}
{{- if eq .Values.persistence.accessMode "ReadWriteOnce" -}}
{{- fail "replicaCount: several servers need one data volume: persistence.accessMode must be ReadWriteMany" -}}
{{- end -}}
{{- end -}}
{{- if and (eq .Values.training.mode "external") (or (not .Values.secret.keys.registryUrl) (eq .Values.persistence.accessMode "ReadWriteOnce")) -}}
{{- fail "training.mode: workers and servers need one registry (secret.keys.registryUrl) and one data volume (ReadWriteMany)" -}}
{{- end -}}
{{- if and .Values.secret.keys.adminApiKey (not .Values.secret.keys.apiKey) -}}
{{- fail "secret.keys.adminApiKey: without apiKey requests need no key" -}}
{{- end -}}
{{- if and .Values.metrics.podMonitor.enabled .Values.secret.keys.apiKey (not .Values.metrics.podMonitor.key) -}}
{{- fail "metrics.podMonitor.key: /metrics needs a key" -}}
{{- end -}}
{{- end -}}
