"""The credential context: a tenant's cloud credentials.

It owns ``tenants.tenant_cloud_credentials`` and promises that a secret goes in once and comes out only to the pipeline
executor, for the tenant it belongs to, with a record of every opening. It reads no billing data and knows no runs.
"""
