"""The checks of `helm test`: the path from the client Service to a token, walked from inside the cluster."""
