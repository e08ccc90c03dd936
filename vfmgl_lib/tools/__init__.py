"""What works with studies from outside: each may be deleted without the rest noticing."""
