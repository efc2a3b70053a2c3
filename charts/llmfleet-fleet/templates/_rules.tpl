{{- /*
The operator's permissions, once: the controllers chart grants them cluster-wide or the fleet chart in its namespace.
Same bytes in both charts (tested), and equal to the table the code keeps (tested).
*/}}

{{- /* llmfleet.operatorReadRules: what the operator watches. */}}
{{- define "llmfleet.operatorReadRules" -}}
- apiGroups: [serving.ai]
  resources: [llmclusters]
  verbs: [get, list, watch]
- apiGroups: [apps]
  resources: [statefulsets, controllerrevisions]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [pods, services, persistentvolumeclaims, configmaps]
  verbs: [get, list, watch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch]
{{- end }}

{{- /* llmfleet.operatorWriteRules: what it builds; never a Secret, never an LLMCluster of its own. */}}
{{- define "llmfleet.operatorWriteRules" -}}
- apiGroups: [serving.ai]
  resources: [llmclusters]
  verbs: [patch]
- apiGroups: [serving.ai]
  resources: [llmclusters/status]
  verbs: [patch]
- apiGroups: [serving.ai]
  resources: [llmclusters/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [statefulsets, controllerrevisions]
  verbs: [create, patch, delete]
- apiGroups: [""]
  resources: [services, persistentvolumeclaims]
  verbs: [create, patch, delete]
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
