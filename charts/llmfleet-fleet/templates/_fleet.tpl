{{- /* llmfleet-fleet.routerName: name of the router's objects. Takes: the root. */}}
{{- define "llmfleet-fleet.routerName" -}}
{{- include "llmfleet.name" (dict "root" . "parts" (list "router")) -}}
{{- end }}

{{- /* llmfleet-fleet.backendsName: the ConfigMap that the operator fills and route-sync reads. Takes: the root. */}}
{{- define "llmfleet-fleet.backendsName" -}}
{{- printf "%s-backends" (include "llmfleet-fleet.routerName" .) -}}
{{- end }}

{{- /* llmfleet-fleet.clusterSelector: which LLMClusters of the namespace the router serves; nothing for all. Takes: the root. */}}
{{- define "llmfleet-fleet.clusterSelector" -}}
{{- .Values.router.clusterSelector | default (printf "app.kubernetes.io/instance=%s" .Release.Name) | trimAll "*" -}}
{{- end }}

{{- /* llmfleet-fleet.redisName: name of the Redis objects. Takes: the root. */}}
{{- define "llmfleet-fleet.redisName" -}}
{{- include "llmfleet.name" (dict "root" . "parts" (list "redis")) -}}
{{- end }}

{{- /* llmfleet-fleet.uninstallName: name of the clean-up's objects. Takes: the root. */}}
{{- define "llmfleet-fleet.uninstallName" -}}
{{- include "llmfleet.name" (dict "root" . "parts" (list "uninstall")) -}}
{{- end }}

{{- /* llmfleet-fleet.serviceAccount: the account of the router pods. Takes: the root. */}}
{{- define "llmfleet-fleet.serviceAccount" -}}
{{- .Values.router.serviceAccount.name | default (include "llmfleet-fleet.routerName" .) -}}
{{- end }}

{{- /* llmfleet-fleet.operatorNamespace: where the operator of this fleet runs. Takes: the root. */}}
{{- define "llmfleet-fleet.operatorNamespace" -}}
{{- .Values.operator.namespace | default (include "llmfleet.releaseNamespace" .) -}}
{{- end }}

{{- /* llmfleet-fleet.operatorRelease: the Helm release of the operator of this fleet. Takes: the root. */}}
{{- define "llmfleet-fleet.operatorRelease" -}}
{{- .Values.operator.release | default .Release.Name -}}
{{- end }}

{{- /* llmfleet-fleet.operatorIdentity: who builds this fleet, as the operator calls itself. Takes: the root. */}}
{{- define "llmfleet-fleet.operatorIdentity" -}}
{{- printf "%s/%s" (include "llmfleet-fleet.operatorNamespace" .) (include "llmfleet-fleet.operatorRelease" .) -}}
{{- end }}

{{- /* llmfleet-fleet.operatorServiceAccount: the account that may write in this namespace. Takes: the root. */}}
{{- define "llmfleet-fleet.operatorServiceAccount" -}}
{{- $scope := dict "Name" (include "llmfleet-fleet.operatorRelease" .) -}}
{{- .Values.operator.serviceAccountName | default (include "llmfleet.name" (dict "root" (dict "Release" $scope) "parts" (list "operator"))) -}}
{{- end }}

{{- /* llmfleet-fleet.image: the project's image. Takes: the root. */}}
{{- define "llmfleet-fleet.image" -}}
{{- include "llmfleet.image" (dict "root" . "image" .Values.image "path" "image" "tag" .Chart.AppVersion) -}}
{{- end }}

{{- /*
llmfleet-fleet.spec: one model's LLMCluster spec: the engine's defaults, the model's fields over them, env merged by
name, the image in one string. No label and no version of the chart: a chart bump must not restart a GPU pod.
Takes: root, name, model.
*/}}
{{- define "llmfleet-fleet.spec" -}}
{{- $spec := mergeOverwrite (deepCopy .root.Values.engine) (deepCopy (omit .model "instances" "autoscaling" "coordination" "prefill" "decode")) -}}
{{- $image := $spec.image -}}
{{- $_ := set $spec "image" (include "llmfleet.image" (dict "root" .root "image" $image "path" (printf "engine.image (model %s)" .name) "tag" "")) -}}
{{- $_ := set $spec "imagePullPolicy" ($image.pullPolicy | default "IfNotPresent") -}}
{{- if and (not $spec.imagePullSecrets) (.root.Values.global).imagePullSecrets -}}
{{- $_ := set $spec "imagePullSecrets" .root.Values.global.imagePullSecrets -}}
{{- end -}}
{{- with include "llmfleet.mergeEnv" (list (.root.Values.engine.env | default list) (.model.env | default list)) -}}
{{- $_ := set $spec "env" (fromYamlArray .) -}}
{{- end -}}
{{- toYaml $spec -}}
{{- end }}

