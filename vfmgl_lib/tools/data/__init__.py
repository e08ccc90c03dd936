"""From a download to a prepared set: the command line."""
