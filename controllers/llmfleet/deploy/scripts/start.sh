# Exec the engine (argv) on the wildcard address of the pod's own family; the IPv6 one takes IPv4 (loopback) too.
case "$VLLM_HOST_IP" in *:*) host=:: ;; *) host=0.0.0.0 ;; esac
exec "$0" "$@" --host "$host"
