{{- /* llmfleet-fleet.settings: the router's settings file: the values', and where jobs are kept. Takes: the root. */}}
{{- define "llmfleet-fleet.settings" -}}
{{- $settings := deepCopy (.Values.router.settings | default dict) -}}
{{- if include "llmfleet-fleet.keepsJobs" . -}}
{{- $redis := dict "prefix" (printf "%s/%s" (include "llmfleet.namespace" $) $.Release.Name) -}}
{{- with include "llmfleet-fleet.redisUrl" . -}}
{{- $_ := set $redis "url" . -}}
{{- end -}}
{{- with include "llmfleet-fleet.sentinel" . -}}
{{- $_ := set $redis "sentinel" (fromYaml .) -}}
{{- end -}}
{{- if $.Values.redis.passwordSecretRef.name -}}
{{- $_ := set $redis "passwordFile" "/var/run/secrets/redis/password" -}}
{{- end -}}
{{- if and (not $.Values.redis.enabled) $.Values.redis.external.username -}}
{{- $_ := set $redis "username" $.Values.redis.external.username -}}
{{- end -}}
{{- if include "llmfleet-fleet.redisCa" $ -}}
{{- $_ := set $redis "caFile" "/var/run/secrets/redis-ca/ca.crt" -}}
{{- end -}}
{{- if $.Values.redis.replicated -}}
{{- $_ := set $redis "replicated" true -}}
{{- end -}}
{{- $_ := set $settings "redis" (mergeOverwrite $redis ($settings.redis | default dict)) -}}
{{- end -}}
{{- toYaml $settings -}}
{{- end }}

{{- /* llmfleet-fleet.keepsJobs: "true" when there is a Redis, of whatever kind. Takes: the root. */}}
{{- define "llmfleet-fleet.keepsJobs" -}}
{{- if or (include "llmfleet-fleet.redisUrl" .) .Values.redis.external.sentinel.addresses }}true{{ end -}}
{{- end }}

{{- /* llmfleet-fleet.sentinel: who names the primary, as the router's settings say it; empty: nobody. Takes: the root. */}}
{{- define "llmfleet-fleet.sentinel" -}}
{{- with .Values.redis.external.sentinel -}}
{{- if .addresses -}}
{{- $sentinel := pick . "masterName" "addresses" -}}
{{- if .username -}}
{{- $_ := set $sentinel "username" .username -}}
{{- end -}}
{{- if .passwordSecretRef.name -}}
{{- $_ := set $sentinel "passwordFile" "/var/run/secrets/redis-sentinel/password" -}}
{{- end -}}
{{- if .tls -}}
{{- $_ := set $sentinel "tls" true -}}
{{- end -}}
{{- toYaml $sentinel -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- /* llmfleet-fleet.redisUrl: address of the Redis that keeps jobs; empty when there is none, or when Sentinels name it. Takes: the root. */}}
{{- define "llmfleet-fleet.redisUrl" -}}
{{- if .Values.redis.external.url -}}
{{- .Values.redis.external.url -}}
{{- else if .Values.redis.enabled -}}
{{- printf "redis://%s.%s.svc:6379/0" (include "llmfleet-fleet.redisName" .) (include "llmfleet.namespace" .) -}}
{{- end -}}
{{- end }}

{{- /* llmfleet-fleet.redisCa: the Secret with the authority of an external Redis; empty: none is given. Takes: the root. */}}
{{- define "llmfleet-fleet.redisCa" -}}
{{- if not .Values.redis.enabled }}{{ .Values.redis.external.caSecretRef.name }}{{ end -}}
{{- end }}

{{- /*
llmfleet-fleet.routerGrace: seconds a stopping router may take: it waits until every proxy knows that it leaves, then
until its open requests are answered, each for as long as its settings (or their defaults) say. Takes: the root.
*/}}
{{- define "llmfleet-fleet.routerGrace" -}}
{{- $drain := dig "drain" dict (.Values.router.settings | default dict) -}}
{{- add (ceil (dig "settleSeconds" 5 $drain)) (ceil (dig "timeoutSeconds" 600 $drain)) 10 -}}
{{- end }}
