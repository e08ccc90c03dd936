"""Clients, servers and rounds in one process: who trains with what, what leaves a centre, how it becomes the next shared model."""
