"""Text that a teacher writes, as training data: by a local model or a server, resumable, filtered, deduplicated."""
