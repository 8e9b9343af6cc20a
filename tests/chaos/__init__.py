"""Endurance: a stack of two replicas each under load and faults, then every invariant (``make chaos``)."""
