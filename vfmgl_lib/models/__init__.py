"""Frozen teachers and light students."""
