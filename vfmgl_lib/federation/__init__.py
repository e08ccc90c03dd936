"""Clients, strategies and rounds: who trains with what, what leaves a centre, and how it becomes the next shared model."""
