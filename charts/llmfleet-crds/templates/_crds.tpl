{{- /* llmfleet-crds.upgradeName: name of the upgrade's objects in its namespace. Takes: the root. */}}
{{- define "llmfleet-crds.upgradeName" -}}
{{- include "llmfleet.name" (dict "root" . "parts" (list "crds" "upgrade")) -}}
{{- end }}

{{- /* llmfleet-crds.clusterName: name of its cluster-scoped objects. Takes: the root. */}}
{{- define "llmfleet-crds.clusterName" -}}
{{- printf "%s-%s" (include "llmfleet.namespace" .) (include "llmfleet-crds.upgradeName" .) -}}
{{- end }}

{{- /* llmfleet-crds.metadata: labels and hook annotations of the upgrade's objects. Takes: root, weight. */}}
{{- define "llmfleet-crds.metadata" -}}
labels:
  {{- include "llmfleet.labels" (dict "root" .root "component" "crds") | nindent 2 }}
annotations:
  helm.sh/hook: pre-upgrade
  helm.sh/hook-weight: {{ .weight | quote }}
  helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}
