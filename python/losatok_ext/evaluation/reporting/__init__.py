"""Reports: their content (tables, charts, sounds), and the files that they are written to (JSON, Markdown, page)."""
