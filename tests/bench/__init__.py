"""``make bench``: what the edge and a run take on this machine."""
