{{- /* llmfleet-controllers.operatorName: name of the operator's objects in its namespace. Takes: the root. */}}
{{- define "llmfleet-controllers.operatorName" -}}
{{- include "llmfleet.name" (dict "root" . "parts" (list "operator")) -}}
{{- end }}

{{- /* llmfleet-controllers.clusterName: name of the operator's cluster-scoped objects: two releases share the cluster. Takes: the root. */}}
{{- define "llmfleet-controllers.clusterName" -}}
{{- printf "%s-%s" (include "llmfleet.namespace" .) (include "llmfleet-controllers.operatorName" .) -}}
{{- end }}

{{- /* llmfleet-controllers.serviceAccount: the account the operator runs as. Takes: the root. */}}
{{- define "llmfleet-controllers.serviceAccount" -}}
{{- .Values.operator.serviceAccount.name | default (include "llmfleet-controllers.operatorName" .) -}}
{{- end }}
