"""A table as Markdown, LaTeX, CSV, HTML, or text on a terminal."""
