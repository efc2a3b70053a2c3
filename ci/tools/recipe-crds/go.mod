// Pins only: nothing here is compiled. `fetch` reads the versions and takes files out of the modules' archives.
module llmfleet/ci/tools/recipe-crds

go 1.26.0

require (
	github.com/argoproj/argo-cd/v3 v3.5.7
	github.com/cert-manager/cert-manager v1.21.2
	github.com/envoyproxy/gateway v1.9.1
	github.com/external-secrets/external-secrets v1.3.2
	github.com/fluxcd/kustomize-controller v1.9.6
	github.com/fluxcd/source-controller v1.9.0
	github.com/k8snetworkplumbingwg/network-attachment-definition-client v1.7.7
	github.com/k8snetworkplumbingwg/sriov-network-operator v1.5.0
	github.com/kedacore/keda/v2 v2.21.0
	github.com/open-telemetry/opentelemetry-operator v0.137.0
	github.com/prometheus-operator/prometheus-operator v0.85.0
	sigs.k8s.io/gateway-api v1.6.0
	sigs.k8s.io/gateway-api-inference-extension v1.6.0
	sigs.k8s.io/karpenter v1.14.0
	sigs.k8s.io/kueue v0.19.2
	sigs.k8s.io/lws v0.7.0
)