{{- /*
llmfleet-fleet.shapes: what the instances of a model look like, by role: the model itself, or its prefill and decode
blocks over what they share, env merged by name. Takes: model.
*/}}
{{- define "llmfleet-fleet.shapes" -}}
{{- $shapes := dict -}}
{{- if or .model.prefill .model.decode -}}
{{- $shared := omit .model "instances" "autoscaling" "coordination" "prefill" "decode" -}}
{{- range $role := list "prefill" "decode" -}}
{{- $block := get $.model $role | default dict -}}
{{- $shape := mergeOverwrite (deepCopy $shared) (deepCopy $block) (dict "role" $role) -}}
{{- with include "llmfleet.mergeEnv" (list ($shared.env | default list) ($block.env | default list)) -}}
{{- $_ := set $shape "env" (fromYamlArray .) -}}
{{- end -}}
{{- $_ := set $shapes $role $shape -}}
{{- end -}}
{{- else -}}
{{- $_ := set $shapes "" .model -}}
{{- end -}}
{{- toYaml $shapes -}}
{{- end }}

{{- /* llmfleet-fleet.instanceTemplate: what an autoscaler makes instances from. Takes: root, name, model, role (may be empty). */}}
{{- define "llmfleet-fleet.instanceTemplate" -}}
namePrefix: {{ include "llmfleet-fleet.namePrefix" (dict "root" .root "name" (compact (list .name .role) | join "-")) }}
labels: {{- /* none that changes with a chart's version: it would patch every instance */}}
  {{- include "llmfleet.selectorLabels" (dict "root" .root "component" "engine") | nindent 2 }}
  serving.ai/fleet: {{ include "llmfleet.name" (dict "root" .root "parts" (list .name)) }}
annotations:
  serving.ai/managed-by: {{ include "llmfleet-fleet.operatorIdentity" .root }}
spec:
  {{- include "llmfleet-fleet.spec" . | nindent 2 }}
{{- end }}

{{- /* llmfleet-fleet.url: the router's address inside the cluster. Takes: the root. */}}
{{- define "llmfleet-fleet.url" -}}
{{- printf "http://%s.%s.svc:%d" (include "llmfleet-fleet.routerName" .) (include "llmfleet.namespace" .) (int .Values.router.service.port) -}}
{{- end }}

{{- /* llmfleet-fleet.operatorPeer: the operator's pods as a NetworkPolicy peer. Takes: the root. */}}
{{- define "llmfleet-fleet.operatorPeer" -}}
- namespaceSelector:
    matchLabels:
      kubernetes.io/metadata.name: {{ include "llmfleet-fleet.operatorNamespace" . }}
  podSelector:
    matchLabels:
      app.kubernetes.io/name: llmfleet-operator
      app.kubernetes.io/instance: {{ include "llmfleet-fleet.operatorRelease" . }}
      app.kubernetes.io/component: operator
{{- end }}

{{- /* llmfleet-fleet.hookPod: what every hook pod of this chart has besides its container. Takes: the root. */}}
{{- define "llmfleet-fleet.hookPod" -}}
restartPolicy: Never
enableServiceLinks: false
{{- with include "llmfleet.podBasics" (dict "root" . "values" dict) | trim }}
{{ . }}
{{- end }}
securityContext:
  {{- include "llmfleet.podSecurity" (dict "values" dict "user" 65532) | nindent 2 }}
{{- end }}

{{- /* llmfleet-fleet.testPeer: the pods of `helm test` as a NetworkPolicy peer; nothing without them. Takes: the root. */}}
{{- define "llmfleet-fleet.testPeer" -}}
{{- if .Values.tests.enabled -}}
- podSelector:
    matchLabels:
      {{- include "llmfleet.selectorLabels" (dict "root" . "component" "test") | nindent 6 }}
{{- end -}}
{{- end }}

