"""The command line ``convergence``: a client of the public API only, over native gRPC through the gateway.

It owns nothing but the profiles in its user's configuration directory, promises stable exit codes and the API's own
JSON, and imports ``libs`` and the contracts, never a service. Whatever is slow to load (gRPC, protobuf, rich) is
loaded when a command needs it, so that ``--help`` and shell completion answer at once.
"""
