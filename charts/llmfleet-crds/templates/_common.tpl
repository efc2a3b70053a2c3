{{- /*
Shared by every llmfleet chart, byte for byte (a test compares the copies): named templates are global in a release,
so four different versions of one name would overwrite each other.
*/}}

{{- /*
llmfleet.name: release[-part...], at most 40 characters.
Why 40: the CRD's limit. Children add suffixes, a StatefulSet's controller-revision-hash label adds 11, and nothing
may pass 63. A longer name keeps its start and ends in a hash of the whole, so two long names stay different.
Takes: root, parts (list of strings; an ordinal must be a string, `compact` drops a numeric 0).
*/}}
{{- define "llmfleet.name" -}}
{{- $release := .root.Release.Name | replace "." "-" -}}
{{- if not (regexMatch "^[a-z]" $release) -}}
{{- fail (printf "release name %q starts with a digit, and Services and LLMClusters may not: choose a name that starts with a letter, such as llm-%s" .root.Release.Name .root.Release.Name) -}}
{{- end -}}
{{- $full := prepend .parts $release | compact | join "-" -}}
{{- if le (len $full) 40 -}}
{{- $full -}}
{{- else -}}
{{- printf "%s-%s" (trunc 31 $full | trimSuffix "-") (sha256sum $full | trunc 8) -}}
{{- end -}}
{{- end }}

{{- /* llmfleet.releaseNamespace: where Helm keeps the release; nothing else reads it. Takes: the root. */}}
{{- define "llmfleet.releaseNamespace" -}}
{{- .Release.Namespace -}}
{{- end }}

{{- /* llmfleet.namespace: where this chart's objects live. Takes: the root. */}}
{{- define "llmfleet.namespace" -}}
{{- .Values.namespaceOverride | default (include "llmfleet.releaseNamespace" .) -}}
{{- end }}

{{- /* llmfleet.selectorLabels: what selects pods; never changes for a release. Takes: root, component. */}}
{{- define "llmfleet.selectorLabels" -}}
app.kubernetes.io/name: llmfleet-{{ .component }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- /* llmfleet.labels: what describes an object. Never on a pod template: a chart bump must restart no pod. Takes: root, component. */}}
{{- define "llmfleet.labels" -}}
{{- $own := include "llmfleet.selectorLabels" . | fromYaml -}}
{{- $own = mergeOverwrite $own (dict
      "app.kubernetes.io/part-of" "llmfleet"
      "app.kubernetes.io/version" (.root.Chart.AppVersion | toString)
      "app.kubernetes.io/managed-by" .root.Release.Service
      "helm.sh/chart" (printf "llmfleet-%s-%s" (.root.Chart.Name | trimPrefix "llmfleet-") (.root.Chart.Version | replace "+" "_") | trunc 63 | trimSuffix "-")) -}}
{{- mergeOverwrite (deepCopy (.root.Values.commonLabels | default dict)) $own | toYaml -}}
{{- end }}

{{- /* llmfleet.operatorIdentity: <namespace>/<release> of the operator whose chart this root belongs to. Takes: root. */}}
{{- define "llmfleet.operatorIdentity" -}}
{{- printf "%s/%s" (include "llmfleet.namespace" .) .Release.Name -}}
{{- end }}

{{- /*
llmfleet.image: registry/repository:tag[@digest]. The image's own registry wins, else global.imageRegistry; one of
the two must be set, because the project publishes no registry of its own.
Takes: root, image, path (where the image stands in the values, for messages), tag (used when image.tag is empty).
*/}}
{{- define "llmfleet.image" -}}
{{- $registry := .image.registry | default (.root.Values.global).imageRegistry -}}
{{- $tag := .image.tag | default .tag | toString -}}
{{- if not $registry -}}
{{- fail (printf "no registry for the image %s: write --set global.imageRegistry=REGISTRY, the registry that `make push REGISTRY=...` filled (localhost on the local cluster), or set %s.registry" .image.repository .path) -}}
{{- end -}}
{{- if not .image.repository -}}
{{- fail (printf "%s.repository is empty: write the image's repository, such as vllm/vllm-openai" .path) -}}
{{- end -}}
{{- if not (or $tag .image.digest) -}}
{{- fail (printf "%s.tag is empty: write the exact version to run, such as v0.33.0, or a digest (a chart upgrade must not choose it for you)" .path) -}}
{{- end -}}
{{- if eq $tag "latest" -}}
{{- fail (printf "%s.tag is \"latest\", which names no version: pods of one group could differ. Write the exact version, or a digest" .path) -}}
{{- end -}}
{{- printf "%s/%s" (trimSuffix "/" $registry) .image.repository -}}
{{- with $tag }}:{{ . }}{{ end -}}
{{- with .image.digest }}@{{ . }}{{ end -}}
{{- end }}

{{- /* llmfleet.podSecurity: the restricted Pod Security Standard, the component's podSecurityContext merged over it. Takes: component values, user. */}}
{{- define "llmfleet.podSecurity" -}}
{{- $default := dict "runAsNonRoot" true "runAsUser" .user "runAsGroup" .user "fsGroup" .user "seccompProfile" (dict "type" "RuntimeDefault") -}}
{{- mergeOverwrite $default (deepCopy (.values.podSecurityContext | default dict)) | toYaml -}}
{{- end }}

{{- /* llmfleet.containerSecurity: the same for one container. Takes: values. */}}
{{- define "llmfleet.containerSecurity" -}}
{{- $default := dict "allowPrivilegeEscalation" false "readOnlyRootFilesystem" true "capabilities" (dict "drop" (list "ALL")) -}}
{{- mergeOverwrite $default (deepCopy (.values.securityContext | default dict)) | toYaml -}}
{{- end }}

{{- /*
llmfleet.podBasics: pull secrets, and where a component's pods may run, in Kubernetes' own shapes; may be empty.
Takes: root, values.
*/}}
{{- define "llmfleet.podBasics" -}}
{{- $fields := pick .values "nodeSelector" "tolerations" "affinity" "priorityClassName" -}}
{{- $fields = mergeOverwrite $fields (dict "imagePullSecrets" (.root.Values.global).imagePullSecrets) -}}
{{- range $key, $value := $fields -}}
{{- if $value }}
{{ toYaml (dict $key $value) }}
{{- end -}}
{{- end -}}
{{- end }}

{{- /* llmfleet.mergeEnv: env lists merged by name, later lists win; a repeated name is an error under server-side apply. Takes: a list of lists. */}}
{{- define "llmfleet.mergeEnv" -}}
{{- $byName := dict -}}
{{- $order := list -}}
{{- range $list := . }}{{- range $list -}}
{{- $order = append $order .name -}}
{{- $_ := set $byName .name . -}}
{{- end }}{{- end -}}
{{- $merged := list -}}
{{- range uniq $order }}{{- $merged = append $merged (get $byName .) }}{{- end -}}
{{- with $merged }}{{ toYaml . }}{{ end -}}
{{- end }}
