{{- /* llmfleet-fleet.notes: how to use this very install. Takes: the root. */}}
{{- define "llmfleet-fleet.notes" -}}
{{- $namespace := include "llmfleet.namespace" . -}}
{{- $served := (include "llmfleet-fleet.served" . | fromYaml).models -}}
{{- $keys := and .Values.router.enabled (not (empty .Values.router.apiKeys.existingSecret)) -}}
{{- $first := dict -}}
{{- range $served -}}{{- if and .awake (empty $first) -}}{{- $first = . -}}{{- end -}}{{- end -}}
{{- $model := $first | default (first $served) -}}
{{- $door := dict -}}
{{- if $model -}}
{{- $door = include "llmfleet-fleet.door" (dict "root" . "key" $model.key) | fromYaml -}}
{{- end -}}
{{- if $door -}}
Ask {{ $model.name }} for a streamed completion
{{- if not $model.awake }} (when it sleeps, the request waits while an instance starts){{ end }}:

  kubectl --namespace {{ $namespace }} port-forward service/{{ $door.service }} 8080:{{ $door.port }} &
  curl --no-buffer http://127.0.0.1:8080/v1/chat/completions \
{{- if $keys }}
    --header "Authorization: Bearer $KEY" \
{{- end }}
    --header 'Content-Type: application/json' \
    --data '{"model": "{{ $model.name }}", "stream": true, "messages": [{"role": "user", "content": "Say hello."}]}'

Inside the cluster the address is {{ $door.url }}.
{{- if not .Values.router.enabled }} There is no router: each instance has a
Service of its own name, takes whatever comes, and a client that is refused asks again by itself.
{{- end }}
{{- if .Values.tests.enabled }}

Check the whole path:

  helm test {{ .Release.Name }} --namespace {{ include "llmfleet.releaseNamespace" . }} --logs
{{- if and $keys (not .Values.tests.apiKeySecretRef.name) }}

The checks that ask a model are left out: they need a key. Store one in a Secret and name it in tests.apiKeySecretRef.
{{- end }}
{{- end }}
{{- else if not $model }}
No model is served yet. Name one under `models`, for instance in a file for --values:

  {{ if .Chart.IsRoot }}models:{{ else }}fleet:
    models:{{ end }}
      tiny: {instances: 1, model: my-org/my-model, replicas: 1, gpusPerPod: 1, tensorParallelSize: 1}
{{- else }}
{{ $model.name }} has no router, and its instances are made by the autoscaler; each has a Service of its own name.
{{- end }}

See the instances, and why each is in its state:

  kubectl --namespace {{ $namespace }} get llmc
{{- if .Values.router.enabled }}

The router also serves LLMClusters that you apply here yourself, if they match: {{ include "llmfleet-fleet.clusterSelector" . | default "(all of this namespace)" }}
{{- end }}

`helm uninstall` first drains and deletes the instances
{{- if not .Values.uninstall.enabled }} only when uninstall.enabled is true: it is false here, so delete them yourself before{{ end }}.
It leaves the CRDs{{ if and .Values.redis.enabled .Values.redis.persistence.enabled }}, the volume claim of Redis{{ end }} and the claims of model caches that do not say deleteWithInstance.
{{- end }}
