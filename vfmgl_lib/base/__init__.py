"""What all other rooms stand on: files, checkpoints, strict YAML, seeds, and what the machine around the library is like."""
