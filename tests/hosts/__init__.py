"""Real hosts on one Linux machine, made of namespaces: see README.md beside this file."""