{{- /* llmfleet-fleet.testPod: one `helm test` hook. Takes: root, check, weight, url, args, key (whether it sends one). */}}
{{- define "llmfleet-fleet.testPod" -}}
{{- $root := .root -}}
{{- $secret := $root.Values.tests.apiKeySecretRef -}}
{{- $key := and .key $root.Values.router.enabled $secret.name -}}
apiVersion: v1
kind: Pod
metadata:
  name: {{ include "llmfleet.name" (dict "root" $root "parts" (list "test")) }}-{{ .check }}
  namespace: {{ include "llmfleet.namespace" $root }}
  labels:
    {{- include "llmfleet.labels" (dict "root" $root "component" "test") | nindent 4 }}
  annotations:
    helm.sh/hook: test
    helm.sh/hook-weight: {{ .weight | quote }}
    helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded,hook-failed
    helm.sh/hook-output-log-policy: hook-failed
spec:
  {{- include "llmfleet-fleet.hookPod" $root | nindent 2 }}
  automountServiceAccountToken: false
  containers:
    - name: {{ .check }}
      image: {{ include "llmfleet-fleet.image" $root }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      args:
        - helm-test
        - {{ .check }}
        - --url={{ .url }}
        {{- range .args }}
        - {{ . | quote }}
        {{- end }}
        {{- if $key }}
        - --key-file=/var/run/secrets/llmfleet/key
        {{- end }}
        - --patience={{ $root.Values.tests.patienceSeconds }}
      resources:
        requests: {cpu: 10m, memory: 64Mi}
        limits: {memory: 128Mi}
      securityContext:
        {{- include "llmfleet.containerSecurity" (dict "values" dict) | nindent 8 }}
      {{- if $key }}
      volumeMounts:
        - {name: key, mountPath: /var/run/secrets/llmfleet, readOnly: true}
  volumes:
    - name: key
      secret:
        secretName: {{ $secret.name }}
        defaultMode: 0440
        items: [{key: {{ $secret.key | quote }}, path: key}]
      {{- end }}
{{- end }}

{{- /* llmfleet-fleet.scaled: "true" when some model has `autoscaling`, else empty. Takes: the root. */}}
{{- define "llmfleet-fleet.scaled" -}}
{{- $found := false -}}
{{- range .Values.models }}{{- if and . (or .autoscaling (dig "prefill" "autoscaling" "" .)) }}{{- $found = true -}}{{- end }}{{- end -}}
{{- if $found }}true{{ end -}}
{{- end }}

{{- /* llmfleet-fleet.autoscalerServiceAccount: the account that may make instances in this namespace. Takes: the root. */}}
{{- define "llmfleet-fleet.autoscalerServiceAccount" -}}
{{- $scope := dict "Name" (include "llmfleet-fleet.operatorRelease" .) -}}
{{- .Values.operator.autoscalerServiceAccountName | default (include "llmfleet.name" (dict "root" (dict "Release" $scope) "parts" (list "autoscaler"))) -}}
{{- end }}

{{- /* llmfleet-fleet.namePrefix: what an autoscaler's instances are called before their number, at most 31 characters. Takes: root, name. */}}
{{- define "llmfleet-fleet.namePrefix" -}}
{{- $full := printf "%s-" (include "llmfleet.name" (dict "root" .root "parts" (list .name))) -}}
{{- if le (len $full) 31 -}}
{{- $full -}}
{{- else -}}
{{- printf "%s-%s-" (trunc 21 $full | trimSuffix "-") (sha256sum $full | trunc 8) -}}
{{- end -}}
{{- end }}

{{- /* llmfleet-fleet.autoscalerPeer: the autoscaler's pods as a NetworkPolicy peer. Takes: the root. */}}
{{- define "llmfleet-fleet.autoscalerPeer" -}}
- namespaceSelector:
    matchLabels:
      kubernetes.io/metadata.name: {{ include "llmfleet-fleet.operatorNamespace" . }}
  podSelector:
    matchLabels:
      app.kubernetes.io/name: llmfleet-autoscaler
      app.kubernetes.io/instance: {{ include "llmfleet-fleet.operatorRelease" . }}
      app.kubernetes.io/component: autoscaler
{{- end }}
