{{- /* llmfleet-fleet.settings: the router's settings file. Takes: the root. */}}
{{- define "llmfleet-fleet.settings" -}}
{{- toYaml .Values.router.settings -}}
{{- end }}
