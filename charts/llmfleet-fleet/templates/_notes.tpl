{{- /* llmfleet-fleet.notes: how to use this very install. Takes: the root. */}}
{{- define "llmfleet-fleet.notes" -}}
{{- $namespace := include "llmfleet.namespace" . -}}
{{- $router := include "llmfleet-fleet.routerName" . -}}
{{- $model := include "llmfleet-fleet.firstModel" . -}}
{{- if and .Values.router.enabled $model -}}
Ask {{ $model }} for a streamed completion:

  kubectl --namespace {{ $namespace }} port-forward service/{{ $router }} 8080:{{ .Values.router.service.port }} &
  curl --no-buffer http://127.0.0.1:8080/v1/chat/completions \
    --header 'Content-Type: application/json' \
    --data '{"model": "{{ $model }}", "stream": true, "messages": [{"role": "user", "content": "Say hello."}]}'

Inside the cluster the address is {{ include "llmfleet-fleet.url" . }}.
{{- if .Values.tests.enabled }}

Check the whole path:

  helm test {{ .Release.Name }} --namespace {{ include "llmfleet.releaseNamespace" . }} --logs
{{- end }}
{{- else if not $model }}
No model is served yet. Name one under `models`, for instance in a file for --values:

  {{ if .Chart.IsRoot }}models:{{ else }}fleet:
    models:{{ end }}
      tiny: {instances: 1, model: my-org/my-model, replicas: 1, gpusPerPod: 1, tensorParallelSize: 1}
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
