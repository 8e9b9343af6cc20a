"""The four services; each folder is one bounded context and imports no other."""
