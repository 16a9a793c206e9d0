{{- define "relay.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 52 characters: the StatefulSet's pods carry it with a hash in a label of at most 63, and jobs add to it. */}}
{{- define "relay.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $full .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "relay.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "relay.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "relay.selector" -}}
app.kubernetes.io/name: {{ include "relay.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: relay
{{- end -}}

{{/* Takes a list: the root, a component, further labels. The component `relay` alone is selected by Service, budget, spread and policy. */}}
{{- define "relay.labels" -}}
{{- $root := index . 0 -}}
{{- $own := dict
  "app.kubernetes.io/name" (include "relay.name" $root)
  "app.kubernetes.io/instance" $root.Release.Name
  "app.kubernetes.io/component" (index . 1)
  "app.kubernetes.io/version" ($root.Values.image.tag | default $root.Chart.AppVersion | trunc 63 | toString)
  "app.kubernetes.io/managed-by" $root.Release.Service
  "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63)
-}}
{{- mergeOverwrite (dict) $root.Values.commonLabels (index . 2 | default dict) $own | toYaml -}}
{{- end -}}

{{/* Labels of pods: nothing that changes with the chart alone, or each new chart would replace all pods. As relay.labels. */}}
{{- define "relay.podLabels" -}}
{{- $root := index . 0 -}}
{{- mergeOverwrite (dict) $root.Values.commonLabels $root.Values.podLabels (include "relay.selector" $root | fromYaml) (dict "app.kubernetes.io/component" (index . 1)) | toYaml -}}
{{- end -}}

{{/* `metadata` of an object but its name. Takes a list: the root, a component, labels, annotations. */}}
{{- define "relay.metadata" -}}
{{- $root := index . 0 -}}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- include "relay.labels" (list $root (index . 1) (index . 2)) | nindent 2 }}
{{- with mergeOverwrite (dict) $root.Values.commonAnnotations (index . 3 | default dict) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "relay.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}
