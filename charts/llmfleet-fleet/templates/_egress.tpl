{{- /* llmfleet-fleet.dns: an egress rule to any resolver, a node's own included. Takes: nothing. */}}
{{- define "llmfleet-fleet.dns" -}}
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
{{- end }}

{{- /* llmfleet-fleet.apiserver: an egress rule to the apiserver, which no label selects. Takes: the root. */}}
{{- define "llmfleet-fleet.apiserver" -}}
- ports:
    {{- range .Values.networkPolicy.egress.apiserverPorts }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
  {{- with .Values.networkPolicy.egress.apiserverTo }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{- /* llmfleet-fleet.redisEgress: an egress rule to the Redis of the release, or to the ports of an external one and its Sentinels; or nothing. Takes: the root. */}}
{{- define "llmfleet-fleet.redisEgress" -}}
{{- if .Values.redis.external.url -}}
- ports:
    - {port: {{ regexFind ":[0-9]+(/|$)" .Values.redis.external.url | trimAll ":/" | default "6379" }}, protocol: TCP}
{{- else if .Values.redis.external.sentinel.addresses -}}
{{- $ports := list (.Values.redis.external.sentinel.serverPort | int) -}}
{{- range .Values.redis.external.sentinel.addresses -}}
{{- $ports = append $ports (splitList ":" . | last | int) -}}
{{- end -}}
- ports:
    {{- range $ports | uniq }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
{{- else if .Values.redis.enabled -}}
- to:
    - podSelector:
        matchLabels:
          {{- include "llmfleet.selectorLabels" (dict "root" . "component" "redis") | nindent 10 }}
  ports:
    - {port: 6379, protocol: TCP}
{{- end -}}
{{- end }}

{{- /* llmfleet-fleet.engineEgress: an egress rule to the engines of this namespace, whatever their port. Takes: nothing. */}}
{{- define "llmfleet-fleet.engineEgress" -}}
- to:
    - podSelector:
        matchLabels: {app.kubernetes.io/component: engine}
{{- end }}

{{- /* llmfleet-fleet.routerEgress: an egress rule to ports of this release's routers. Takes: root, ports. */}}
{{- define "llmfleet-fleet.routerEgress" -}}
- to:
    - podSelector:
        matchLabels:
          {{- include "llmfleet.selectorLabels" (dict "root" .root "component" "router") | nindent 10 }}
  ports:
    {{- range .ports }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
{{- end }}
