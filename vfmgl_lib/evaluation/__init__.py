"""Numbers from predictions; nothing here trains."""
