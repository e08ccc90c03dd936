"""The tasks: one folder a built-in task, and what all share: preparing a set, reading folders, phantoms, downloads, datasheets."""
