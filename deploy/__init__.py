"""How the four services are deployed, and what stands in for the cloud on one machine."""
