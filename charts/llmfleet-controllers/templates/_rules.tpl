{{- /*
The operator's permissions, once: the controllers chart grants them cluster-wide or the fleet chart in its namespace.
Same bytes in both charts, and equal to the table that the code keeps (both tested).
*/}}

{{- /* llmfleet.operatorReadRules: what the operator watches and looks up, in every namespace it watches. */}}
{{- define "llmfleet.operatorReadRules" -}}
- apiGroups: [serving.ai]
  resources: [llmclusters]
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
