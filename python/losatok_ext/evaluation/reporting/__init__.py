"""Reports: tables, charts and sounds, written as JSON, Markdown and a page."""
