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

{{- /* llmfleet-controllers.uninstallName: name of the clean-up's objects in one namespace. Takes: the root. */}}
{{- define "llmfleet-controllers.uninstallName" -}}
{{- include "llmfleet.name" (dict "root" . "parts" (list "operator" "uninstall")) -}}
{{- end }}

{{- /* llmfleet-controllers.uninstallMetadata: labels and hook annotations of the clean-up's objects. Takes: root, weight. */}}
{{- define "llmfleet-controllers.uninstallMetadata" -}}
labels:
  {{- include "llmfleet.labels" (dict "root" .root "component" "uninstall") | nindent 2 }}
annotations:
  helm.sh/hook: post-delete
  helm.sh/hook-weight: {{ .weight | quote }}
  helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded,hook-failed
{{- end }}

{{- /* llmfleet-controllers.uninstallRules: finding what the operator held, and taking its finalizer off. */}}
{{- define "llmfleet-controllers.uninstallRules" -}}
- apiGroups: [serving.ai]
  resources: [llmclusters]
  verbs: [list, patch]
{{- end }}

{{- /* llmfleet-controllers.autoscalerName: name of the autoscaler's objects in its namespace. Takes: the root. */}}
{{- define "llmfleet-controllers.autoscalerName" -}}
{{- include "llmfleet.name" (dict "root" . "parts" (list "autoscaler")) -}}
{{- end }}

{{- /* llmfleet-controllers.autoscalerClusterName: name of the autoscaler's cluster-scoped objects. Takes: the root. */}}
{{- define "llmfleet-controllers.autoscalerClusterName" -}}
{{- printf "%s-%s" (include "llmfleet.namespace" .) (include "llmfleet-controllers.autoscalerName" .) -}}
{{- end }}

{{- /* llmfleet-controllers.autoscalerServiceAccount: the account the autoscaler runs as. Takes: the root. */}}
{{- define "llmfleet-controllers.autoscalerServiceAccount" -}}
{{- .Values.autoscaler.serviceAccount.name | default (include "llmfleet-controllers.autoscalerName" .) -}}
{{- end }}

{{- /*
llmfleet-controllers.egress: with networkPolicy.defaultDeny, what a controller calls: a resolver, the apiserver, and
engines and the admin port of routers, in whatever namespace they are. Takes: the root.
*/}}
{{- define "llmfleet-controllers.egress" -}}
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
- ports:
    {{- range .Values.networkPolicy.egress.apiserverPorts }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
  {{- with .Values.networkPolicy.egress.apiserverTo }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
- to:
    - namespaceSelector: {}
      podSelector:
        matchLabels: {app.kubernetes.io/component: engine}
- to:
    - namespaceSelector: {}
      podSelector:
        matchLabels: {app.kubernetes.io/component: router}
  ports:
    - {port: 9090, protocol: TCP}
{{- end }}
