{{- /*
llmfleet-fleet.served: what clients can ask for, in the order of the models' keys, as {models: [{key, name, names, awake}]}:
`name` is the first of `names`, adapters are among them; `awake` says that there is always an instance. Takes: the root.
*/}}
{{- define "llmfleet-fleet.served" -}}
{{- $served := list -}}
{{- range $key, $model := .Values.models -}}
{{- if $model -}}
{{- $spec := mergeOverwrite (deepCopy $.Values.engine) (deepCopy $model) -}}
{{- $names := $spec.servedModelNames | default (list $spec.model) -}}
{{- $lora := dig "inferenceArgs" "lora" dict $spec | default dict -}}
{{- range ternary $lora.adapters list (eq true $lora.enabled) -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- $awake := true -}}
{{- $off := false -}}
{{- range include "llmfleet-fleet.shapes" (dict "model" $model) | fromYaml -}}
{{- $least := ternary (dig "autoscaling" "minInstances" 0 .) .instances (empty .instances) | int -}}
{{- if lt $least 1 -}}{{- $awake = false -}}{{- end -}}
{{- if and (lt $least 1) (empty .autoscaling) -}}{{- $off = true -}}{{- end -}}
{{- end -}}
{{- if not $off -}}
{{- $served = append $served (dict "key" $key "name" (first $names) "names" $names "awake" $awake) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toYaml (dict "models" $served) -}}
{{- end }}

{{- /* llmfleet-fleet.instanceName: the LLMCluster, and the Service, of a model's first instance of fixed size. Takes: root, key. */}}
{{- define "llmfleet-fleet.instanceName" -}}
{{- include "llmfleet.name" (dict "root" .root "parts" (list .key "0")) -}}
{{- end }}

{{- /*
llmfleet-fleet.door: where a model is asked, as {service, port, url}: the router, or without one the model's first
instance, if the chart knows its name; else nothing. Takes: root, key.
*/}}
{{- define "llmfleet-fleet.door" -}}
{{- $namespace := include "llmfleet.namespace" .root -}}
{{- if .root.Values.router.enabled -}}
{{- toYaml (dict "service" (include "llmfleet-fleet.routerName" .root) "port" .root.Values.router.service.port "url" (include "llmfleet-fleet.url" .root)) -}}
{{- else if get (get .root.Values.models .key | default dict) "instances" -}}
{{- $service := include "llmfleet-fleet.instanceName" . -}}
{{- toYaml (dict "service" $service "port" 8000 "url" (printf "http://%s.%s.svc:8000" $service $namespace)) -}}
{{- end -}}
{{- end }}

{{- /*
llmfleet-fleet.asked: what the checks of `helm test` ask, and where, as {model, names, url}: tests.model, or the first
model that has an instance for sure. Nothing when there is none, or when it needs a key and the checks have none. A key
may see some models only, so then no others are expected to be listed. Takes: the root.
*/}}
{{- define "llmfleet-fleet.asked" -}}
{{- $locked := and .Values.router.enabled (not (empty .Values.router.apiKeys.existingSecret)) -}}
{{- $wanted := .Values.tests.model -}}
{{- $chosen := dict -}}
{{- $awake := list -}}
{{- range (include "llmfleet-fleet.served" . | fromYaml).models -}}
{{- $door := include "llmfleet-fleet.door" (dict "root" $ "key" .key) | fromYaml -}}
{{- if and $door (empty $chosen) (ternary .awake (has $wanted .names) (empty $wanted)) -}}
{{- $chosen = dict "model" ($wanted | default .name) "url" $door.url "names" .names -}}
{{- end -}}
{{- if .awake -}}{{- $awake = concat $awake .names -}}{{- end -}}
{{- end -}}
{{- /* An instance that somebody applied by hand; what cannot be meant is refused in validate.yaml. */ -}}
{{- if and $wanted (empty $chosen) .Values.router.enabled -}}
{{- $chosen = dict "model" $wanted "url" (include "llmfleet-fleet.url" .) -}}
{{- end -}}
{{- if and $chosen .Values.router.enabled -}}
{{- $_ := set $chosen "names" (prepend (ternary list $awake $locked) $chosen.model | uniq) -}}
{{- end -}}
{{- if and $chosen (or (not $locked) .Values.tests.apiKeySecretRef.name) -}}
{{- toYaml $chosen -}}
{{- end -}}
{{- end }}
