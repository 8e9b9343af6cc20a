"""Flat modules shared by the four services; each has at least two callers and imports no service."""
