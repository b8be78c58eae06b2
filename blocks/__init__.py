"""Where things run. Nothing is imported here: the server's supervisor and `srf --help` do without Prefect."""
