"""The page of a report: sections, charts, style and script."""
