{{- /*
llmfleet-monitoring.ports: the port each component serves /metrics on. Pods and not Services are scraped: each router
counts for itself, and its admin port is in no Service but the headless one beside the clients'.
*/}}
{{- define "llmfleet-monitoring.ports" -}}
{router: admin, operator: metrics, autoscaler: metrics, engine: http}
{{- end }}

{{- /*
llmfleet-monitoring.relabelings: what the rules and dashboards join by, as a target's labels, in a PodMonitor's shape.
Of an engine's ranks only rank 0 serves, so no other is a target.
Takes: component.
*/}}
{{- define "llmfleet-monitoring.relabelings" -}}
- {targetLabel: component, replacement: {{ .component }}}
{{- if eq .component "engine" }}
- {sourceLabels: [__meta_kubernetes_pod_label_apps_kubernetes_io_pod_index], regex: "0", action: keep}
- {sourceLabels: [__meta_kubernetes_pod_label_serving_ai_cluster], targetLabel: llmcluster}
- {sourceLabels: [__meta_kubernetes_pod_label_serving_ai_role], targetLabel: role}
- {sourceLabels: [__meta_kubernetes_pod_label_serving_ai_fleet], targetLabel: fleet}
{{- else }}
- {sourceLabels: [__meta_kubernetes_pod_label_app_kubernetes_io_instance], targetLabel: release}
{{- end }}
{{- end }}

{{- /* llmfleet-monitoring.metricRelabelings: samples that end in _created say nothing and are a seventh of an engine's. Takes: component. */}}
{{- define "llmfleet-monitoring.metricRelabelings" -}}
{{- if eq .component "engine" -}}
- {sourceLabels: [__name__], regex: .+_created, action: drop}
{{- end }}
{{- end }}

{{- /*
llmfleet-monitoring.prometheusSpelling: relabelings in a PodMonitor's shape as Prometheus itself spells them.
Takes: a list of them.
*/}}
{{- define "llmfleet-monitoring.prometheusSpelling" -}}
{{- $spelled := list -}}
{{- range . -}}
{{- $one := dict -}}
{{- range $key, $value := . -}}{{- $_ := set $one (snakecase $key) $value -}}{{- end -}}
{{- with $one.action }}{{- $_ := set $one "action" (lower .) -}}{{- end -}}
{{- $spelled = append $spelled $one -}}
{{- end -}}
{{- toYaml $spelled -}}
{{- end }}

{{- /* llmfleet-monitoring.namespaces: what podMonitor.namespaceSelector means to a Prometheus without an operator; nothing: all. Takes: the root. */}}
{{- define "llmfleet-monitoring.namespaces" -}}
{{- $selector := .Values.podMonitor.namespaceSelector -}}
{{- if not $selector.any -}}
namespaces: {names: {{ $selector.matchNames | default (list (include "llmfleet.namespace" .)) | toJson }}}
{{- end -}}
{{- end }}

{{- /* llmfleet-monitoring.missing: what to write where a Prometheus operator's kind is not known. Takes: kind. */}}
{{- define "llmfleet-monitoring.missing" -}}
the cluster has no {{ .kind }} kind: install a Prometheus operator first, or write podMonitor.renderMode=skipIfMissing (rules follow it unless rules.renderMode says otherwise); for a Prometheus without an operator write podMonitor.enabled=false, scrapeConfig.enabled=true and rules.kind=ConfigMap
{{- end }}
