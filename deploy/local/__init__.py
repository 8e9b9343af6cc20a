"""The local stack: the cloud's stand-ins and the supervisor that runs everything as plain processes."""
