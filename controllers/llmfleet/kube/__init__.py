"""The one package that speaks to the Kubernetes API: data in (`plan`), requests out (`client`), caches back (`watch`)."""
