"""Model folders: reading, writing, lower precision and published weights."""
