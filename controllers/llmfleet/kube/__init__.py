"""The one package that speaks to the Kubernetes API: plans in, requests out (`client`), caches back (`watch`)."""
