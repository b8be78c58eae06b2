"""The dialect of OAR: one module for its jobs and its commands, one for a site's resources."""
