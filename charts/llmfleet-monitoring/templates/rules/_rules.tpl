{{- /*
llmfleet-monitoring.fill: a file of rules with its values. Such files are written with << and >>, because Prometheus
has a use of its own for double braces. Takes: text, scope.
*/}}
{{- define "llmfleet-monitoring.fill" -}}
{{- $text := .text | replace "{{" "\x01" | replace "}}" "\x02" | replace "<<" "{{" | replace ">>" "}}" -}}
{{- tpl $text .scope | replace "\x01" "{{" | replace "\x02" "}}" -}}
{{- end }}

{{- /* llmfleet-monitoring.edge: a bucket's edge as its `le` label says it, 1 as 1.0. Takes: a number. */}}
{{- define "llmfleet-monitoring.edge" -}}
{{- $text := toString . -}}
{{- contains "." $text | ternary $text (printf "%s.0" $text) -}}
{{- end }}

{{- /*
llmfleet-monitoring.burn: the share of bad events at which an error budget burns at a rate. Beyond 1 no share can get,
so with a large budget it stops four fifths of the way from the budget to 1. Takes: rate, objective.
*/}}
{{- define "llmfleet-monitoring.burn" -}}
{{- $most := subf 1 (mulf 0.2 .objective) -}}
{{- if lt $most (mulf .rate (subf 1 .objective)) -}}
{{- $most -}}
{{- else if eq (float64 .rate) 1.0 -}}
1 - {{ .objective }}
{{- else -}}
{{ .rate }} * (1 - {{ .objective }})
{{- end -}}
{{- end }}

{{- /*
llmfleet-monitoring.alert: one alert with its values and where its runbook is; empty when it is off, or null.
Takes: root, file (a path below rules/alerts).
*/}}
{{- define "llmfleet-monitoring.alert" -}}
{{- $name := base .file | trimSuffix ".yaml" -}}
{{- $values := get (.root.Values.alerts | default dict) $name -}}
{{- if and $values $values.enabled -}}
{{- $rules := .root.Values.rules -}}
{{- $scope := dict "alert" $values "slo" .root.Values.slo "Template" .root.Template -}}
{{- $rule := include "llmfleet-monitoring.fill" (dict "text" (.root.Files.Get .file) "scope" $scope) | fromYaml -}}
{{- $annotations := dict "runbook" (printf "docs/runbooks/%s.md" $name) -}}
{{- with $rules.runbookBase }}{{- $_ := set $annotations "runbook_url" (printf "%s/%s.md" (trimSuffix "/" .) $name) }}{{ end -}}
{{- $labels := dict "severity" $values.severity -}}
{{- mergeOverwrite $rule (dict "for" $values.for "labels" (mergeOverwrite (deepCopy ($rules.alertLabels | default dict)) $labels) "annotations" $annotations) | toYaml -}}
{{- end -}}
{{- end }}

{{- /* llmfleet-monitoring.groups: every rule, as Prometheus reads a rule file. Takes: the root. */}}
{{- define "llmfleet-monitoring.groups" -}}
{{- $groups := list -}}
{{- $interval := .Values.rules.interval -}}
{{- $scope := dict "edge" (include "llmfleet-monitoring.edge" .Values.slo.timeToFirstToken.thresholdSeconds) "Template" .Template -}}
{{- range $path, $_ := .Files.Glob "rules/recording/*.yaml" -}}
{{- $rules := include "llmfleet-monitoring.fill" (dict "text" ($.Files.Get $path) "scope" $scope) | fromYamlArray -}}
{{- $name := base $path | trimSuffix ".yaml" | printf "llmfleet-%s-records" -}}
{{- $groups = append $groups (dict "name" $name "interval" $interval "rules" $rules) -}}
{{- end -}}
{{- range $folder := list "slo" "router" "engine" "disaggregation" "jobs" "operator" "autoscaler" "gpu" "platform" -}}
{{- $rules := list -}}
{{- range $path, $_ := $.Files.Glob (printf "rules/alerts/%s/*.yaml" $folder) -}}
{{- with include "llmfleet-monitoring.alert" (dict "root" $ "file" $path) -}}
{{- $rules = append $rules (fromYaml .) -}}
{{- end -}}
{{- end -}}
{{- if $rules -}}
{{- $groups = append $groups (dict "name" (printf "llmfleet-%s" $folder) "interval" $interval "rules" $rules) -}}
{{- end -}}
{{- end -}}
{{- dict "groups" $groups | toYaml -}}
{{- end }}
