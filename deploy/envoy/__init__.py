"""The gateway: Envoy's configuration as text, how it is filled in, and the contract it transcodes by."""
