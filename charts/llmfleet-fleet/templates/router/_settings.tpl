{{- /* llmfleet-fleet.settings: the router's settings file. Takes: the root. */}}
{{- define "llmfleet-fleet.settings" -}}
{{- toYaml .Values.router.settings -}}
{{- end }}

{{- /*
llmfleet-fleet.routerGrace: seconds a stopping router may take: it waits until every proxy knows that it leaves, then
until its open requests are answered, each for as long as its settings (or their defaults) say. Takes: the root.
*/}}
{{- define "llmfleet-fleet.routerGrace" -}}
{{- $drain := dig "drain" dict .Values.router.settings -}}
{{- add (ceil (dig "settleSeconds" 5 $drain)) (ceil (dig "timeoutSeconds" 600 $drain)) 10 -}}
{{- end }}
