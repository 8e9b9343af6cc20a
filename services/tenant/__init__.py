"""Who may use the platform, and how much.

Owns the tenants' profiles, API keys, subscriptions and quota rows, and that each tenant's dataset and tables exist.
Promises that no key opens anything after 15 s of its end, that no plan is overdrawn by any number of replicas, and that
one id is one tenant. Runs no pipeline, holds no cloud credential, and calls no other service.
"""
