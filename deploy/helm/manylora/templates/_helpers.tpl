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
{{- if and .Values.secret.keys.adminApiKey (not .Values.secret.keys.apiKey) -}}
{{- fail "secret.keys.adminApiKey: without apiKey requests need no key" -}}
{{- end -}}
{{- if and .Values.metrics.podMonitor.enabled .Values.secret.keys.apiKey (not .Values.metrics.podMonitor.key) -}}
{{- fail "metrics.podMonitor.key: /metrics needs a key" -}}
{{- end -}}
{{- end -}}
