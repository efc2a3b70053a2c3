{{- /*
The controllers' permissions, once: the controllers chart grants them cluster-wide or the fleet chart in its namespace.
Same bytes in both charts, and equal to the table that the code keeps (both tested).
*/}}

{{- /* llmfleet.operatorReadRules: what the operator watches and looks up, in every namespace it watches. */}}
{{- define "llmfleet.operatorReadRules" -}}
- apiGroups: [serving.ai]
  resources: [llmclusters, llmclusterautoscalers]
  verbs: [get, list, watch]
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [get, list, watch]
- apiGroups: [apps]
  resources: [controllerrevisions]
  verbs: [get, list]
- apiGroups: [""]
  resources: [pods, services, persistentvolumeclaims, configmaps]
  verbs: [get, list, watch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [namespaces]
  verbs: [get]
{{- end }}

{{- /* llmfleet.operatorWriteRules: what it builds; never a Secret, never an LLMCluster of its own. */}}
{{- define "llmfleet.operatorWriteRules" -}}
- apiGroups: [serving.ai]
  resources: [llmclusters, llmclusters/status]
  verbs: [patch]
{{- /* Asked for where OwnerReferencesPermissionEnforcement is on, as it is in OpenShift. */}}
- apiGroups: [serving.ai]
  resources: [llmclusters/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [create, patch]
- apiGroups: [apps]
  resources: [controllerrevisions]
  verbs: [create, patch, delete]
- apiGroups: [""]
  resources: [services, persistentvolumeclaims]
  verbs: [create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [delete]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [patch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}

{{- /* llmfleet.autoscalerReadRules: what the autoscaler watches, in every namespace it watches. */}}
{{- define "llmfleet.autoscalerReadRules" -}}
- apiGroups: [serving.ai]
  resources: [llmclusterautoscalers, llmclusters]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
{{- end }}

{{- /* llmfleet.autoscalerWriteRules: whole instances, and what it says about them; never a pod. */}}
{{- define "llmfleet.autoscalerWriteRules" -}}
- apiGroups: [serving.ai]
  resources: [llmclusters]
  verbs: [create, patch, delete]
- apiGroups: [serving.ai]
  resources: [llmclusterautoscalers/status]
  verbs: [patch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}
